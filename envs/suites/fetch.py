"""Fetch: a robot arm reaches, pushes and carries, from state (Plappert et al. 2018; Gymnasium-Robotics).

The observation is a Dict: `observation` (10 numbers without an object, 25 with one: gripper, object, object relative to the
gripper, fingers, rotation, velocities), `achieved_goal` (3) and `desired_goal` (3). The action moves the gripper (3 numbers)
and the fingers (1). Every episode has 50 steps, and succeeds if the goal is reached in the last one, as in the literature.

Dimension key: n numbers of a part of the observation.
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Float32

from generalist.envs.task import Policy, Task

Observation = Mapping[str, Float[np.ndarray, "_n"]]
Action = Float[np.ndarray, "4"]
Rule = Callable[[Observation], Action]
"""Observation → action, not yet clipped."""

_STEPS = 50
_GAIN = 10.0  # a full action moves the gripper by about 3 cm per step


def reach(seen: Observation) -> Action:
    """Moves straight to the goal."""
    return np.append(_GAIN * (seen["desired_goal"] - seen["achieved_goal"]), 0.0)


def pick_and_place(seen: Observation) -> Action:
    """Moves over the object, down around it, closes the fingers, and carries it."""
    # Object relative to the gripper, and the distance between the fingers. The phase follows from the observation alone, so
    # that a dropped object is picked up again.
    to_object, fingers = seen["observation"][6:9], seen["observation"][9:11].sum()
    across = np.linalg.norm(to_object[:2])
    if across >= 0.02 or abs(to_object[2]) >= 0.015:
        # 6 cm above until the gripper is over the object, so that it does not push it.
        above = np.array([0.0, 0.0, 0.06 if across > 0.01 else 0.0])
        return np.append(_GAIN * (to_object + above), 1.0)
    if fingers > 0.0505:  # they are 5 cm apart when they hold the cube
        return np.append(_GAIN * to_object, -1.0)
    return np.append(_GAIN * (seen["desired_goal"] - seen["achieved_goal"]), -1.0)


def push(seen: Observation) -> Action:
    """Moves up, to the side of the cube that faces away from the goal, down, and straight to the goal."""
    goal = (seen["desired_goal"] - seen["achieved_goal"])[:2]
    distance = np.linalg.norm(goal)
    # Well within the 5 cm that count as reached.
    if distance < 0.015:
        return np.zeros(4)
    # Positions relative to the cube, split along and across the way to the goal.
    way = goal / distance
    from_cube = -seen["observation"][6:9]
    along = from_cube[:2] @ way
    aside = from_cube[:2] - along * way
    height = from_cube[2]
    # Behind the cube and low enough to push; slower near the goal, and back to the line if the cube slips aside.
    if along < -0.03 and np.linalg.norm(aside) < 0.02 and height < 0.025:
        return np.array([*(min(1.0, 8 * distance) * way - 12 * aside), -6 * height, 0.0])
    start = -0.075 * way - from_cube[:2]  # to a point 7.5 cm behind the cube
    there = np.linalg.norm(start) < 0.02
    clear = height > 0.05 or (there and along < -0.05)  # a path above or behind the cube does not touch it
    return np.array([*(_GAIN * start * clear), _GAIN * ((0.0 if there else 0.07) - height), 0.0])


class FetchEnv(gym.Wrapper):
    """Observations in float32, and `success` in the info."""

    def __init__(self, id: str) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # notices about other environments, printed in every process
            import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
        super().__init__(gym.make(id, disable_env_checker=True).unwrapped)
        spaces: Any = self.env.observation_space
        self.observation_space = gym.spaces.Dict(
            {key: gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32) for key, space in spaces.items()}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Float32[np.ndarray, "_n"]], dict[str, Any]]:
        """Draws a new goal and a new position of the object."""
        observation, _ = self.env.reset(seed=seed, options=options)
        return _single(observation), {}

    def step(
        self, action: Float32[np.ndarray, "4"]
    ) -> tuple[dict[str, Float32[np.ndarray, "_n"]], SupportsFloat, bool, bool, dict[str, Any]]:
        """Moves the gripper by `action`; the reward is -1 away from the goal and 0 at it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        success = bool(info["is_success"])
        return _single(observation), float(reward), bool(terminated), bool(truncated), {"success": success}


def _single(observation: Observation) -> dict[str, Float32[np.ndarray, "_n"]]:
    """The observation in float32."""
    return {key: value.astype(np.float32) for key, value in observation.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchTask(Task):
    """A task of the Fetch robot with an expert that is a function of the observation."""

    id: str
    """Gymnasium-Robotics' id."""
    rule: Rule
    """The expert."""

    def build(self) -> gym.Env:
        """See `Task.build`."""
        return FetchEnv(self.id)

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """The rule, clipped to the action's bounds."""
        return lambda observation: np.clip(self.rule(observation), -1, 1).astype(np.float32)

    def score(self, rewards: Sequence[float], infos: Sequence[Mapping[str, Any]]) -> float:
        """1 if the goal is reached in the last step: passing by is not enough."""
        return float(infos[-1]["success"])


TASKS = tuple(
    FetchTask(
        name=f"fetch/{name}",
        suite="fetch",
        layout=f"fetch/{name}",
        instruction=instruction,
        max_steps=_STEPS,
        record_steps=_STEPS,
        episodes=episodes,
        seconds=0.06,
        noise=0.2,
        only_successes=True,
        id=id,
        rule=rule,
    )
    for name, id, rule, episodes, instruction in (
        ("reach", "FetchReach-v4", reach, 100, "move the gripper to the goal"),
        ("push", "FetchPush-v4", push, 400, "push the cube to the goal"),
        ("pick-and-place", "FetchPickAndPlace-v4", pick_and_place, 400, "pick the cube up and hold it at the goal"),
    )
)
