"""Weights that can play a task of the registry, and what a server counts."""

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
from serving import asked

from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout

TASK = "classic/cartpole"


def with_task(model: Any) -> Any:
    """The model with the layout of a task, besides its own, which is of none."""
    settings = {"vocabulary": model.config.tokens.vocabulary(), "text": model.tokenizers.text}
    space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    observation = SpaceTokenizer.from_space(space, tensors="tokens", **settings)
    layout = TaskLayout(TASK, observation, SpaceTokenizer.from_space(gym.spaces.Discrete(2), **settings))
    layouts = {**model.layouts, TASK: layout}
    return dataclasses.replace(model, tokenizers=dataclasses.replace(model.tokenizers, layouts=layouts))


def metric(port: int, name: str) -> float:
    """A number of a server's metrics."""
    lines = asked(port, "/metrics")[1].splitlines()
    return float(next(line for line in lines if line.startswith(f"generalist_{name} ")).split()[1])
