"""A task: an environment with its instruction, its expert and its reference scores; and the list of all tasks.

A suite is one module of this folder. Its tasks are cheap to list: packages are imported by `make` alone.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from generalist.envs.border import Border

# Recording draws its seeds from 0 upwards and evaluation from here upwards: the two never meet.
EVALUATION_SEED = 1_000_000

Policy = Callable[[Any], Any]
"""Observation → action; lives for one episode."""


class Recast(Protocol):
    """An equal world: what an agent is told and sees there, where the same actions are right."""

    def instruction(self, instruction: str) -> str:
        """What is told there."""

    def observations(self, observations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is seen there at T steps, by key: (T, ...)."""


class GaveUp(Exception):
    """An expert has no answer in this episode."""


class MissingExtra(ImportError):
    """A package of the environments is not installed."""

    def __init__(self, suite: str, package: str | None) -> None:
        extra = "atari" if suite == "atari" else "envs"  # the emulator's licence is not for everybody
        remedy = f"pip install 'generalist[{extra}]'; train.py does without by --data.{suite}.weight 0"
        super().__init__(f"{suite} needs the package {package}: {remedy}", name=package)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """An environment, what an agent is told to do in it, and how well it can be done.

    Each suite says how to `make` the environment and what its `expert` does. `reset(seed=s)` determines an episode
    entirely, whatever was played in the environment before.
    """

    name: str
    """Suite and task, such as `metaworld/door-open`."""
    suite: str
    """The module the task belongs to."""
    layout: str
    """Tasks of one layout have equal observation and action spaces, and share one tokenization."""
    instruction: str
    """What the agent is told; an episode's own instruction stands in `info["instruction"]` of `reset`."""
    max_steps: int
    """Decisions after which an episode is cut off, in evaluation and in the reference scores."""
    record_steps: int
    """Decisions after which a recorded episode is cut off: balancing on for minutes teaches nothing new."""
    episodes: int
    """Expert episodes recorded unless another number is asked for."""
    seconds: float
    """Rough processor time of one recorded episode; by it the work is divided and the time left estimated."""
    noise: float
    """Strength of the action noise in the noisy ones among the recorded episodes (see `disturb`)."""
    noisy_share: float = 0.5
    """Share of the recorded episodes with action noise."""
    revision: int = 0
    """Raised when the expert plays otherwise than before: what the one before recorded is recorded again."""
    time_limit: float | None = None
    """Processor seconds after which an expert's episode is given up, where an expert may never answer."""
    only_successes: bool = False
    """The score is success, 0 or 1, and a failed episode is not recorded; otherwise the score is the return."""
    random_score: float = float("nan")
    """Mean score of uniformly random actions (`benchmarks/reference_scores.py`)."""
    expert_score: float = float("nan")
    """Mean score of the expert, by the same measure."""
    scored_episodes: int = 0
    """Episodes that each of the two is the mean of."""
    human_score: float | None = None
    """Score of a human tester over a whole game, where the literature has one."""

    @abc.abstractmethod
    def build(self) -> gym.Env:
        """Imports the suite's package and constructs the environment."""

    @abc.abstractmethod
    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """The scripted expert for the episode that `env` has just been reset to.

        Args:
            env: what `make` returned; an expert may read its state.
            rng: for experts that draw.

        Raises:
            GaveUp: the policy, when it has no answer.
        """

    def make(self) -> gym.Env:
        """The environment; episodes end by themselves after `max_steps`.

        Raises:
            MissingExtra: the suite's package is not installed.
        """
        try:
            env = self.build()
        except ImportError as error:
            raise MissingExtra(self.suite, error.name) from error
        return gym.wrappers.TimeLimit(Instructed(Border(env, self.name), self.instruction), self.max_steps)

    def recast(self, rng: np.random.Generator) -> Recast:
        """An equal world, drawn at random, for tasks that have some.

        Raises:
            NotImplementedError: none is known of this one.
        """
        raise NotImplementedError(f"no equal worlds of {self.name} are known")

    def score(self, rewards: Sequence[float], infos: Sequence[Mapping[str, Any]]) -> float:
        """The score of a finished episode.

        Args:
            rewards: of every step.
            infos: of every step.
        """
        if self.only_successes:
            return float(any(info.get("success", False) for info in infos))
        return float(np.sum(rewards, dtype=np.float64))

    def normalized(self, score: float) -> float:
        """Percent of the way from random to expert; unbounded on both sides."""
        return 100.0 * (score - self.random_score) / (self.expert_score - self.random_score)

    def disturb(self, action: Any, space: gym.Space, rng: np.random.Generator) -> Any:
        """The expert's action with noise: what is executed in some of the recorded episodes, for coverage.

        A bounded Box gets normal noise of `noise` half-ranges; a Discrete is replaced at random with probability `noise`.
        """
        if isinstance(space, gym.spaces.Box):
            half = (space.high - space.low) / 2
            noisy = action + half * self.noise * rng.standard_normal(space.shape)
            return np.clip(noisy, space.low, space.high).astype(space.dtype)
        assert isinstance(space, gym.spaces.Discrete), f"{self.name}: no action noise for {space}"
        return int(rng.integers(space.n)) if rng.random() < self.noise else action

    def disturbance(self, space: gym.Space, rng: np.random.Generator) -> Policy:
        """The noise of one episode: a function from the expert's action to the one that is executed; by default `disturb`."""
        return lambda action: self.disturb(action, space, rng)


def stream(seed: int, purpose: str) -> np.random.Generator:
    """An episode's random numbers for one purpose. The environment draws from the stream of the seed itself, so an agent or a
    disturbance that drew from that one too would know what is about to be drawn.

    Args:
        seed: of the episode.
        purpose: `actions` (uniformly random ones), `expert`, `noise` or `corrections`.
    """
    return np.random.default_rng([*purpose.encode(), seed])


def random_actions(space: gym.Space, seed: int) -> Policy:
    """A policy of uniformly random actions for the episode of that seed."""
    space.seed(int(stream(seed, "actions").integers(2**31)))
    return lambda observation: space.sample()


class Instructed(gym.Wrapper):
    """Puts the instruction into the info of `reset`, unless the environment has done so."""

    def __init__(self, env: gym.Env, instruction: str) -> None:
        super().__init__(env)
        self._instruction = instruction

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets; the info has the key `instruction`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {"instruction": self._instruction} | info
