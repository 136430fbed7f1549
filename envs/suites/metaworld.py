"""Meta-World: fifty manipulation tasks of one robot arm, from state (Yu et al. 2019; version 3 of the tasks).

The observation has 39 numbers: hand, gripper and objects now and one step before, and the goal. The action moves the hand
(3 numbers) and the gripper (1). An episode ends when the task reports success.

Dimension key: H height, W width of a picture.
"""

import dataclasses
import warnings
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from jaxtyping import Float32, UInt8

from generalist.envs.task import Policy, Task

# Meta-World names its tasks but gives no instructions; these are ours.
_INSTRUCTIONS = {
    "assembly": "put the ring on the peg",
    "basketball": "throw the ball into the basket",
    "bin-picking": "move the cube to the other bin",
    "box-close": "put the lid on the box",
    "button-press": "press the button in front",
    "button-press-topdown": "press the button from above",
    "button-press-topdown-wall": "press the button from above, over the wall",
    "button-press-wall": "press the button behind the wall",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "close the faucet",
    "faucet-open": "open the faucet",
    "hammer": "hammer the nail in",
    "hand-insert": "put the hand into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the handle down, from the side",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the handle up, from the side",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "put the peg into the hole",
    "peg-unplug-side": "pull the peg out",
    "pick-out-of-hole": "take the puck out of the hole",
    "pick-place": "carry the puck to the goal",
    "pick-place-wall": "carry the puck over the wall to the goal",
    "plate-slide": "slide the plate into the goal",
    "plate-slide-back": "slide the plate back out of the goal",
    "plate-slide-back-side": "slide the plate back out, sideways",
    "plate-slide-side": "slide the plate in, sideways",
    "push": "push the puck to the goal",
    "push-back": "push the puck back to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "reach": "reach the goal",
    "reach-wall": "reach the goal behind the wall",
    "shelf-place": "put the puck on the shelf",
    "soccer": "kick the ball into the goal",
    "stick-pull": "pull the box with the stick",
    "stick-push": "push the box with the stick",
    "sweep": "sweep the puck off the table",
    "sweep-into": "sweep the puck into the hole",
    "window-close": "close the window",
    "window-open": "open the window",
}


class MetaworldEnv(gym.Env):
    """One Meta-World task with a goal drawn by the seed.

    The benchmark's `MT1` chooses among fifty goals fixed at construction. Here a seed draws a goal from the task's whole range,
    so that evaluation's seeds are goals that were not recorded.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (39,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def __init__(self, name: str) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self.simulator: Any = ALL_V3_ENVIRONMENTS[f"{name}-v3"]()
        # As set_task does for a stored goal, but with the goal visible and drawn by the environment's own generator.
        self.simulator._partially_observable = False
        self.simulator._freeze_rand_vec = False
        self.simulator.seeded_rand_vec = True
        self.simulator._set_task_called = True
        self.simulator.__dict__.pop("sawyer_observation_space", None)  # cached with the goal hidden

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32[np.ndarray, "39"], dict[str, Any]]:
        """Draws a new goal and object position."""
        super().reset(seed=seed)
        # The goal comes from the simulator's generator, so it is seeded before its reset.
        self.simulator.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        observation, _ = self.simulator.reset()
        return observation.astype(np.float32), {}

    def step(
        self, action: Float32[np.ndarray, "4"]
    ) -> tuple[Float32[np.ndarray, "39"], SupportsFloat, bool, bool, dict[str, Any]]:
        """Moves the hand by `action`; terminates on success."""
        observation, reward, _, truncated, info = self.simulator.step(np.clip(action, -1.0, 1.0))
        # The simulator itself never terminates.
        success = bool(info["success"])
        return observation.astype(np.float32), float(reward), success, truncated, {"success": success}

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The table seen from a corner; the camera hangs upside down. See `generalist.envs.rendering`."""
        renderer = self.simulator.mujoco_renderer
        renderer.camera_id = self.simulator.model.camera("corner4").id
        return renderer.render("rgb_array")[::-1, ::-1]

    def close(self) -> None:
        """Frees the simulator."""
        self.simulator.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaworldTask(Task):
    """A Meta-World task with the scripted policy that comes with it."""

    def build(self) -> gym.Env:
        """See `Task.build`."""
        return MetaworldEnv(self.name.partition("/")[2])

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """Meta-World's own policy, a function of the observation."""
        from metaworld.policies import ENV_POLICY_MAP

        # Warned once per process about policies that exceed the bounds, to which actions are clipped here.
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", category=UserWarning)
        make_policy: Any = ENV_POLICY_MAP[self.name.partition("/")[2] + "-v3"]
        policy = make_policy()
        # In float64, for which the policies were written; rounding the observation first shows them what a learner sees.
        return lambda observation: np.clip(policy.get_action(observation.astype(np.float64)), -1, 1).astype(np.float32)


TASKS = tuple(
    MetaworldTask(
        name=f"metaworld/{name}",
        suite="metaworld",
        layout="metaworld",  # one for all: every task has these spaces
        instruction=instruction,
        max_steps=200,
        record_steps=200,
        episodes=24,
        seconds=0.1,
        noise=0.15,
        only_successes=True,
    )
    for name, instruction in _INSTRUCTIONS.items()
)
