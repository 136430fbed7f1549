"""Scores of a random policy and of the expert: the two ends of every percentage.

Measured as in evaluation: the same cut-off after `max_steps`, the same score of an episode, no action noise.
"""

import dataclasses
import re

import gymnasium as gym

from generalist.envs.episodes import environment, play_expert
from generalist.envs.registry import get, suites, tasks
from generalist.envs.task import Task, random_actions

FIRST_SEED = 5_000_000  # neither recording nor evaluation uses these seeds


@dataclasses.dataclass(frozen=True)
class Job:
    """All episodes of one policy in one task."""

    task: str
    expert: bool
    episodes: int

    def __str__(self) -> str:
        return f"{self.task} ({'expert' if self.expert else 'random'})"


def play(job: Job) -> list[float]:
    """The score of each episode; an expert that gives up scores 0."""
    task = get(job.task)
    seeds = range(FIRST_SEED, FIRST_SEED + job.episodes)
    if not job.expert:
        return [play_random(task, environment(job.task), seed) for seed in seeds]
    # Giving up counts as a failure here, while recording just tries another seed.
    played = [play_expert(task, seed, noisy=False, max_steps=task.max_steps) for seed in seeds]
    return [0.0 if episode is None else episode.score for episode in played]


def play_random(task: Task, env: gym.Env, seed: int) -> float:
    """The score of an episode of uniformly random actions."""
    observation, _ = env.reset(seed=seed)
    # A fresh policy per episode, so that its actions depend on the seed alone.
    policy = random_actions(env.action_space, seed)
    rewards, infos, done = [], [], False
    while not done:
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        rewards.append(float(reward))
        infos.append(info)
        done = terminated or truncated
    return task.score(rewards, infos)


def table(suite: str) -> str:
    """A Markdown table of a suite's tasks and their scores."""
    listed = tasks(f"{suite}/*")
    human = any(task.human_score is not None for task in listed)
    head = ["task", "instruction", "random", "expert", *(["human"] if human else []), "episodes", "steps at most"]
    rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for task in listed:
        scores = [task.random_score, task.expert_score, *([task.human_score] if human else [])]
        # At most two decimals, and none that are zero.
        cells = ["" if score is None else f"{score:,.2f}".rstrip("0").rstrip(".") for score in scores]
        name = task.name.partition("/")[2]
        rows.append([f"`{name}`", task.instruction, *cells, str(task.scored_episodes), str(task.max_steps)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_tables(page: str) -> str:
    """The page with every suite's table placed between its marks, `<!-- table of SUITE -->` and `<!-- end -->`.

    Raises:
        ValueError: a suite has no marks.
    """
    for suite in suites():
        marks = re.search(f"(<!-- table of {suite} -->\n).*?(?=<!-- end -->)", page, re.DOTALL)
        if marks is None:
            raise ValueError(
                f"the page has no table of {suite}: write <!-- table of {suite} --> and <!-- end --> in it"
            )
        page = f"{page[: marks.end(1)]}{table(suite)}\n{page[marks.end() :]}"
    return page
