"""Atari 2600 games from pixels, with experts that read the machine's memory.

The observation is the screen as 84×84 RGB, the maximum of the last two raw frames (many games draw an object in every
second frame only). A decision lasts 4 raw frames; actions are never repeated at random. The actions are the game's own minimal
set. The emulator is deterministic, so a seed draws up to 30 idle and up to 10 random decisions before an episode.

Dimension key: H height, W width of the full screen.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from generalist.envs.suites import atari_experts
from generalist.envs.suites.atari_planner import Plan, Planner
from generalist.envs.task import Policy, Task

SIDE = 84
FRAMESKIP = 4
_IDLE, _RANDOM = 30, 10  # maximum decisions before an episode: the no-op starts of Mnih et al. 2015, and random ones
_BURST = 6  # maximum decisions per burst of noise
_PLANNED_STEPS, _PLANNED_EPISODES = 800, 18  # a planned decision costs about fifty times a scripted one
_WAYS = ("RIGHT", "LEFT", "UP", "DOWN")
_SHOTS = ("FIRE", "RIGHTFIRE", "LEFTFIRE")


class AtariEnv(gym.Env):
    """One game. Experts read `memory` and name actions with `press`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60 / FRAMESKIP}
    observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)

    def __init__(self, game: str, *, sticky: float = 0.0) -> None:
        """A game by its ROM's name; `sticky` is the probability that a raw frame repeats the previous frame's action.

        Raises:
            ValueError: the ROM is unknown, or `sticky` is not in [0, 1).
        """
        import ale_py

        if not 0 <= sticky < 1:
            raise ValueError(f"sticky must be at least 0 and less than 1, got {sticky}")

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._machine = ale_py.ALEInterface()
        self._machine.setInt("random_seed", 0)
        # The emulator's own repetition is off: `sticky` repeats per raw frame, from the episode's seed.
        self._machine.setFloat("repeat_action_probability", 0.0)
        rom = ale_py.roms.get_rom_path(game)
        if rom is None:
            raise ValueError(
                f"ale-py has no ROM of {game!r}: known are those that `ale_py.roms.get_all_rom_ids()` lists"
            )
        self._machine.loadROM(rom)
        self._machine.reset_game()
        # Every episode begins from this state, so that nothing of earlier ones remains, the emulator's random numbers included.
        self._start = self._machine.cloneState(include_rng=True)
        self._actions = self._machine.getMinimalActionSet()
        self._index = {action.name: index for index, action in enumerate(self._actions)}
        self.action_space = gym.spaces.Discrete(len(self._actions))
        height, width = self._machine.getScreenDims()
        # The last two raw frames, into which the emulator writes: (2, H, W, 3).
        self._frames = np.zeros((2, height, width, 3), np.uint8)
        self._sticky, self._held = sticky, self._actions[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "84 84 3"], dict[str, Any]]:
        """Starts the game anew, and plays a random number of idle and random decisions."""
        super().reset(seed=seed)
        self._machine.restoreState(self._start)
        # The screen and the held action are not part of the emulator's state.
        self._frames[:] = 0
        self._held = self._actions[0]
        for _ in range(self.np_random.integers(_IDLE + 1)):
            self._decide(0)
        # At least one: in many games idling changes nothing, and all episodes would begin alike.
        for _ in range(self.np_random.integers(1, _RANDOM + 1)):
            self._decide(int(self.np_random.integers(len(self._actions))))
        return self._observation(), {}

    def step(self, action: int) -> tuple[UInt8[np.ndarray, "84 84 3"], SupportsFloat, bool, bool, dict[str, Any]]:
        """Holds one of the game's actions for four raw frames; the reward is the gain in score."""
        reward = self._decide(int(action))
        return self._observation(), reward, self.over, False, {}

    def advance(self, action: int) -> float:
        """Holds an action for four raw frames without updating the screen, for planning. Returns the gain in score."""
        return sum(self._machine.act(self._actions[action]) for _ in range(FRAMESKIP))

    def snapshot(self) -> Any:
        """The machine's state, for `restore`. The observed screen is not part of it, and `advance` does not change it."""
        return self._machine.cloneState(include_rng=True)

    def restore(self, state: Any) -> None:
        """Restores a state from `snapshot`."""
        self._machine.restoreState(state)

    @property
    def lives(self) -> int:
        """Number of lives left."""
        return self._machine.lives()

    @property
    def over(self) -> bool:
        """Whether the game is over."""
        return self._machine.game_over()

    @property
    def names(self) -> list[str]:
        """Names of the actions, in order of their indices."""
        return list(self._index)

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The screen at full resolution: 210 × 160 in most games."""
        return np.maximum(self._frames[0], self._frames[1])

    @property
    def screen(self) -> UInt8[np.ndarray, "H W 3"]:
        """The last raw frame alone, whose things are where `memory` says; games that draw some things in every second frame lack
        them here."""
        return self._frames[1].copy()

    @property
    def memory(self) -> list[int]:
        """The machine's 128 bytes of RAM."""
        return self._machine.getRAM().tolist()

    def press(self, name: str) -> int:
        """The index of an action by name. If the game lacks it, the action without the button or, failing that, NOOP."""
        # "UPFIRE" and "UP" are different actions; some games have no button.
        for known in (name, name.removesuffix("FIRE")):
            if known in self._index:
                return self._index[known]
        return self._index["NOOP"]

    def _decide(self, action: int) -> float:
        """Plays four raw frames and stores the screens of the last two."""
        reward = 0.0
        # Only the last two screens are read: reading costs as much as emulating.
        for frame in range(FRAMESKIP):
            if self._sticky == 0 or self.np_random.random() >= self._sticky:
                self._held = self._actions[action]
            reward += self._machine.act(self._held)
            if frame >= FRAMESKIP - 2:
                self._machine.getScreenRGB(self._frames[frame - FRAMESKIP + 2])
        return reward

    def _observation(self) -> UInt8[np.ndarray, "84 84 3"]:
        """The maximum of the last two frames, averaged down."""
        # The 2600 draws few objects per frame, so games show some in every second one (Mnih et al. 2015).
        # BOX averages: a ball of one pixel stays visible, which sampling would lose.
        screen = Image.fromarray(np.maximum(self._frames[0], self._frames[1]))
        return np.asarray(screen.resize((SIDE, SIDE), Image.Resampling.BOX))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariTask(Task):
    """A game with its expert."""

    rule: Callable[[], atari_experts.Rule] | None = None
    """Makes the scripted expert of one episode; None: the game is planned."""
    planner: Planner = Planner()
    """Settings of the planner, the expert of games without a scripted one."""

    @property
    def game(self) -> str:
        """The ROM's name."""
        return self.name.partition("/")[2]

    def build(self) -> gym.Env:
        """See `Task.build`."""
        return AtariEnv(self.game)

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """The game's expert; a scripted one reads from memory what the screen shows."""
        game: AtariEnv = env.unwrapped
        if self.rule is None:
            plan = Plan(self.planner, game)
            return lambda observation: plan()
        rule = self.rule()
        return lambda observation: game.press(rule(game.memory))

    def disturbance(self, space: gym.Space, rng: np.random.Generator) -> Policy:
        """Bursts: with probability `noise` a decision starts 1 to 6 decisions that hold one random action.

        Independent random actions cancel out: the paddle trembles around the expert's position. A held action carries it away, as
        an imitator's repeated mistake does, and the undisturbed stretch that follows shows the recovery. Bursts are far enough
        apart for that, and for lives to last.
        """
        left = held = 0

        def executed(action: int) -> int:
            nonlocal left, held
            # Within a burst nothing is drawn: bursts do not overlap.
            if left == 0 and rng.random() < self.noise:
                left, held = int(rng.integers(1, _BURST + 1)), int(rng.integers(space.n))
            if left == 0:
                return action
            left -= 1
            return held

        return executed


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Game:
    """Settings that differ between games."""

    instruction: str
    human: float | None = (
        None  # Mnih et al. 2015, as in the 57-game tables of DQN Zoo; None for a game that is not in them
    )
    episodes: int = 36  # about 70,000 decisions in total: with 12,000, six times fewer, games were memorised
    planner: Planner = Planner()
    revision: int = 0


_GAMES: Mapping[str, _Game] = {
    "pong": _Game(instruction="win at table tennis", human=14.6),
    "breakout": _Game(instruction="break the bricks with the ball", human=30.5, episodes=48),
    "freeway": _Game(instruction="cross the road with the chicken", human=29.6),
    "boxing": _Game(instruction="hit the other boxer", human=12.1, episodes=42, revision=1),
    "skiing": _Game(instruction="ski down between the flags", human=-4336.9, episodes=120),
    "asterix": _Game(instruction="collect the things and avoid the lyres", human=8503.3),
    "gopher": _Game(instruction="keep the gopher from the carrots", human=2412.5),
    "tennis": _Game(instruction="return the ball on the tennis court", human=-8.3),
    "atlantis": _Game(instruction="defend the city under the sea", human=29028.1),
    "up_n_down": _Game(instruction="drive on and jump on the other cars", human=11693.2, episodes=42),
    "kaboom": _Game(instruction="catch the bombs in the buckets", episodes=48),
    "carnival": _Game(instruction="shoot everything in the shooting gallery", episodes=54),
    "bowling": _Game(instruction="knock down all the pins", human=160.7),
    "assault": _Game(instruction="shoot the ships that the mother ship sends", human=742.0, episodes=108),
    "name_this_game": _Game(instruction="guard the treasure from shark and octopus", human=8049.0),
    "ms_pacman": _Game(
        instruction="eat the dots and flee the ghosts",
        episodes=_PLANNED_EPISODES,
        human=6951.6,
        planner=Planner(keep=3, actions=_WAYS, life=500),
    ),
    "qbert": _Game(
        instruction="hop on all the cubes of the pyramid",
        episodes=_PLANNED_EPISODES,
        human=13455.0,
        planner=Planner(horizon=20, holds=(8,), keep=8, actions=_WAYS, seconds=_WAYS, life=500),
    ),
    "space_invaders": _Game(
        instruction="shoot the rows of invaders",
        episodes=_PLANNED_EPISODES,
        human=1668.7,
        planner=Planner(horizon=20, holds=(2, 5, 10), keep=5, actions=_SHOTS, seconds=("FIRE",), life=200),
    ),
    "phoenix": _Game(
        instruction="shoot the birds and raise the shield in time",
        episodes=_PLANNED_EPISODES,
        human=7242.6,
        planner=Planner(horizon=16, holds=(3, 6), keep=4, actions=(*_SHOTS, "DOWN"), seconds=("FIRE",), life=200),
    ),
}

TASKS = tuple(
    AtariTask(
        name=f"atari/{name}",
        suite="atari",
        layout=f"atari/{name}",
        instruction=game.instruction,
        max_steps=2100,
        record_steps=2100 if name in atari_experts.RULES else _PLANNED_STEPS,
        episodes=game.episodes,
        seconds=(120.0 if name in atari_experts.RULES else 300.0) / game.episodes,
        revision=game.revision,
        noise=0.04,
        noisy_share=0.75,  # without noise, most episodes of a deterministic game would be identical
        human_score=game.human,
        rule=atari_experts.RULES.get(name),
        planner=game.planner,
    )
    for name, game in _GAMES.items()
)
