"""Is a results file consistent? Its numbers are recomputed from its own episodes and answers, and so is its digest.

A digest is no signature: whoever edits a file can recompute it. It detects accidents. A result is proved by running the
manifest's command again; and an edit is made harder by checking every mean against the episodes that it summarises.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from generalist.eval.results.scores import proportion

TOLERANCE = 1e-9  # relative: another machine may sum in another order


def digest(results: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON (sorted, without spaces) of everything but the digest itself."""
    rest = {name: value for name, value in results.items() if name != "digest"}
    # Canonical, so that the digest does not depend on how the file is indented or its keys are ordered.
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_fewshot(results: Mapping[str, Any]) -> None:
    """Recomputes every number of a file of `generalist eval fewshot` whose answers it contains, then the digest.

    Raises:
        ValueError: the first number that differs, by its name.
        KeyError, TypeError: it is no such file.
    """
    for cell in results["new_words"]["cells"] if "new_words" in results else ():
        for name, answers in cell["answers"].items():
            right = sum(answer == one for answer, one in zip(answers, cell["right"], strict=True))
            found = dataclasses.asdict(proportion(right, len(answers)))
            what = f"accuracy of {name}, {cell['ways']} ways, {cell['shots']} shots"
            same(what, cell[name], found, "answers")
        if cell.get("last"):  # files of earlier versions lack it
            copied = sum(answer == one for answer, one in zip(cell["answers"]["model"], cell["last"], strict=True))
            found = dataclasses.asdict(proportion(copied, len(cell["last"])))
            same(f"copy rate, {cell['ways']} ways, {cell['shots']} shots", cell["copied"], found, "answers")
    # Of benchmarks only the means are recomputed; their bootstrap intervals are covered by the digest.
    for cell in results["fewshot"]["cells"] if "fewshot" in results else ():
        after = f"with {cell['shots']} shots"
        if "copied" in cell:
            _same_means(f"copy rate {after}", cell["copied"], _means(cell, "copied", 100.0))
        if results["fewshot"]["metric"] == "auc":
            continue  # an area is no mean of its answers; only the digest covers it
        _same_means(f"score {after}", cell, _means(cell, "score"))
        for name, baseline in cell.get("baselines", {}).items():
            if baseline is not None:
                _same_means(f"score of {name} {after}", baseline, _means(baseline, "score"))
    check_digest(results)


def _means(cell: Mapping[str, Any], key: str, scale: float = 1.0) -> list[float]:
    """The mean of one number of the answers, for every seed."""
    return [float(np.mean([scale * one[key] for one in several])) for several in cell["answers"]]


def _same_means(what: str, stored: Mapping[str, Any], means: list[float]) -> None:
    same(f"{what} by seed", stored["by_seed"], means, "answers")
    same(what, stored["score"]["value"], float(np.mean(means)), "answers")


def check_digest(results: Mapping[str, Any]) -> None:
    """Checks the digest. Called last: other checks name the number that differs, the digest cannot.

    Raises:
        ValueError: the digest differs.
    """
    if results["digest"] != digest(results):
        raise ValueError(
            "every mean fits its episodes, but the digest does not fit the rest: something else was edited "
            "(a setting, a version, an interval of text), or a number together with all of its episodes"
        )


def same(what: str, stored: Any, found: Any, source: str) -> None:
    """Compares a stored number, interval or profile with the recomputed one.

    Args:
        what: its name, for messages.
        stored: from the file.
        found: recomputed.
        source: what it was recomputed from, for messages.

    Raises:
        ValueError: they differ; the message has both values.
    """
    # A value read as NaN is unequal to everything, and so is reported.
    if isinstance(found, Mapping):
        for key, value in found.items():
            same(what if key == "value" else f"{key} end of the interval of the {what}", stored[key], value, source)
    elif isinstance(found, list):
        if len(stored) != len(found):
            raise ValueError(f"the {what} has {len(stored)} values in the file, not {len(found)}")
        for one, other in zip(stored, found, strict=True):
            same(what, one, other, source)
    elif not math.isclose(stored, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise ValueError(f"the {what} is {stored:.6g} in the file but its {source} give {found:.6g}")
