"""Measures the scripted Atari experts when actions stick, and prints the games' table of docs/tasks.md.

    python benchmarks/sticky.py --episodes 5

Each raw frame repeats the action of the frame before with probability 0.25 (Machado et al. 2018); a planner knows the emulator
without that, and is left out. Random and expert scores without sticking are those of `envs/reference_scores.json`.
"""

import argparse

import numpy as np

from generalist.envs import registry
from generalist.envs.reference import FIRST_SEED
from generalist.envs.suites.atari import AtariEnv, AtariTask
from generalist.envs.task import stream


def play(task: AtariTask, env: AtariEnv, seed: int) -> float:
    """The expert's score in one episode, cut off as in evaluation."""
    observation, _ = env.reset(seed=seed)
    policy = task.expert(env, stream(seed, "expert"))
    score, done, steps = 0.0, False, 0
    while not done and steps < task.max_steps:
        observation, reward, done, _, _ = env.step(policy(observation))
        score, steps = score + float(reward), steps + 1
    return score


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="atari/*", help="shell pattern of the tasks' names")
    parser.add_argument("--episodes", type=int, default=5, help="episodes per game")
    parser.add_argument("--sticky", type=float, default=0.25, help="probability that a raw frame repeats an action")
    arguments = parser.parse_args()
    print(
        f"| game | expert | random | expert score | with sticky {arguments.sticky} | human |\n|---|---|---|---|---|---|"
    )
    for task in registry.tasks(arguments.tasks):
        assert isinstance(task, AtariTask), f"{task.name} is no Atari game"
        sticky = "–"
        if task.rule is not None:
            env = AtariEnv(task.game, sticky=arguments.sticky)
            scores = [play(task, env, FIRST_SEED + episode) for episode in range(arguments.episodes)]
            sticky = f"{np.mean(scores):,.1f}"
        kind = "planner" if task.rule is None else "script"
        human = "–" if task.human_score is None else f"{task.human_score:,.1f}"
        print(
            f"| {task.game} | {kind} | {task.random_score:,.1f} | {task.expert_score:,.1f} | {sticky} | {human} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
