"""The history of a run: earlier evaluations and the losses of training, as its folder keeps them.

Dimension key: N episodes of a task, n records.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from generalist.eval.results.scores import Estimate, bootstrap, percent

POINTS = 300  # maximum per curve: more than that a chart's width in pixels cannot show


def evaluations(folder: Path, results: Mapping[str, Any]) -> dict[int, dict[str, Estimate]]:
    """Step → domain → percent of the expert, from the finished jobs in `runs/<name>/evaluation/step-<n>/`.

    Only tasks of the results file count, by its reference scores, so that all steps are on one scale. Of several evaluations of
    a step, the one with the most episodes counts.

    Raises:
        ValueError: a file is damaged.
    """
    most: dict[tuple[int, str], list[np.ndarray]] = {}
    for path in sorted(folder.glob("step-*/control-*.json")):
        # control-SUITE-HASH.json
        step, suite = int(path.parent.name.removeprefix("step-")), path.stem.split("-")[1]
        tasks = results["control"].get(suite, {}).get("tasks", {})
        scores = _percents(path, tasks)
        # An evaluation of fewer tasks would give a mean over other tasks.
        if scores and len(scores) == len(tasks) and _count(scores) > _count(most.get((step, suite), [])):
            most[step, suite] = scores
    found: dict[int, dict[str, Estimate]] = {}
    for (step, suite), scores in sorted(most.items()):
        found.setdefault(step, {})[suite] = bootstrap(scores)
    return found


def _count(scores: Sequence[Float[np.ndarray, "_N"]]) -> int:
    return sum(map(len, scores))


def _percents(path: Path, tasks: Mapping[str, Any]) -> list[Float[np.ndarray, "_N"]]:
    """Percents of the episodes of each task in a job's file."""
    by_task: dict[str, list[float]] = {}
    try:
        result = json.loads(path.read_text(encoding="utf-8"))["result"]
        for episode in (
            result if isinstance(result, list) else result["episodes"]
        ):  # an earlier version kept these alone
            task = tasks.get(episode["task"])
            if task is not None:
                scaled = percent(episode["score"], task["random_score"], task["expert_score"])
                by_task.setdefault(episode["task"], []).append(scaled)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__} {error}): delete it") from error
    return [np.array(scores) for scores in by_task.values()]


def metrics(path: Path) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Name → steps and values of the metrics that training logged (`metrics.jsonl`), thinned to `POINTS`; empty without the file.

    Raises:
        ValueError: a record is damaged.
    """
    if not path.exists():
        return {}
    values: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            step = float(record["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is damaged ({type(error).__name__} {error})") from error
        for name, value in record.items():
            if isinstance(value, int | float):
                values.setdefault(name, []).append((step, float(value)))
    return {name: _thinned(np.array(points)) for name, points in values.items()}


def _thinned(points: Float[np.ndarray, "n 2"]) -> tuple[list[float], list[float]]:
    """Steps and values, averaged over neighbouring records if there are too many."""
    # Means, not every n-th record: a chart of single records would show noise.
    parts = np.array_split(points, min(len(points), POINTS))
    steps, values = np.array([part.mean(axis=0) for part in parts]).T  # (points, 2) → (2, points)
    return steps.tolist(), values.tolist()
