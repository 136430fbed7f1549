"""Demonstrations: episodes that somebody played, and their conversion to our episodes, with every value checked and copied."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from generalist.envs.custom_folder import check_length, told_parts
from generalist.envs.custom_task import (
    OwnTask,
)
from generalist.envs.episodes import Episode
from generalist.tokenizers.space_values import check_text, checked, checked_flag, checked_reward, steps_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstration:
    """An episode that somebody played, of T decisions."""

    observations: Any
    """T values of the observation space, or their array (T, ...); for a Dict or Tuple also a Dict or tuple of arrays (T, ...), as
    in Minari. A value more is dropped: no decision was based on it."""
    actions: Any
    """T values of the action space, in the same forms."""
    rewards: Sequence[float]
    """T rewards."""
    terminated: bool = False
    """Whether the environment ended the episode, not a limit."""
    instruction: str | None = None
    """The agent's instruction; required if the environment gives its own. None: the task's instruction, or the texts among the
    observations (`envs.told`)."""


def has_texts(env: gym.Env, one: Demonstration) -> bool:
    """Whether the demonstration's observations contain the texts that `Told` makes the instruction."""
    keys, seen = told_parts(env), one.observations
    if isinstance(seen, Mapping):
        return bool(keys) and all(key in seen for key in keys)
    # The first step stands for all.
    return bool(keys) and len(seen) > 0 and isinstance(seen[0], Mapping) and all(key in seen[0] for key in keys)


def _without_texts(env: gym.Env, one: Demonstration, name: str) -> Demonstration:
    """The demonstration with the texts of its observations as its instruction, as `Told` does while playing.

    Raises:
        ValueError: a text changes within the episode.
    """
    keys, seen = told_parts(env), one.observations
    if not has_texts(env, one):
        return one
    instruction = []
    for key in keys:
        # One text for all steps, one per step, or one in each of the steps' dictionaries.
        texts = [seen[key]] if isinstance(seen, Mapping) and isinstance(seen[key], str) else None
        column = texts or (list(seen[key]) if isinstance(seen, Mapping) else [value[key] for value in seen])
        if len(set(column)) != 1:
            raise ValueError(f"{name}: the observation part {key!r} is a text that changes within the episode")
        instruction.append(str(column[0]))
    if isinstance(seen, Mapping):
        left: Any = {key: value for key, value in seen.items() if key not in keys}
    else:
        left = [{key: value for key, value in step.items() if key not in keys} for step in seen]
    return dataclasses.replace(one, observations=left, instruction=one.instruction or " ".join(instruction))


def as_episode(task: OwnTask, env: gym.Env, one: Demonstration, index: int) -> Episode:
    """A demonstration as an episode, with every value checked and copied.

    Args:
        task: the task.
        env: its environment, for its spaces.
        one: the demonstration.
        index: its number, which becomes the episode's seed.

    Raises:
        ValueError: a value does not belong to its space, or there are different numbers of them.
    """
    name = f"{task.name}: demonstration {index}"
    one = _without_texts(env, one, name)
    instruction = task.instruction if one.instruction is None else one.instruction
    check_text(instruction, f"{name}: the instruction")
    if isinstance(one.rewards, Mapping | str) or not hasattr(one.rewards, "__len__"):
        raise ValueError(
            f"{name}: the rewards are {one.rewards!r:.60}: give a list or an array with one number per step"
        )
    seen = steps_of(env.observation_space, one.observations, f"{name}: the observations")
    done = steps_of(env.action_space, one.actions, f"{name}: the actions")
    steps = len(done)
    if not steps or len(one.rewards) != steps or len(seen) not in (steps, steps + 1):
        raise ValueError(
            f"demonstration {index} has {len(seen)} observations, {steps} actions and {len(one.rewards)} rewards: give the same "
            "number of each, at least one; one observation more, the last one, is allowed"
        )
    check_length(task, steps, name)
    rewards = [checked_reward(reward, f"{name}, step {step}: the reward") for step, reward in enumerate(one.rewards)]
    # Actions must be within their bounds, which the tokenizer can write; observations need not, since environments exceed theirs.
    actions = [
        checked(env.action_space, action, f"{name}, step {step}: the action", bounded=True)
        for step, action in enumerate(done)
    ]
    return Episode(
        seed=index,
        noisy=False,
        instruction=instruction,
        score=task.score(rewards, []),
        observations=[
            checked(env.observation_space, value, f"{name}, step {step}: the observation")
            for step, value in enumerate(seen[:steps])
        ],
        actions=actions,
        executed=actions,
        rewards=np.asarray(rewards, np.float32),
        terminated=checked_flag(one.terminated, f"{name}: terminated"),
    )
