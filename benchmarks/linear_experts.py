"""Searches the linear experts of the locomotion tasks and writes them to `envs/linear_experts.json`.

    python benchmarks/linear_experts.py swimmer half-cheetah hopper --minutes 3

Augmented random search, version 2 (Mania, Guez & Recht 2018, algorithm 2): a policy linear in the standardised observation is
moved along the random directions that did best. The policy of the best mean return over the test episodes is kept, with the
standardisation folded into it, so that the expert is `clip(weights @ observation + offset)`. A task keeps its old expert
unless the new one is better.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from generalist.system.processes import cores

PATH = Path(__file__).parent.parent / "envs" / "linear_experts.json"
TEST_SEED, TEST_EPISODES = 7_000_000, 24  # seeds that recording, evaluation and reference scores do not use
ROUND = 5  # stored decimals


@dataclasses.dataclass(frozen=True)
class Search:
    """Hyperparameters, after table 9 of the paper."""

    id: str
    step: float
    """Step size."""
    noise: float
    """Standard deviation of the directions."""
    directions: int
    best: int
    """Number of best directions that are used."""
    alive: float = 0.0
    """The environment's reward per step for not falling, which is subtracted: a policy that stands still must not score."""
    steps: int = 1000
    """Maximum steps per episode."""


SEARCHES = {
    "swimmer": Search("Swimmer-v5", 0.02, 0.02, 4, 2),
    "half-cheetah": Search("HalfCheetah-v5", 0.02, 0.03, 16, 4),
    "hopper": Search("Hopper-v5", 0.01, 0.025, 8, 4, alive=1.0),
    "walker": Search("Walker2d-v5", 0.03, 0.025, 40, 30, alive=1.0),
}


@functools.lru_cache(maxsize=1)
def environment(id: str) -> gym.Env:
    """This process's environment."""
    return gym.make(id, disable_env_checker=True).unwrapped


def rollout(job: tuple[Search, np.ndarray, np.ndarray, int]) -> tuple[float, float, np.ndarray]:
    """The return without and with the reward for being alive, and the observations (T, n) of an episode."""
    search, weights, offset, seed = job
    env, seen, total, done = environment(search.id), [], 0.0, False
    low, high = env.action_space.low, env.action_space.high
    observation, _ = env.reset(seed=seed)
    while not done and len(seen) < search.steps:
        seen.append(observation)
        observation, reward, done, _, _ = env.step(np.clip(weights @ observation + offset, low, high))
        total += float(reward)
    return total - search.alive * len(seen), total, np.array(seen)


class Moments:
    """Running mean and deviation of the observations."""

    def __init__(self, size: int) -> None:
        self.count, self.total, self.squares = 1.0, np.zeros(size), np.ones(size)

    def add(self, seen: np.ndarray) -> None:
        """Updates the statistics with an episode's observations (T, n)."""
        self.count += len(seen)
        self.total += seen.sum(0)
        self.squares += (seen**2).sum(0)

    def fold(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Converts weights for standardised observations to weights and an offset for raw ones."""
        mean = self.total / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 1e-6))
        return weights / deviation, -(weights / deviation) @ mean


def search(name: str, minutes: float, seed: int, pool: Any) -> dict[str, Any]:
    """The best policy of a search, with its mean return over the test episodes."""
    settings, rng = SEARCHES[name], np.random.default_rng(seed)
    env = environment(settings.id)
    weights = np.zeros((env.action_space.shape[0], env.observation_space.shape[0]))
    moments, best, start, iteration = Moments(weights.shape[1]), {"score": -np.inf}, time.monotonic(), 0
    while time.monotonic() - start < 60 * minutes:
        directions = rng.standard_normal((settings.directions, *weights.shape))
        tried = [weights + sign * settings.noise * one for one in directions for sign in (1, -1)]
        seeds = np.repeat(rng.integers(2**31, size=settings.directions), 2)
        played = pool.map(
            rollout,
            [(settings, *moments.fold(one), int(own)) for one, own in zip(tried, seeds, strict=True)],
            chunksize=1,
        )
        returns = np.array([result[0] for result in played]).reshape(-1, 2)
        used = np.argsort(-returns.max(1))[: settings.best]
        spread = returns[used].std() + 1e-6
        slope = ((returns[used, 0] - returns[used, 1])[:, None, None] * directions[used]).mean(0)
        weights = weights + settings.step / spread * slope
        for _, _, seen in played:
            moments.add(seen)
        iteration += 1
        if iteration % 10 == 0:
            found = [np.round(part, ROUND) for part in moments.fold(weights)]
            tests = pool.map(rollout, [(settings, *found, TEST_SEED + index) for index in range(TEST_EPISODES)])
            score = float(np.mean([total for _, total, _ in tests]))
            print(f"{name} {iteration} {time.monotonic() - start:.0f} s: {score:.0f}", flush=True)
            if score > best["score"]:
                best = {"score": round(score, 1), "weights": found[0].tolist(), "offset": found[1].tolist()}
    return best


def main() -> None:
    """Searches, and stores policies that are better than the present ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=sorted(SEARCHES))
    parser.add_argument("--minutes", type=float, default=3.0, help="minutes per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=cores(), help="number of processes")
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for name in arguments.tasks:
            experts = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
            found = search(name, arguments.minutes, arguments.seed, pool)
            if found["score"] > experts.get(name, {"score": -np.inf})["score"]:
                experts[name] = found
                lines = [f' "{key}": {json.dumps(experts[key])}' for key in sorted(experts)]
                PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
