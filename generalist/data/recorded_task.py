"""The task of a data set of recorded episodes: spaces and an instruction, and no environment."""

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np

from generalist.data.recorded import Dataset, spaces
from generalist.envs.task import Policy, Task

SUITE = "recorded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedTask(Task):
    """See the module."""

    dataset: Dataset

    def make_spaces(self) -> tuple[gym.Space, gym.Space]:
        """See `Task.make_spaces`: those of the data set."""
        return spaces(self.dataset)

    def build(self) -> gym.Env:
        """
        Raises:
            ValueError: there is no environment to play.
        """
        raise ValueError(
            f"{self.name} is a data set of recorded episodes without an environment: it is scored by held-out episodes "
            "(generalist eval), not played"
        )

    def expert(self, env: Any, rng: np.random.Generator) -> Policy:
        """See `build`."""
        raise ValueError(f"{self.name} has no expert: its episodes are recorded")


def recorded_task(dataset: Dataset) -> RecordedTask:
    """The task of a data set."""
    name = f"{SUITE}/{dataset.name}"
    return RecordedTask(
        name=name,
        suite=SUITE,
        layout=name,
        instruction=dataset.instruction,
        max_steps=1,
        record_steps=1,
        episodes=0,
        seconds=0.0,
        noise=0.0,
        dataset=dataset,
    )
