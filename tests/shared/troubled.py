"""Tasks whose environments cause trouble; in a module, which worker processes import."""

import dataclasses
import multiprocessing
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from generalist.envs.task import Policy, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Troubled(Task):
    """An environment that does what its task's name says."""

    folder: Path
    """Gets a file when an environment has begun, and one when it was closed."""
    suite: str = "troubled"
    layout: str = "troubled"
    instruction: str = "try"
    max_steps: int = 3
    record_steps: int = 3
    episodes: int = 1
    seconds: float = 1.0
    noise: float = 0.0
    random_score: float = 0.0
    expert_score: float = 1.0

    def build(self) -> gym.Env:
        return TroubledEnv(self)

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        raise NotImplementedError


class TroubledEnv(gym.Env):
    """See `Troubled`."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, task: Troubled):
        self.task = task
        self.observation_space = gym.spaces.Box(-1, 1, (2**17 if task.name == "large" else 1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        (self.task.folder / f"{self.task.name} began").touch()
        if self.task.name == "fails":
            raise LookupError("no such door")
        if self.task.name == "children":
            child = multiprocessing.get_context("fork").Process(target=int)
            child.start()
            child.join()
        return np.zeros(self.observation_space.shape or (), np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.task.name == "hangs":
            time.sleep(200)
        return np.zeros(self.observation_space.shape or (), np.float32), 1.0, False, False, {}

    def close(self) -> None:
        (self.task.folder / f"{self.task.name} closed").touch()
