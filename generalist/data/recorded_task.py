"""The task of a data set of recorded episodes: spaces and an instruction; an environment to play only where one is named."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import gymnasium as gym
import numpy as np

from generalist.data.recorded import Dataset, opened, spaces
from generalist.envs.custom_task import make_env
from generalist.envs.reference import FIRST_SEED, play_random
from generalist.envs.task import Policy, Task
from generalist.system.cache import cache_folder
from generalist.system.files import write_json
from generalist.tokenizers.space_tree import leaves_of

SUITE = "recorded"
RANDOM_EPISODES = 30  # for the lower end of every percentage


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedTask(Task):
    """See the module."""

    dataset: Dataset
    environment: str = ""
    """Gymnasium's id; `module:Id-v0` imports the module, which registers it. Empty: nothing is played."""

    def make_spaces(self) -> tuple[gym.Space, gym.Space]:
        """See `Task.make_spaces`: what the data set observes; the environment's actions, where there is one, since they have
        bounds."""
        observation, action = spaces(self.dataset)
        # Recorded floats have no bounds, which the environment needs to act within.
        return (observation, super().make_spaces()[1]) if self.environment else (observation, action)

    def build(self) -> gym.Env:
        """See `Task.build`.

        Raises:
            ValueError: there is no environment to play, or it observes or does something else than what was recorded.
        """
        if not self.environment:
            raise ValueError(
                f"{self.name} is a data set of recorded episodes without an environment: it is scored by held-out episodes "
                "(generalist eval), not played; --data.recorded.environment names one"
            )
        env = make_env(self.environment, {}, self.max_steps)
        try:
            return AsRecorded(env, *spaces(self.dataset), self.name)
        except ValueError:
            # A wrapper that was never made closes nothing.
            env.close()
            raise

    def expert(self, env: Any, rng: np.random.Generator) -> Policy:
        """There is none: the recorded episodes are all that is known of it."""
        raise ValueError(f"{self.name} has no scripted expert: its episodes are in {self.dataset.path}")


class AsRecorded(gym.ObservationWrapper):
    """An environment that observes what a data set has, under the data set's names.

    Raises:
        ValueError: the environment lacks a part, or one has another shape, or the actions differ.
    """

    def __init__(self, env: gym.Env, observation: gym.Space, action: gym.Space, name: str):
        super().__init__(env)
        assert isinstance(observation, gym.spaces.Dict)
        leaves = {".".join(path): (path, leaf) for path, leaf in leaves_of(env.observation_space, ())}
        if [*leaves] == [""] and len(observation) == 1:  # a bare space has no name of its own
            leaves = {next(iter(observation)): leaves[""]}
        for part, space in observation.items():
            if part not in leaves or leaves[part][1].shape != space.shape:
                told = ", ".join(f"{key or 'one part'} {leaf.shape}" for key, (_, leaf) in leaves.items())
                raise ValueError(
                    f"{name} has recorded {part!r} of shape {space.shape}, but its environment observes {told}: say in a mapping "
                    "which fields have the environment's names"
                )
        # Shape and kind, not bounds: those of the data are only the values that occurred.
        if env.action_space.shape != action.shape or type(env.action_space) is not type(action):
            raise ValueError(f"{name} has recorded actions of {action}, but its environment takes {env.action_space}")
        self._paths = {part: leaves[part][0] for part in observation}
        self.observation_space = gym.spaces.Dict({part: leaves[part][1] for part in observation})

    def observation(self, observation: Any) -> dict[str, Any]:
        """The parts that were recorded."""
        return {part: functools.reduce(_within, path, observation) for part, path in self._paths.items()}


def _within(value: Any, key: str) -> Any:
    return value[int(key)] if isinstance(value, tuple) else value[key]


@functools.lru_cache(maxsize=32)
def recorded_task(dataset: Dataset, environment: str = "") -> RecordedTask:
    """The task of a data set. With an environment its scores are measured: of random actions once, and of the recorded episodes.

    Raises:
        ValueError: there is an environment, but no reward in the data set, or its episodes are no better than random.
    """
    name = f"{SUITE}/{dataset.name}"
    task = RecordedTask(
        name=name,
        suite=SUITE,
        layout=name,
        instruction=dataset.instruction,
        # This and the next ones matter only where there is an environment to play.
        max_steps=1,
        record_steps=1,
        episodes=0,
        seconds=0.0,
        noise=0.0,
        dataset=dataset,
        environment=environment,
    )
    if not environment:
        return task
    # An environment takes one action per step at its own rate.
    if dataset.chunk > 1 or dataset.rate is not None:
        raise ValueError(f"{name} is played step by step: leave out chunk and rate, or the environment {environment}")
    found = opened(dataset)
    if found.mapping.reward is None:
        raise ValueError(
            f"{dataset.path} has no reward, which a score needs: say in a mapping which field it is, or leave out the "
            f"environment {environment}"
        )
    returns = found.statistics.returns
    task = dataclasses.replace(task, max_steps=_limit(environment, int(found.episodes.lengths.max())))
    # Episodes that can't be read have NaN for a return.
    expert, random = float(np.nanmean(returns)), _random_score(task)
    # A percentage of an expert no better than chance would have no or a negative unit. NaN is refused too.
    if not expert > random:
        raise ValueError(
            f"the episodes of {dataset.path} score {expert:.4g}, no more than uniformly random actions in {environment} "
            f"({random:.4g}): there is nothing to score by; leave out the environment"
        )
    return dataclasses.replace(task, random_score=random, expert_score=expert, scored_episodes=len(returns))


def _limit(environment: str, longest: int) -> int:
    """Decisions of an episode: the environment's own limit, or those of the longest recorded one."""
    env = make_env(environment, {})
    own = env.spec.max_episode_steps if env.spec is not None else None
    env.close()
    return own or longest


def _random_score(task: RecordedTask) -> float:
    """Mean score of uniformly random actions; measured once and kept."""
    # All that the score depends on; Gymnasium's version too, since environments change with it.
    asked = json.dumps([task.environment, task.max_steps, RANDOM_EPISODES, gym.__version__])
    path = cache_folder() / "scores" / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["random_score"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        env = task.make()
        try:
            score = float(np.mean([play_random(task, env, FIRST_SEED + index) for index in range(RANDOM_EPISODES)]))
        finally:
            env.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"asked": asked, "random_score": score})
        return score
