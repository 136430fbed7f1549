"""What a random policy and the expert score: the two ends of every percentage.

The measure is evaluation's: the same cut-off after `max_steps`, the same score of an episode; no action noise.
"""

import dataclasses

import gymnasium as gym

from generalist.envs.episodes import environment, play_expert
from generalist.envs.task import Task, get

FIRST_SEED = 5_000_000  # neither recording nor evaluation comes here


@dataclasses.dataclass(frozen=True)
class Job:
    """All episodes of one policy in one task."""

    task: str
    expert: bool
    episodes: int

    def __str__(self) -> str:
        return f"{self.task} ({'expert' if self.expert else 'random'})"


def play(job: Job) -> list[float]:
    """The score of each episode; an expert that does not answer scores 0."""
    task = get(job.task)
    seeds = range(FIRST_SEED, FIRST_SEED + job.episodes)
    if not job.expert:
        return [play_random(task, environment(job.task), seed) for seed in seeds]
    played = [play_expert(task, seed, noisy=False, max_steps=task.max_steps) for seed in seeds]
    return [0.0 if episode is None else episode.score for episode in played]


def play_random(task: Task, env: gym.Env, seed: int) -> float:
    """The score of an episode of uniformly random actions."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    rewards, infos, done = [], [], False
    while not done:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        rewards.append(float(reward))
        infos.append(info)
        done = terminated or truncated
    return task.score(rewards, infos)
