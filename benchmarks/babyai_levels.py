"""Plays BabyAI's bot in every level of minigrid: the levels that it solves, their steps and their cost.

    python benchmarks/babyai_levels.py --seeds 40

The table of levels in `envs/suites/babyai.py` is chosen by what this prints: a level is taken if the bot solves at least 90% of
its seeds without action noise, within the time limit and the number of steps.
"""

import argparse
import dataclasses
import importlib
import multiprocessing
import time

import numpy as np

from generalist.envs.episodes import play_policy
from generalist.envs.suites.babyai import BabyAITask
from generalist.envs.task import GaveUp
from generalist.system.processes import cores
from generalist.system.time_limit import OutOfTime, time_limit

MAX_STEPS = 400


@dataclasses.dataclass(frozen=True)
class Job:
    """All seeds of one level."""

    level: str
    seeds: int
    noise: float
    seconds: float

    def __str__(self) -> str:
        return self.level


def levels() -> list[str]:
    """All ids, without the prefix; without the debug variants, which differ only in ending an episode at the first wrong move."""
    import gymnasium as gym

    importlib.import_module("minigrid")  # importing it registers the levels
    ids = [id.removeprefix("BabyAI-") for id in gym.registry if id.startswith("BabyAI-")]
    return [id for id in ids if "Debug" not in id]


def play(job: Job) -> list[tuple[int, float]]:
    """Steps (0 for a failure) and CPU seconds of each episode."""
    task = BabyAITask(name=f"babyai/{job.level}", suite="babyai", layout="babyai", instruction="follow the instruction",
                      max_steps=MAX_STEPS, record_steps=MAX_STEPS, episodes=1, seconds=1.0, noise=job.noise,
                      only_successes=True, level=job.level)  # fmt: skip
    env, found = task.make(), []
    for seed in range(job.seeds):
        start, rng, steps = time.process_time(), np.random.default_rng(seed), 0
        try:
            with time_limit(job.seconds):
                observation, info = env.reset(seed=seed)
                policy, told = task.expert(env, rng), info["instruction"]
                played = play_policy(task, env, policy, rng, observation, told, seed, job.noise > 0, MAX_STEPS)
                steps = len(played.actions) if played.score > 0 else 0
        except (OutOfTime, GaveUp):
            pass
        found.append((steps, time.process_time() - start))
    return found


def main() -> None:
    """Prints one line per level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument(
        "--noise", type=float, default=0.0, help="fraction of random moves; recording uses 0.1 in every second episode"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds per episode")
    parser.add_argument("--workers", type=int, default=cores(), help="number of processes")
    arguments = parser.parse_args()
    print(f"{'level':28} solved  median  95%  longest  seconds (95%)", flush=True)
    jobs = [Job(level, arguments.seeds, arguments.noise, arguments.seconds) for level in levels()]
    pool = multiprocessing.get_context("spawn").Pool(arguments.workers)
    for job, episodes in zip(jobs, pool.imap(play, jobs), strict=True):
        steps = np.array([steps for steps, _ in episodes if steps] or [MAX_STEPS])
        seconds = np.array([seconds for _, seconds in episodes])
        solved = sum(steps > 0 for steps, _ in episodes) / len(episodes)
        print(f"{job.level:28} {solved:6.0%} {np.median(steps):7.0f} {np.quantile(steps, 0.95):4.0f} {steps.max():8.0f} "
              f"{seconds.mean():8.3f} ({np.quantile(seconds, 0.95):.3f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
