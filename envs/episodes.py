"""Playing episodes of experts, for recordings and reference scores.

Dimension key: T decisions.
"""

import dataclasses
import functools
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float32

from generalist.envs.registry import get
from generalist.envs.task import GaveUp, Policy, Task, stream
from generalist.system.time_limit import OutOfTime, time_limit
from generalist.tokenizers.space_values import copied


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """T decisions. The observation after the last one is not stored: no decision is based on it."""

    seed: int
    noisy: bool
    instruction: str
    score: float
    observations: list[Any]  # T values of the observation space
    actions: list[Any]  # T values of the action space: the expert's choices
    executed: list[Any]  # T values of the action space: the executed ones
    rewards: Float32[np.ndarray, "T"]
    terminated: bool  # ended by the environment, not by a limit


@functools.lru_cache(maxsize=1)  # an environment costs up to a second to make; jobs come sorted by task
def environment(name: str) -> gym.Env:
    """This process's environment of a task."""
    return get(name).make()


def play_expert(task: Task, seed: int, *, noisy: bool, max_steps: int) -> Episode | None:
    """Plays an episode; None if the expert gave up.

    Args:
        task: the task.
        seed: seed of the episode and of the action noise.
        noisy: whether to disturb the expert's actions.
        max_steps: maximum number of decisions.
    """
    env = environment(task.name)
    observation, info = env.reset(seed=seed)
    try:
        with time_limit(task.time_limit):
            # After `reset`: an expert may plan from the environment's state.
            policy = task.expert(env, stream(seed, "expert"))
            return play_policy(task, env, policy, observation, info["instruction"], seed, noisy, max_steps)
    except (OutOfTime, GaveUp):
        return None


def play_policy(task: Task, env: gym.Env, policy: Policy, observation: Any, instruction: str, seed: int, noisy: bool,
                max_steps: int) -> Episode:  # fmt: skip
    """Plays an episode of any policy, after `env.reset(seed=seed)` returned `observation` and `instruction`. Stores copies, since
    environment and policy may go on writing into their arrays."""
    observations, actions, executed, rewards, infos = [], [], [], [], []
    terminated = truncated = False
    # Its own stream: with and without noise the expert sees the same random numbers.
    disturb = task.disturbance(env.action_space, stream(seed, "noise"))
    while not (terminated or truncated or len(rewards) == max_steps):
        observations.append(observation)
        action = copied(policy(copied(observation)))
        # The expert's choice is what is learned; the noisy one is what is executed.
        done = disturb(copied(action)) if noisy else action
        actions.append(action)
        executed.append(done)
        observation, reward, terminated, truncated, info = env.step(done)
        rewards.append(float(reward))
        infos.append(info)
    return Episode(
        seed=seed,
        noisy=noisy,
        instruction=instruction,
        score=task.score(rewards, infos),
        observations=observations,
        actions=actions,
        executed=executed,
        rewards=np.array(rewards, np.float32),
        terminated=terminated,
    )
