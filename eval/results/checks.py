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

from generalist.eval.results.scores import proportion

TOLERANCE = 1e-9  # relative: another machine may sum in another order


def digest(results: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON (sorted, without spaces) of everything but the digest itself."""
    rest = {name: value for name, value in results.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_fewshot(results: Mapping[str, Any]) -> None:
    """Computes again every number of a file of `generalist eval fewshot` that has its answers in it, then the digest.

    Raises:
        ValueError: the first thing that does not fit, by its name.
        KeyError, TypeError: it is no such file.
    """
    for cell in results["new_words"]["cells"] if "new_words" in results else ():
        for name, answers in cell["answers"].items():
            right = sum(answer == one for answer, one in zip(answers, cell["right"], strict=True))
            found = dataclasses.asdict(proportion(right, len(answers)))
            what = f"accuracy of {name}, {cell['ways']} ways, {cell['shots']} shots"
            same(what, cell[name], found, "answers")
    for cell in results["fewshot"]["cells"] if "fewshot" in results else ():
        if results["fewshot"]["metric"] == "auc":
            continue  # of no mean; the digest looks after it
        means = [float(np.mean([one["score"] for one in several])) for several in cell["answers"]]
        same(f"score by seed with {cell['shots']} shots", cell["by_seed"], means, "answers")
        same(f"score with {cell['shots']} shots", cell["score"]["value"], float(np.mean(means)), "answers")
    check_digest(results)


def check_digest(results: Mapping[str, Any]) -> None:
    """Comes last: what is made of episodes or answers is named by the checks before it.

    Raises:
        ValueError: the digest is another.
    """
    if results["digest"] != digest(results):
        raise ValueError(
            "every mean fits its episodes, but the digest does not fit the rest: something else was edited "
            "(a setting, a version, an interval of text), or all of a number's episodes with it"
        )


def same(what: str, stored: Any, found: Any, source: str) -> None:
    """Compares a number, an interval or a profile.

    Raises:
        ValueError: they differ; the message has both.
    """
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
