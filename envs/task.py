"""The base class of tasks: an environment with its instruction, its expert and its reference scores.

A suite is one module of `suites/`. Its tasks are cheap to list: only `make` imports packages.

Dimension key: T steps.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from jaxtyping import Shaped

from generalist.envs.border import Border

# Recording uses seeds from 0 upwards and evaluation from here upwards, so they never overlap.
EVALUATION_SEED = 1_000_000

Policy = Callable[[Any], Any]
"""Observation → action; may keep state for one episode."""


class Recast(Protocol):
    """An equivalent version of an episode, such as one with other colours, in which the same actions are right."""

    def instruction(self, instruction: str) -> str:
        """The episode's instruction in this version."""

    def observations(
        self, observations: Mapping[str, Shaped[np.ndarray, "T ..."]]
    ) -> dict[str, Shaped[np.ndarray, "T ..."]]:
        """The observations of T steps in this version, by key."""


class GaveUp(Exception):
    """An expert has no answer in this episode."""


class MissingExtra(ImportError):
    """A package of the environments is not installed."""

    def __init__(self, suite: str, package: str | None) -> None:
        # The emulator's extra is separate, since its licence does not suit everybody.
        extra = "atari" if suite == "atari" else "envs"
        remedy = f"pip install 'generalist[{extra}]'; or train without it: --data.{suite}.weight 0"
        super().__init__(f"{suite} needs the package {package}: {remedy}", name=package)
        self._made_of = (suite, package)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker's error is pickled; an exception is otherwise made anew from its message.
        return type(self), self._made_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """An environment with its instruction, expert, limits and reference scores.

    Each suite defines how to `build` the environment and its `expert`. `reset(seed=s)` determines an episode completely,
    whatever was played in the environment before.
    """

    name: str
    """Suite and task, such as `metaworld/door-open`."""
    suite: str
    """The suite's module."""
    layout: str
    """Tasks of one layout have equal observation and action spaces, and share one tokenization."""
    instruction: str
    """The default instruction; an episode's own is in `info["instruction"]` of `reset`."""
    max_steps: int
    """Maximum decisions per episode, in evaluation and in the reference scores."""
    record_steps: int
    """Maximum decisions per recorded episode: balancing for minutes teaches nothing new."""
    episodes: int
    """Default number of recorded expert episodes."""
    seconds: float
    """Approximate CPU seconds per recorded episode, by which work is divided and the time left is estimated."""
    noise: float
    """Strength of the action noise in noisy recorded episodes (see `disturb`)."""
    noisy_share: float = 0.5
    """Fraction of recorded episodes with action noise."""
    revision: int = 0
    """Increased when the expert changes: recordings of an earlier revision are recorded again."""
    time_limit: float | None = None
    """CPU seconds after which an expert's episode is abandoned, for experts that may never answer; None: no limit."""
    only_successes: bool = False
    """The score is success, 0 or 1, and a failed episode is not recorded; otherwise the score is the return."""
    random_score: float = float("nan")
    """Mean score of uniformly random actions (`benchmarks/reference_scores.py`)."""
    expert_score: float = float("nan")
    """Mean score of the expert, by the same measure."""
    scored_episodes: int = 0
    """Number of episodes of which each of these scores is the mean."""
    human_score: float | None = None
    """Score of a human tester over a whole game, if the literature has one."""

    @abc.abstractmethod
    def build(self) -> gym.Env:
        """Imports the suite's package and constructs the environment."""

    @abc.abstractmethod
    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """The scripted expert for the episode that `env` has just been reset to.

        Args:
            env: what `make` returned; an expert may read its state.
            rng: random numbers for experts that use them.

        Raises:
            GaveUp: raised by the policy when it has no answer.
        """

    def make(self) -> gym.Env:
        """The environment, checked by `Border`; episodes end after `max_steps`.

        Raises:
            MissingExtra: the suite's package is not installed.
        """
        try:
            env = self.build()
        except ImportError as error:
            raise MissingExtra(self.suite, error.name) from error
        # The limit is outermost, so that it counts decisions, not what a suite does inside.
        return gym.wrappers.TimeLimit(Instructed(Border(env, self.name), self.instruction), self.max_steps)

    def make_spaces(self) -> tuple[gym.Space, gym.Space]:
        """Observation and action space.

        Raises:
            MissingExtra: the suite's package is not installed.
        """
        env = self.make()
        try:
            return env.observation_space, env.action_space
        finally:
            env.close()

    # Not abstract: most suites have none, and the settings refuse `recast` for them.
    def recast(self, rng: np.random.Generator) -> Recast:
        """A random equivalent version of an episode, for tasks that have any.

        Raises:
            NotImplementedError: the task has none.
        """
        raise NotImplementedError(
            f"{self.name} has no equivalent versions of an episode: leave out --data.{self.suite}.recast"
        )

    def score(self, rewards: Sequence[float], infos: Sequence[Mapping[str, Any]]) -> float:
        """The score of a finished episode.

        Args:
            rewards: reward of every step.
            infos: info of every step.
        """
        if self.only_successes:
            return float(any(info.get("success", False) for info in infos))
        return float(np.sum(rewards, dtype=np.float64))

    def normalized(self, score: float) -> float:
        """The score in percent of the way from random (0) to expert (100); may lie outside."""
        return 100.0 * (score - self.random_score) / (self.expert_score - self.random_score)

    @property
    def can_be_pointed(self) -> bool:
        """Whether its target can be told by a place (see `pointed`)."""
        return False

    def pointed(self, instruction: str, observation: Any) -> str | None:
        """The instruction with its target told by the place in the first observation, in location tokens.

        Args:
            instruction: of an episode.
            observation: its first one.

        Returns:
            None: the target is not in view, or the instruction is of another kind.
        """
        return None

    def disturb(self, action: Any, space: gym.Space, rng: np.random.Generator) -> Any:
        """The expert's action with noise, executed in some of the recorded episodes to cover more states.

        A bounded Box gets normal noise of `noise` half-ranges; a Discrete action is replaced at random with probability `noise`.
        """
        # Half-ranges, so that one strength suits actions of any scale.
        if isinstance(space, gym.spaces.Box):
            half = (space.high - space.low) / 2
            noisy = action + half * self.noise * rng.standard_normal(space.shape)
            return np.clip(noisy, space.low, space.high).astype(space.dtype)
        assert isinstance(space, gym.spaces.Discrete), f"{self.name}: no action noise for {space}"
        return int(rng.integers(space.n)) if rng.random() < self.noise else action

    def disturbance(self, space: gym.Space, rng: np.random.Generator) -> Policy:
        """The noise of one episode: a function from the expert's action to the executed one; by default `disturb`."""
        return lambda action: self.disturb(action, space, rng)


def stream(seed: int, purpose: str) -> np.random.Generator:
    """An episode's random numbers for one purpose. The environment uses the stream of the seed itself; an agent or a disturbance
    that used it too would know the environment's next draws.

    Args:
        seed: the episode's seed.
        purpose: `actions` (uniformly random ones), `expert`, `noise` or `corrections`.
    """
    return np.random.default_rng([*purpose.encode(), seed])


def random_actions(space: gym.Space, seed: int) -> Policy:
    """A policy of uniformly random actions for the episode with that seed."""
    # Gymnasium's spaces draw from their own generator, which must not depend on earlier episodes.
    space.seed(int(stream(seed, "actions").integers(2**31)))
    return lambda observation: space.sample()


class Instructed(gym.Wrapper):
    """Adds the instruction to the info of `reset`, unless the environment has set one."""

    def __init__(self, env: gym.Env, instruction: str) -> None:
        super().__init__(env)
        self._instruction = instruction

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets; the info has the key `instruction`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {"instruction": self._instruction} | info
