"""Whether the numbers of suites and tasks in a results file fit their episodes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from generalist.eval.results.checks import same
from generalist.eval.results.scores import bootstrap, domain, percent


def percents(task: Mapping[str, Any]) -> np.ndarray:
    """Percents of a task's episodes, (N,), in their order in the file."""
    random, expert = task["random_score"], task["expert_score"]
    return np.array([percent(episode["score"], random, expert) for episode in task["episodes"]])


def check_suite(suite: str, summary: Mapping[str, Any]) -> None:
    """The numbers of a domain's tasks, then those of all together."""
    tasks = summary["tasks"]
    for name, task in tasks.items():
        _check_task(name, task)
    for key, found in domain([percents(task) for task in tasks.values()]).items():
        if key in summary:
            what = "mean" if key == "percent" else key.replace("_", " ")
            same(f"{what} of {suite}", summary[key], found, "episodes")
    same(
        f"number of episodes of {suite}", summary["episodes"], sum(len(t["episodes"]) for t in tasks.values()), "tasks"
    )
    same(
        f"number of cut off episodes of {suite}", summary["cut_off"], sum(t["cut_off"] for t in tasks.values()), "tasks"
    )


def _check_task(name: str, task: Mapping[str, Any]) -> None:
    """A task's own numbers."""
    scores = percents(task)
    same(f"mean score of {name}", task["score"], float(np.mean([one["score"] for one in task["episodes"]])), "episodes")
    same(f"mean of {name}", task["percent"], dataclasses.asdict(bootstrap([scores])), "episodes")
    cut_off = sum(one["steps"] >= task["max_steps"] for one in task["episodes"])
    same(f"number of cut off episodes of {name}", task["cut_off"], cut_off, "episodes")
