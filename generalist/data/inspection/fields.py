"""The fields of a data set: what each is used for, and the numbers of those that are numbers.

Dimension key: D numbers of a value, R rows of a sample.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from generalist.data.formats.episodes import Field
from generalist.data.inspection.problems import Kind, Problem, counted, listed
from generalist.data.mapping import FieldMapping
from generalist.data.statistics import QUANTILES, Numbers, Statistics

CHOICES = 8
"""Different values up to which a number is taken for a choice, such as a gripper that is open or closed."""
NEAR_CONSTANT = 0.995
"""Share of the steps that have one value, from which on a number is nearly constant."""
SATURATED = 0.3
"""Share of the steps at the lowest or highest value, from which on a number is cut off."""
OUTLIER = 50.0
"""Deviations from the mean, beyond which a value is an outlier."""
ROWS = 100
"""Of a sample, below which shares say little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """How the numbers of a field are distributed, (D,) each."""

    constant: Bool[np.ndarray, "D"]
    near_constant: Bool[np.ndarray, "D"]
    saturated: Bool[np.ndarray, "D"]
    outlier: Bool[np.ndarray, "D"]


def uses(mapping: FieldMapping) -> dict[str, str]:
    """Key of a field → what it is used for."""
    found = {key: f"observation {name!r}" for name, key in mapping.observation.items()}
    found |= {key: f"action {name!r}" if name else "action" for name, key in mapping.action.items()}
    extra = {"instruction": mapping.instruction, "reward": mapping.reward}
    return found | {key: name for name, key in extra.items() if key is not None}


def shape_of(numbers: Numbers) -> Shape:
    """What a field's statistics show."""
    rows = numbers.rows.reshape(len(numbers.rows), -1).astype(np.float64)  # (R, D)
    # NaN compares as unequal to everything, and so counts for none of the shares.
    rows = np.where(np.isfinite(rows), rows, np.nan)
    # (D,)
    none = np.zeros(rows.shape[1], bool)
    # Constant is exact, from all steps; the others are shares of the sample.
    if len(rows) < ROWS:
        return Shape(constant=numbers.constant, near_constant=none, saturated=none, outlier=none)
    # A gripper that is open or closed is always at its lowest or highest value, and rightly so.
    several = np.array([len(np.unique(column[~np.isnan(column)])) > CHOICES for column in rows.T])
    # (D,)
    frequent = np.array([_most(column) for column in rows.T])
    at_end = ((rows == numbers.low) | (rows == numbers.high)).mean(axis=0)
    is_float = numbers.rows.dtype.kind == "f"
    # From the whole data set, not the sample: outliers are rare.
    apart = np.maximum(numbers.high - numbers.mean, numbers.mean - numbers.low)
    return Shape(
        constant=numbers.constant,
        near_constant=(frequent >= NEAR_CONSTANT) & ~numbers.constant,
        # Whole numbers are levels or counters, whose ends are values like others.
        saturated=(at_end >= SATURATED) & several & is_float,
        outlier=(apart > OUTLIER * numbers.deviation) & several & ~numbers.constant,
    )


def _most(column: Float[np.ndarray, "R"]) -> float:
    """Share of the most frequent value."""
    _, counts = np.unique(column, return_counts=True)
    return float(counts.max() / len(column))


def names_of(field: Field, count: int) -> list[str]:
    """Of a field's numbers, as the files have them or by their places."""
    if len(field.names) == count:
        # Names of another count would name the wrong numbers.
        return list(field.names)
    return [field.key] if not field.shape else [f"{field.key}[{number}]" for number in range(count)]


def described(fields: Mapping[str, Field], mapping: FieldMapping, found: Statistics) -> list[dict[str, Any]]:
    """Every field, those that are used first."""
    used = uses(mapping)
    # In the order of the mapping; all others, whose place is that behind the last, by their keys.
    order = sorted(fields, key=lambda key: ([*used, key].index(key), key))
    return [_described(fields[key], used.get(key), found.fields.get(key)) for key in order]


def _described(field: Field, use: str | None, numbers: Numbers | None) -> dict[str, Any]:
    about: dict[str, Any] = {
        "key": field.key,
        "kind": field.kind,
        "shape": list(field.shape),
        "dtype": field.dtype,
        "level": field.level,
        "used_as": use,
        "numbers": [],
    }
    if numbers is None:
        return about
    shape, quantiles = shape_of(numbers), numbers.quantiles
    about["numbers"] = [
        {
            "name": name,
            "low": number(numbers.low[place]),
            "high": number(numbers.high[place]),
            "mean": number(numbers.mean[place]),
            "deviation": number(numbers.deviation[place]),
            "quantiles": {f"{share:g}": number(quantiles[at, place]) for at, share in enumerate(QUANTILES)},
            "not_finite": int(numbers.not_finite[place]),
            **{name: bool(flags[place]) for name, flags in dataclasses.asdict(shape).items()},
        }
        for place, name in enumerate(names_of(field, len(numbers.mean)))
    ]
    return about


def number(value: Any) -> float | None:
    """A number for JSON, which has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


REMEDIES: dict[Kind, tuple[str, str]] = {
    "constant": (
        "never changes",
        "nothing can be learnt from it: check that it was recorded, or leave the field out of the mapping",
    ),
    "near_constant": (
        f"has one value in {NEAR_CONSTANT:.1%} of the steps or more",
        "its few other values are seen rarely: check that it was recorded, or record more of them",
    ),
    "saturated": (
        f"is at its lowest or highest value in {SATURATED:.0%} of the steps or more",
        "values may have been cut off: check limits and units of the recording",
    ),
    "outlier": (
        f"has values beyond {OUTLIER:g} deviations from the mean",
        "a few wrong values stretch statistics and bins: find and mend them, or leave out their episodes",
    ),
}
"""Kind of a problem with a field's numbers → what it is, and what to do about it."""


def problems(part: str, fields: list[dict[str, Any]]) -> list[Problem]:
    """What is wrong with the numbers of fields that are used, as `described` gives them. Rewards may be anything."""
    found = []
    for field in fields:
        # What is not used can do no harm.
        if field["used_as"] in (None, "reward"):
            continue
        for kind, (what, remedy) in REMEDIES.items():
            names = [one["name"] for one in field["numbers"] if one[kind]]
            if names:
                numbers = f"{counted(len(names), 'number')} of {len(field['numbers'])} ({listed(names)})"
                found.append(Problem(kind=kind, part=part, where=field["key"], what=f"{numbers} {what}", remedy=remedy))
    return found
