"""Experts correct other players, for DAgger (Ross, Gordon & Bagnell 2011): another policy decides what is executed, and at every
step the expert says what it would have done. Imitating those answers teaches how to recover from mistakes.

    <folder>/<suite>/<task>/1.0.0/      RLDS, like recordings of the experts (rlds.py); the actions are the expert's answers

An episode is written by the worker that plays it, into a hidden folder that becomes the data set once all episodes are in it.
"""

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from generalist.envs import rlds
from generalist.envs.custom_task import OwnTask
from generalist.envs.episodes import Episode
from generalist.envs.recording import versions, working_folder
from generalist.envs.task import GaveUp, Policy, Task, stream
from generalist.system.time_limit import OutOfTime, time_limit
from generalist.tokenizers.space_values import copied

FIRST_SEED = 500_000  # between the seeds of recordings and those of evaluation


class Corrected(gym.Wrapper):
    """Writes every episode that is played in it as `<seed>.array_record`, with the expert's answers as its actions.

    An episode ends early when the expert has no answer; without a first answer no file is written.

    Args:
        env: the result of the task's `make`.
        task: the task whose expert answers.
        share: probability that the expert's answer is executed instead of the given action.
        folder: folder of the files.
    """

    def __init__(self, env: gym.Env, task: Task, share: float, folder: Path) -> None:
        super().__init__(env)
        self._task, self._share, self._folder = task, share, folder
        self._serialize = rlds.Serializer(task, (env.observation_space, env.action_space))
        self._rng = np.random.default_rng()  # replaced by each episode's own
        self._seed, self._instruction = 0, ""
        self._expert: Policy | None = None
        self._observation: Any = None
        self._answer: Any = None
        # Observation, the expert's answer, executed action, reward and info of each step.
        self._steps: list[tuple[Any, Any, Any, float, dict[str, Any]]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets, and asks the expert for its first answer."""
        assert seed is not None, "an episode is identified by its seed: pass one"
        observation, info = self.env.reset(seed=seed, options=options)
        self._seed, self._instruction, self._steps = seed, info["instruction"], []
        self._rng = stream(seed, "corrections")
        self._expert = self._task.expert(self.env, stream(seed, "expert"))
        self._see(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Executes the action or, with probability `share`, the expert's answer; then asks for the next answer."""
        # The expert had no first answer: the episode ends at once, without a file.
        if self._answer is None:
            return self._observation, 0.0, False, True, {}
        # The draw must not depend on the player, or the same seed would give different episodes.
        executed = self._answer if self._rng.random() < self._share else copied(action)
        observation, reward, terminated, truncated, info = self.env.step(executed)
        self._steps.append((self._observation, self._answer, executed, float(reward), info))
        truncated = truncated or len(self._steps) == self._task.record_steps
        # The last observation needs no answer: no action follows it.
        if not (terminated or truncated):
            self._see(observation)
            truncated = self._answer is None
        if terminated or truncated:
            self._write(terminated)
        return observation, reward, terminated, truncated, info

    def _see(self, observation: Any) -> None:
        """Stores copies of the observation and of the expert's answer: both sides may write into arrays that they are given."""
        self._observation = copied(observation)
        self._answer = copied(self._asked(copied(observation)))

    def _asked(self, observation: Any) -> Any:
        """The expert's answer; None if it has none."""
        assert self._expert is not None
        # Time is limited per answer: BabyAI's bot replans for ever on some grids.
        try:
            with time_limit(self._task.time_limit):
                return self._expert(observation)
        except (OutOfTime, GaveUp):
            return None

    def _write(self, terminated: bool) -> None:
        """Writes the episode's file."""
        observations, answers, executed, rewards, infos = map(list, zip(*self._steps, strict=True))
        episode = Episode(
            seed=self._seed,
            noisy=True,  # what was executed is not what the expert chose
            instruction=self._instruction,
            score=self._task.score(rewards, infos),
            observations=observations,
            actions=answers,
            executed=executed,
            rewards=np.array(rewards, np.float32),
            terminated=terminated,
        )
        self._steps = []
        rlds.write_shard(self._folder / f"{self._seed}.array_record", [self._serialize(episode)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrectedTask(Task):
    """A task whose episodes are written with the expert's answers."""

    task: Task
    share: float
    """Probability that a step executes the expert's answer (see `Corrected`)."""
    folder: Path
    """Folder of the data sets."""

    @classmethod
    def of(cls, task: Task, share: float, folder: Path) -> "CorrectedTask":
        """The task, with its name, limits and reference scores.

        Raises:
            ValueError: the task has no expert.
        """
        if isinstance(task, OwnTask):
            raise ValueError(f"{task.name} has no expert that could answer: leave it out of --tasks")
        # A copy of all fields: lanes and results know the task by its name, limits and scores.
        # Episodes are as long as recorded ones: longer ones teach nothing new.
        common = {field.name: getattr(task, field.name) for field in dataclasses.fields(Task)}
        return cls(**common | {"max_steps": task.record_steps}, task=task, share=share, folder=folder)

    def build(self) -> gym.Env:
        """See `Task.build`."""
        return self.task.build()

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """See `Task.expert`."""
        return self.task.expert(env, rng)

    def make(self) -> gym.Env:
        """The task's environment, wrapped in `Corrected`."""
        return Corrected(self.task.make(), self.task, self.share, working_folder(self.place))

    @property
    def place(self) -> Path:
        """Folder of the finished data set."""
        return rlds.dataset_folder(self.folder, self.task)

    def begin(self) -> None:
        """Makes an empty working folder and removes what an interrupted run left there."""
        self.discard()
        working_folder(self.place).mkdir(parents=True)

    def discard(self) -> None:
        """Removes the working folder, if there is one."""
        shutil.rmtree(working_folder(self.place), ignore_errors=True)

    def finish(self, played: Sequence[tuple[int, float, int]], settings: Mapping[str, Any]) -> int:
        """Makes a data set of the episodes that left a file and moves it to its place. Returns the number of its steps.

        Args:
            played: seed, score and steps of every episode.
            settings: settings of the episodes, stored as metadata.

        Raises:
            ValueError: no episode left a file.
        """
        work = working_folder(self.place)
        files = {seed: work / f"{seed}.array_record" for seed, _, _ in played}
        kept = [one for one in played if files[one[0]].exists()]
        if not kept:
            raise ValueError(f"the expert of {self.name} had no answer in any of {len(played)} episodes: leave it out")
        # One shard per episode: each was written by the worker that played it.
        shards = [(1, files[seed].stat().st_size) for seed, _, _ in kept]
        for index, (seed, _, _) in enumerate(kept):
            files[seed].rename(work / rlds.shard_name(self.task, index, len(kept)))
        metadata = {
            "lengths": [steps for _, _, steps in kept],
            "seeds": [seed for seed, _, _ in kept],
            "scores": [score for _, score, _ in kept],
            "versions": versions(self.task),
            **settings,
        }
        # Only for its spaces, which some suites know once the environment is built.
        env = self.task.make()
        rlds.write_dataset_files(work, self.task, (env.observation_space, env.action_space), shards, metadata)
        env.close()
        self.place.parent.mkdir(parents=True, exist_ok=True)
        # One rename: a data set is complete or absent.
        os.replace(work, self.place)
        return sum(metadata["lengths"])
