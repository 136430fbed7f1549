"""Timestamps against each other and against the rate at which a data set says that it was recorded.

Dimension key: N episodes.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from generalist.data.formats.episodes import EpisodeSet, Field
from generalist.data.inspection.fields import number
from generalist.data.inspection.problems import Problem, counted, listed

NAME = re.compile(r"(time_?stamps?|time)(_?(s|sec|seconds|ms|us|ns))?")
"""Last part of the key of a field with timestamps."""
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
TOLERANCE = 0.05
"""Share by which the time between two steps may differ from what the rate says."""


def fields_with_times(fields: Mapping[str, Field]) -> list[str]:
    """Keys of the fields of steps that are timestamps, by their names."""
    return [
        key
        for key, field in fields.items()
        if field.kind == "number"
        and field.level == "step"
        # Vectors of times are measurements rather than the step's own time.
        and field.shape in ((), (1,))
        and NAME.fullmatch(re.split(r"[/.]", key)[-1])
    ]


def check(
    part: str, episodes: EpisodeSet, key: str, times: Shaped[np.ndarray, "N"]
) -> tuple[dict[str, Any], list[Problem]]:
    """What a field of timestamps shows.

    Args:
        times: `scan.TIMES` (N,).
    """
    # NaN stands for episodes of one step, and compares as false.
    steps = times["step"][times["step"] > 0]
    step = float(np.median(steps)) if len(steps) else float("nan")
    # Files rarely say in which unit their times are.
    unit = _unit(step, episodes.rate)
    rate = 1 / (step * UNITS[unit]) if len(steps) else float("nan")
    about = {
        "key": key,
        "step": number(step),
        "unit": unit,
        "rate": number(rate),
        "back": int(times["back"].sum()),
        "same": int(times["same"].sum()),
        "gaps": int(times["gaps"].sum()),
    }
    found = [_of_kind(part, episodes, key, times, *kind) for kind in KINDS]
    # A wrong rate shows in no single value: windows and chunks would last longer or shorter than meant.
    if episodes.rate is not None and len(steps) and abs(rate - episodes.rate) > TOLERANCE * episodes.rate:
        what = f"its steps are {step:.4g} {unit} apart ({rate:.4g} per second), but the files say {episodes.rate:g} per second"
        remedy = "one of both is wrong: set the right rate in the files, or don't use data.recorded.rate"
        found.append(Problem(kind="timestamps", part=part, where=key, what=what, remedy=remedy))
    return about, [one for one in found if one is not None]


KINDS = (
    ("back", "back_at", "backward step", "the steps are not in order, or two episodes were joined: sort or split them"),
    ("same", "same_at", "repeated time", "steps were recorded twice: take out one of each two"),
    (
        "gaps",
        "gap_at",
        "gap",
        "steps are missing: actions there do not fit what was seen; record again, or split the episode",
    ),
)
"""Fields of `scan.TIMES` with their number and their first place, and what they say."""


def _of_kind(
    part: str, episodes: EpisodeSet, key: str, times: np.ndarray, count: str, at: str, what: str, remedy: str
) -> Problem | None:
    numbers = np.flatnonzero(times[count]).tolist()
    if not numbers:
        return None
    total = int(times[count].sum())
    named = listed([f"step {int(times[at][one])} of {episodes.where(one)}" for one in numbers], 3)
    told = f"{counted(total, what)} in {counted(len(numbers), 'episode')}: {named}"
    return Problem(kind="timestamps", part=part, where=key, what=told, remedy=remedy)


def _unit(step: float, rate: float | None) -> str:
    """The unit that fits the rate best; seconds where no rate is known."""
    if rate is None or not step > 0:
        return "s"
    # By the logarithm: a factor of a thousand too much is as wrong as one too little.
    return min(UNITS, key=lambda unit: abs(np.log(step * UNITS[unit] * rate)))
