"""Recomputes the numbers of suites and tasks in a results file from the episodes in it.

Dimension key: N episodes of a task.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from generalist.eval.results.checks import same
from generalist.eval.results.scores import bootstrap, domain, percent


def percents(task: Mapping[str, Any]) -> Float[np.ndarray, "N"]:
    """Percents of a task's episodes, in their order in the file."""
    # Between the file's own reference scores, not today's: a newer version may have measured them again.
    random, expert = task["random_score"], task["expert_score"]
    return np.array([percent(episode["score"], random, expert) for episode in task["episodes"]])


def check_suite(suite: str, summary: Mapping[str, Any]) -> None:
    """Checks the numbers of a suite's tasks, then those of all its tasks together.

    Raises:
        ValueError: the first number that differs, by its name.
        KeyError, TypeError: the summary lacks something.
    """
    tasks = summary["tasks"]
    # Tasks first: an edited episode changes the suite's numbers too, but the message should name the task.
    for name, task in tasks.items():
        _check_task(name, task)
    for key, found in domain([percents(task) for task in tasks.values()]).items():
        # Earlier versions stored fewer of these numbers.
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
    """Checks a task's own numbers."""
    scores = percents(task)
    same(f"mean score of {name}", task["score"], float(np.mean([one["score"] for one in task["episodes"]])), "episodes")
    same(f"mean of {name}", task["percent"], dataclasses.asdict(bootstrap([scores])), "episodes")
    # The file stores no flag per episode; an episode of all steps counts as cut off even if it also ended by itself.
    cut_off = sum(one["steps"] >= task["max_steps"] for one in task["episodes"])
    same(f"number of cut off episodes of {name}", task["cut_off"], cut_off, "episodes")
