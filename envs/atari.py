"""Atari 2600 games from pixels, with experts that read the machine's memory.

The observation is the screen as 84×84 RGB, the maximum of the last two raw frames (many games draw an object in every
second frame only). A decision holds for 4 raw frames; no action is ever repeated by chance. The actions are the game's own
minimal set. The emulator is deterministic: a seed draws up to 30 idle decisions and up to 10 random ones before an episode.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from PIL import Image

from generalist.envs import atari_experts
from generalist.envs.task import Policy, Task

SIDE = 84
FRAMESKIP = 4
_IDLE, _RANDOM = 30, 10  # most decisions before an episode: the no-op starts of Mnih et al. 2015, and random ones


class AtariEnv(gym.Env):
    """One game. `memory` is what experts read, `press` how they name an action."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60 / FRAMESKIP}
    observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)

    def __init__(self, game: str) -> None:
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._machine = ale_py.ALEInterface()
        self._machine.setInt("random_seed", 0)
        self._machine.setFloat("repeat_action_probability", 0.0)
        rom = ale_py.roms.get_rom_path(game)
        if rom is None:
            raise ValueError(
                f"ale-py has no ROM of {game!r}: it ships those that `ale_py.roms.get_all_rom_ids()` lists"
            )
        self._machine.loadROM(rom)
        self._machine.reset_game()
        self._start = self._machine.cloneState(include_rng=True)
        self._actions = self._machine.getMinimalActionSet()
        self._index = {action.name: index for index, action in enumerate(self._actions)}
        self.action_space = gym.spaces.Discrete(len(self._actions))
        height, width = self._machine.getScreenDims()
        self._frames = np.zeros((2, height, width, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts the game anew; observation (84, 84, 3) uint8."""
        super().reset(seed=seed)
        self._machine.restoreState(self._start)
        self._frames[:] = 0
        for _ in range(self.np_random.integers(_IDLE + 1)):
            self._decide(0)
        for _ in range(self.np_random.integers(1, _RANDOM + 1)):
            self._decide(int(self.np_random.integers(len(self._actions))))
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Holds one of the game's actions for four frames; the reward is the score gained."""
        reward = self._decide(int(action))
        return self._observation(), reward, self._machine.game_over(), False, {}

    def render(self) -> np.ndarray:
        """The screen as it is on a television, (210, 160, 3) uint8 in most games."""
        return np.maximum(self._frames[0], self._frames[1])

    @property
    def memory(self) -> list[int]:
        """The machine's 128 bytes."""
        return self._machine.getRAM().tolist()

    def press(self, name: str) -> int:
        """The index of an action by name; what a game's set lacks is done without the button, or not at all."""
        for known in (name, name.removesuffix("FIRE")):
            if known in self._index:
                return self._index[known]
        return self._index["NOOP"]

    def _decide(self, action: int) -> float:
        """Plays four raw frames and keeps the last two."""
        reward = 0.0
        for frame in range(FRAMESKIP):
            reward += self._machine.act(self._actions[action])
            if frame >= FRAMESKIP - 2:
                self._machine.getScreenRGB(self._frames[frame - FRAMESKIP + 2])
        return reward

    def _observation(self) -> np.ndarray:
        """The last two frames' maximum, averaged down to 84×84."""
        screen = Image.fromarray(np.maximum(self._frames[0], self._frames[1]))
        return np.asarray(screen.resize((SIDE, SIDE), Image.Resampling.BOX))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariTask(Task):
    """A game with a hand-written expert."""

    rule: Callable[[], atari_experts.Rule]
    """Makes the expert of one episode."""

    def build(self) -> gym.Env:
        """See `Task.build`."""
        return AtariEnv(self.name.partition("/")[2])

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """The game's expert; it reads the memory, where things stand that the screen shows."""
        game: AtariEnv = env.unwrapped
        rule = self.rule()
        return lambda observation: game.press(rule(game.memory))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Game:
    """What differs from game to game."""

    instruction: str
    human: float  # Mnih et al. 2015, as in the 57-game tables of DQN Zoo
    episodes: int  # about 12,000 decisions together


_GAMES: Mapping[str, _Game] = {
    "pong": _Game(instruction="win at table tennis", human=14.6, episodes=6),
    "breakout": _Game(instruction="break the bricks with the ball", human=30.5, episodes=8),
    "freeway": _Game(instruction="cross the road with the chicken", human=29.6, episodes=6),
    "boxing": _Game(instruction="hit the other boxer", human=12.1, episodes=7),
    "skiing": _Game(instruction="ski down between the flags", human=-4336.9, episodes=20),
    "asterix": _Game(instruction="collect the things and avoid the lyres", human=8503.3, episodes=6),
    "gopher": _Game(instruction="keep the gopher from the carrots", human=2412.5, episodes=6),
}

TASKS = tuple(
    AtariTask(
        name=f"atari/{name}",
        suite="atari",
        layout=f"atari/{name}",
        instruction=game.instruction,
        max_steps=2100,
        record_steps=2100,
        episodes=game.episodes,
        seconds=20.0 / game.episodes,
        noise=0.1,
        noisy_share=0.75,  # without noise, most of a deterministic game's episodes would be one and the same
        human_score=game.human,
        rule=atari_experts.RULES[name],
    )
    for name, game in _GAMES.items()
)
