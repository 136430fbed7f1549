"""Does a results file fit together? Its numbers are computed again from its own episodes and answers, and its digest too.

A digest is no signature: whoever edits a file can compute it anew. What it finds is a slip. What proves a result is to give
the manifest's command again; what makes an edit hard is that every mean has to fit the episodes it is made of.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from generalist.eval.results.scores import bootstrap, domain, percent, proportion

TOLERANCE = 1e-9  # relative: another machine may sum in another order


def digest(results: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON (sorted, without spaces) of everything but the digest itself."""
    rest = {name: value for name, value in results.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def percents(task: Mapping[str, Any]) -> np.ndarray:
    """Percents of a task's episodes, (N,), in their order in the file."""
    random, expert = task["random_score"], task["expert_score"]
    return np.array([percent(episode["score"], random, expert) for episode in task["episodes"]])


def check(results: Mapping[str, Any]) -> None:
    """Computes every number again that has its episodes or answers in the file, then the digest.

    Raises:
        ValueError: the first thing that does not fit, by its name.
        KeyError, TypeError: it is no results file.
    """
    for suite, summary in results["control"].items():
        _check_suite(suite, summary)
    for policy, suites in results.get("policies", {}).items():
        for suite, summary in suites.items():
            _check_suite(f"{policy} in {suite}", summary)
    for split, naming in results["naming"].items():
        right = sum(one["answer"] == one["thing"] for one in naming["answers"])
        found = dataclasses.asdict(proportion(right, len(naming["answers"])))
        _same(f"accuracy of naming {split}", naming["accuracy"], found, "answers")
    _check_digest(results)


def check_fewshot(results: Mapping[str, Any]) -> None:
    """The same of a file of `generalist eval fewshot`.

    Raises:
        ValueError: the first thing that does not fit, by its name.
        KeyError, TypeError: it is no such file.
    """
    for cell in results["new_words"]["cells"] if "new_words" in results else ():
        for name, answers in cell["answers"].items():
            right = sum(answer == one for answer, one in zip(answers, cell["right"], strict=True))
            found = dataclasses.asdict(proportion(right, len(answers)))
            what = f"accuracy of {name}, {cell['ways']} ways, {cell['shots']} shots"
            _same(what, cell[name], found, "answers")
    for cell in results["fewshot"]["cells"] if "fewshot" in results else ():
        if results["fewshot"]["metric"] == "auc":
            continue  # of no mean; the digest looks after it
        means = [float(np.mean([one["score"] for one in several])) for several in cell["answers"]]
        _same(f"score by seed with {cell['shots']} shots", cell["by_seed"], means, "answers")
        _same(f"score with {cell['shots']} shots", cell["score"]["value"], float(np.mean(means)), "answers")
    _check_digest(results)


def _check_digest(results: Mapping[str, Any]) -> None:
    if results["digest"] != digest(results):
        raise ValueError(
            "every mean fits its episodes, but the digest does not fit the rest: something else was edited "
            "(a setting, a version, an interval of text), or all of a number's episodes with it"
        )


def _check_suite(suite: str, summary: Mapping[str, Any]) -> None:
    """The numbers of a domain's tasks, then those of all together."""
    tasks = summary["tasks"]
    for name, task in tasks.items():
        _check_task(name, task)
    for key, found in domain([percents(task) for task in tasks.values()]).items():
        if key in summary:
            what = "mean" if key == "percent" else key.replace("_", " ")
            _same(f"{what} of {suite}", summary[key], found, "episodes")
    _same(
        f"number of episodes of {suite}", summary["episodes"], sum(len(t["episodes"]) for t in tasks.values()), "tasks"
    )
    _same(
        f"number of cut off episodes of {suite}", summary["cut_off"], sum(t["cut_off"] for t in tasks.values()), "tasks"
    )


def _check_task(name: str, task: Mapping[str, Any]) -> None:
    """A task's own numbers."""
    scores = percents(task)
    _same(
        f"mean score of {name}", task["score"], float(np.mean([one["score"] for one in task["episodes"]])), "episodes"
    )
    _same(f"mean of {name}", task["percent"], dataclasses.asdict(bootstrap([scores])), "episodes")
    cut_off = sum(one["steps"] >= task["max_steps"] for one in task["episodes"])
    _same(f"number of cut off episodes of {name}", task["cut_off"], cut_off, "episodes")


def _same(what: str, stored: Any, found: Any, source: str) -> None:
    """Compares a number, an interval or a profile.

    Raises:
        ValueError: they differ; the message has both.
    """
    if isinstance(found, Mapping):
        for key, value in found.items():
            _same(what if key == "value" else f"{key} end of the interval of the {what}", stored[key], value, source)
    elif isinstance(found, list):
        if len(stored) != len(found):
            raise ValueError(f"the {what} has {len(stored)} values in the file, not {len(found)}")
        for one, other in zip(stored, found, strict=True):
            _same(what, one, other, source)
    elif not math.isclose(stored, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise ValueError(f"the {what} is {stored:.6g} in the file but its {source} give {found:.6g}")
