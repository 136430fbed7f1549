"""The list of all suites, and the tasks in them by name."""

import copyreg
import dataclasses
import difflib
import fnmatch
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generalist.envs.suites import atari, babyai, classic, fetch, metaworld
from generalist.envs.task import Task

SUITES = (atari, babyai, classic, fetch, metaworld)
"""One module each, with its `TASKS`; packages of a suite are imported when a task is made."""

_SCORES = Path(__file__).with_name("reference_scores.json")


def suites() -> list[str]:
    """The names of the suites."""
    return sorted({task.suite for task in _all().values()})


def tasks(pattern: str | Sequence[str] = "*") -> list[Task]:
    """The tasks whose names match one of the shell patterns, in order of suite and name.

    Raises:
        ValueError: a pattern matches no task.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    chosen: set[str] = set()
    for one in patterns:
        matching = fnmatch.filter(_all(), one)
        if not matching:
            raise ValueError(_unknown(one))
        chosen.update(matching)
    return [task for name, task in _all().items() if name in chosen]


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in _all():
        raise ValueError(_unknown(name))
    return _all()[name]


def _unknown(name: str) -> str:
    """The message for a name or pattern that no task has."""
    near = difflib.get_close_matches(name, _all(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"the suites are {', '.join(suites())}"
    return f"no task matches {name!r}: {hint} (`generalist tasks` lists them)"


@functools.cache
def _all() -> dict[str, Task]:
    """Every task with its measured scores, in order of suite; within one, in the suite's own order."""
    # Without the file while it is made: measuring needs the tasks.
    measured = json.loads(_SCORES.read_text(encoding="utf-8")) if _SCORES.exists() else {}
    listed: dict[str, Task] = {}
    for suite in SUITES:
        for task in suite.TASKS:
            # A new task has no row until `benchmarks/reference_scores.py` has run; its scores are then NaN.
            row = measured.get(task.name)
            names = {"random_score": "random", "expert_score": "expert", "scored_episodes": "episodes"}
            scores = {field: row[name] for field, name in names.items()} if row else {}
            listed[task.name] = dataclasses.replace(task, **scores)
            copyreg.pickle(type(task), _by_name)
    return listed


def _by_name(task: Task) -> str | tuple[Any, ...]:
    """How a task is pickled: a listed one by its name, so that its expert need not be."""
    # Identity, not equality: a changed copy of a listed task must keep its changes.
    return (get, (task.name,)) if _all().get(task.name) is task else task.__reduce_ex__(2)
