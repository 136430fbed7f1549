"""BabyAI: instructions in a grid world seen through a 7×7 window (Chevalier-Boisvert et al. 2019).

The observation is MultiDiscrete of 148 numbers: for each of the 49 cells, row by row, the object's type (11), colour (6)
and state (3), then the agent's direction (4). The agent stands at the bottom centre of the window.

Dimension key: T steps, H height, W width of a picture.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from jaxtyping import Shaped, UInt8

from generalist.envs.task import GaveUp, Policy, Task
from generalist.system.time_limit import OutOfTime
from generalist.tokenizers.locations import Box, box_text

CELLS = 7 * 7
_CELL = (11, 6, 3)  # types, colours, states
_COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
_COLOURED = (4, 5, 6, 7)  # doors, keys, balls and boxes; the colour of other objects has no meaning
AGENT_PLACES = 1_000  # attempts; if there is a place, a few are enough
_TYPES = dict(zip(("door", "key", "ball", "box"), _COLOURED, strict=True))
_GO_TO = re.compile(rf"go to the (?:({'|'.join(_COLOURS)}) )?({'|'.join(_TYPES)})")
_SIDE = 7  # cells per side of the window
# Levels of one room, with one thing to go to, which is mostly in view when an episode begins.
_POINTED = ("GoToLocal", "GoToObj-", "GoToObjS", "GoToRed", "GoToDoor")
_FORWARD = 2  # left, right and forward are actions 0, 1 and 2


class BabyAIEnv(gym.Env):
    """One BabyAI level; every seed is a new grid and a new mission."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}
    observation_space = gym.spaces.MultiDiscrete(np.array(_CELL * CELLS + (4,)), dtype=np.uint8)
    action_space = gym.spaces.Discrete(7)

    def __init__(self, level: str, max_steps: int) -> None:
        import minigrid  # noqa: F401  (registers the levels)

        self.grid: Any = gym.make(f"BabyAI-{level}", max_steps=max_steps, disable_env_checker=True).unwrapped
        self.grid.place_obj = self._place
        self._placed = 0  # attempts to place the agent since another object was placed
        self.last_action: int | None = None

    def _place(self, thing: Any, *arguments: Any, **settings: Any) -> tuple[int, int]:
        """minigrid's own function. For the agent (no `thing`) it looks for a place that faces no object, without end if there is
        none. After `AGENT_PLACES` attempts in a row a RecursionError makes minigrid draw the level anew, as in other dead
        ends."""
        self._placed = self._placed + 1 if thing is None else 0
        if self._placed > AGENT_PLACES:
            self._placed = 0
            raise RecursionError("no place for the agent")
        return type(self.grid).place_obj(self.grid, thing, *arguments, **settings)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "148"], dict[str, Any]]:
        """A new grid; the info's `instruction` is the mission."""
        super().reset(seed=seed)
        self.last_action, self._placed = None, 0
        with contextlib.redirect_stdout(io.StringIO()):  # minigrid prints every rejected draw of a mission
            observation, _ = self.grid.reset(seed=seed)
        return _flat(observation), {"instruction": observation["mission"]}

    def step(self, action: int) -> tuple[UInt8[np.ndarray, "148"], SupportsFloat, bool, bool, dict[str, Any]]:
        """Executes one of left, right, forward, pick up, drop, toggle, done."""
        self.last_action = int(action)
        observation, reward, terminated, truncated, _ = self.grid.step(self.last_action)
        # minigrid's reward is positive only when the mission is fulfilled.
        return _flat(observation), float(reward), terminated, truncated, {"success": reward > 0}

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The whole grid from above, with the agent's view brighter: 16 pixels per cell."""
        return self.grid.get_frame(highlight=True, tile_size=16)


def _flat(observation: dict[str, Any]) -> UInt8[np.ndarray, "148"]:
    """Window and direction as one array."""
    # minigrid's axes are (column, row, channel); transposed, cells are in reading order.
    return np.append(observation["image"].transpose(1, 0, 2).reshape(-1), np.uint8(observation["direction"]))


@dataclasses.dataclass(frozen=True)
class Recoloured:
    """The same grid with permuted colours, in which the bot plays the same actions."""

    order: tuple[int, ...]
    """New index of each of the six colours."""

    def instruction(self, instruction: str) -> str:
        """See `Recast`."""
        # Replaced in one pass: one after the other, a colour could be exchanged twice.
        new = {name: _COLOURS[other] for name, other in zip(_COLOURS, self.order, strict=True)}
        return re.sub(rf"\b({'|'.join(_COLOURS)})\b", lambda found: new[found[0]], instruction)

    def observations(
        self, observations: Mapping[str, Shaped[np.ndarray, "T ..."]]
    ) -> dict[str, Shaped[np.ndarray, "T ..."]]:
        """See `Recast`."""

        def recoloured(steps: Shaped[np.ndarray, "T 148"]) -> Shaped[np.ndarray, "T 148"]:
            steps = steps.copy()  # the episode stays in the cache as it was recorded
            cells = steps[:, :-1].reshape(len(steps), CELLS, len(_CELL))  # (T, 49, 3)
            # Walls and floors have a colour in the encoding too, which the mission cannot name.
            coloured = np.isin(cells[..., 0], _COLOURED)  # (T, 49)
            cells[coloured, 1] = np.array(self.order, steps.dtype)[cells[coloured, 1]]
            # Written back, since the reshaped slice may be a copy.
            steps[:, :-1] = cells.reshape(len(steps), -1)
            return steps

        return {key: recoloured(steps) for key, steps in observations.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BabyAITask(Task):
    """A level with BabyAI's bot, which plans from what it has seen so far."""

    level: str
    """The level's id with its version, without the prefix."""

    def build(self) -> gym.Env:
        """See `Task.build`."""
        return BabyAIEnv(self.level, self.max_steps)

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """The bot; it gets the action that was actually executed, so that it replans after action noise.

        On some grids it replans forever: callers set a time limit.
        """
        from minigrid.utils.baby_ai_bot import BabyAIBot

        world: BabyAIEnv = env.unwrapped
        bot = BabyAIBot(world.grid)

        def act(observation: UInt8[np.ndarray, "148"]) -> int:
            try:
                return int(bot.replan(world.last_action))
            except OutOfTime:
                raise
            # The bot fails assertions, and raises when it looks for an object that it has not seen.
            except Exception as error:
                raise GaveUp("BabyAI's bot has no plan") from error

        return act

    def recast(self, rng: np.random.Generator) -> Recoloured:
        """See `Task.recast`."""
        return Recoloured(tuple(rng.permutation(len(_COLOURS)).tolist()))

    @property
    def can_be_pointed(self) -> bool:
        """See `Task.can_be_pointed`."""
        return self.level.startswith(_POINTED)

    def pointed(self, instruction: str, observation: Any) -> str | None:
        """See `Task.pointed`: `go to <loc...>`, the box of a cell in the picture of the agent's window."""
        match = _GO_TO.fullmatch(instruction)
        if not self.can_be_pointed or match is None:
            return None
        colour, thing = match.groups()
        cells = np.asarray(observation)[:-1].reshape(_SIDE, _SIDE, len(_CELL))  # rows, columns
        fits = (cells[..., 0] == _TYPES[thing]) & (cells[..., 1] == _COLOURS.index(colour) if colour else True)
        # `the` says that the level has one, so that what is in view is what is meant.
        if fits.sum() != 1:
            return None
        row, column = np.argwhere(fits)[0].tolist()
        return f"go to {box_text(Box.of_pixels(row, column, row + 1, column + 1, height=_SIDE, width=_SIDE))}"

    def disturb(self, action: Any, space: gym.Space, rng: np.random.Generator) -> Any:
        """A random turn or step forward: other actions could make the mission impossible (a wrong door, an opened box)."""
        return int(rng.integers(_FORWARD + 1)) if rng.random() < self.noise else action


# (level, maximum decisions, episodes, CPU seconds per episode), sorted by cost. These are all levels that the bot solves in at
# least 90% of the grids, as `benchmarks/babyai_levels.py` measures, with twice the steps that 95% of its episodes take. Left
# out: KeyCorridorS6R3, which is KeyCorridor under another name, the variants for debugging, and GoToObjS4, which random moves
# solve too. Short episodes are cheap, so there are more of them; a level that differs from another only in size gets fewer.
_LEVELS = (
    ("GoToLocalS5N2-v0", 32, 300, 0.002),
    ("GoToObjS6-v1", 64, 300, 0.003),
    ("OpenRedDoor-v0", 64, 300, 0.003),
    ("GoToLocalS6N2-v0", 64, 300, 0.004),
    ("GoToLocalS6N3-v0", 64, 300, 0.004),
    ("GoToLocalS6N4-v0", 64, 300, 0.004),
    ("GoToLocalS7N4-v0", 64, 300, 0.004),
    ("GoToObj-v0", 64, 800, 0.004),
    ("GoToLocal-v0", 64, 1000, 0.004),
    ("GoToLocalS7N5-v0", 64, 300, 0.004),
    ("GoToLocalS8N3-v0", 64, 300, 0.004),
    ("GoToLocalS8N4-v0", 64, 300, 0.004),
    ("GoToLocalS8N5-v0", 64, 300, 0.004),
    ("GoToLocalS8N7-v0", 64, 300, 0.004),
    ("PickupDist-v0", 64, 1000, 0.004),
    ("GoToLocalS8N6-v0", 64, 300, 0.005),
    ("GoToRedBlueBall-v0", 64, 800, 0.005),
    ("GoToDoor-v0", 64, 800, 0.005),
    ("PutNextLocalS5N3-v0", 64, 800, 0.005),
    ("PutNextS4N1-v0", 64, 800, 0.005),
    ("ActionObjDoor-v0", 64, 1000, 0.005),
    ("OneRoomS8-v0", 64, 300, 0.005),
    ("GoToRedBallGrey-v0", 64, 300, 0.006),
    ("GoToRedBall-v0", 64, 800, 0.006),
    ("GoToRedBallNoDists-v0", 64, 300, 0.006),
    ("GoToLocalS8N2-v0", 64, 300, 0.006),
    ("OpenDoor-v0", 64, 800, 0.006),
    ("OpenDoorColor-v0", 64, 300, 0.006),
    ("OpenDoorLoc-v0", 64, 800, 0.006),
    ("PickupLoc-v0", 64, 1200, 0.006),
    ("PutNextLocalS6N4-v0", 64, 800, 0.006),
    ("GoToObjMazeS4R2-v0", 64, 800, 0.006),
    ("OpenDoorsOrderN2-v0", 64, 800, 0.007),
    ("PutNextS5N2-v0", 64, 800, 0.007),
    ("PutNextS5N1-v0", 64, 800, 0.007),
    ("OpenDoorsOrderN4-v0", 64, 800, 0.008),
    ("OpenRedBlueDoors-v0", 64, 300, 0.008),
    ("KeyCorridorS3R1-v0", 64, 800, 0.008),
    ("GoToObjDoor-v0", 64, 800, 0.009),
    ("OpenTwoDoors-v0", 64, 800, 0.009),
    ("PutNextLocal-v0", 64, 1500, 0.009),
    ("OneRoomS12-v0", 64, 800, 0.009),
    ("PutNextS6N3-v0", 64, 500, 0.009),
    ("GoToObjMazeS4-v0", 128, 500, 0.01),
    ("GoToSeqS5R2-v0", 96, 500, 0.01),
    ("UnlockLocal-v0", 64, 500, 0.01),
    ("UnlockPickup-v0", 64, 500, 0.012),
    ("MoveTwoAcrossS5N2-v0", 64, 500, 0.012),
    ("PutNextS7N4-v0", 64, 500, 0.013),
    ("UnlockLocalDist-v0", 64, 500, 0.013),
    ("OneRoomS16-v0", 96, 500, 0.015),
    ("PickupAbove-v0", 128, 500, 0.016),
    ("GoToObjMazeS5-v0", 160, 500, 0.017),
    ("UnlockPickupDist-v0", 96, 500, 0.017),
    ("FindObjS5-v0", 160, 500, 0.017),
    ("KeyCorridorS3R2-v0", 128, 500, 0.019),
    ("BlockedUnlockPickup-v0", 96, 500, 0.021),
    ("SynthS5R2-v0", 256, 500, 0.021),
    ("MiniBossLevel-v0", 192, 400, 0.022),
    ("FindObjS6-v0", 160, 400, 0.024),
    ("GoToObjMazeS6-v0", 192, 400, 0.027),
    ("OneRoomS20-v0", 128, 400, 0.028),
    ("Open-v0", 224, 400, 0.028),
    ("KeyCorridorS3R3-v0", 160, 400, 0.031),
    ("MoveTwoAcrossS8N9-v0", 128, 400, 0.032),
    ("SynthLoc-v0", 288, 400, 0.037),
    ("KeyCorridorS4R3-v0", 160, 400, 0.038),
    ("FindObjS7-v0", 288, 400, 0.042),
    ("GoToObjMazeS7-v0", 288, 400, 0.046),
    ("UnblockPickup-v0", 320, 400, 0.048),
    ("GoToOpen-v0", 288, 400, 0.049),
    ("Synth-v0", 288, 400, 0.049),
    ("GoTo-v0", 320, 400, 0.051),
    ("Pickup-v0", 352, 400, 0.052),
    ("KeyCorridorS5R3-v0", 192, 400, 0.053),
    ("GoToObjMazeOpen-v0", 288, 400, 0.061),
    ("GoToObjMaze-v0", 352, 400, 0.065),
    ("SynthSeq-v0", 384, 300, 0.067),
    ("BossLevelNoUnlock-v0", 352, 300, 0.068),
    ("BossLevel-v0", 448, 300, 0.074),
    ("GoToSeq-v0", 352, 300, 0.089),
    ("KeyCorridor-v0", 288, 300, 0.091),
    ("Unlock-v0", 448, 300, 0.115),
    ("GoToImpUnlock-v0", 416, 150, 0.24),
)

TASKS = tuple(
    BabyAITask(
        name=f"babyai/{level.partition('-')[0]}",
        suite="babyai",
        layout="babyai",  # one for all: the levels differ in their missions, not in their spaces
        instruction="follow the instruction",
        max_steps=steps,
        record_steps=steps,
        episodes=episodes,
        seconds=seconds,
        noise=0.1,
        time_limit=1.0,
        only_successes=True,
        level=level,
    )
    for level, steps, episodes, seconds in _LEVELS
)
