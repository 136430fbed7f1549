"""What is wrong with data: one entry per kind and place, each with what to do about it."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

# A kind that goes or changes its meaning raises FORMAT of `generalist.experiment.inspection`.
Kind = Literal[
    "broken",
    "constant",
    "does_not_fit",
    "duplicate",
    "empty_instruction",
    "first_action",
    "frozen_camera",
    "last_action",
    "near_constant",
    "not_finite",
    "one_step",
    "outlier",
    "padding",
    "refused",
    "same_actions",
    "saturated",
    "still",
    "timestamps",
    "unread",
]
"""Names that stay: programs read them in the JSON file."""
NAMED = 5
"""Episodes or numbers that a message names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Something found that costs data, or is probably a mistake."""

    kind: Kind
    part: str
    """The data set, or the task of a suite."""
    where: str
    """Field, or file and record."""
    what: str
    remedy: str


def listed(names: Sequence[object], most: int = NAMED) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def counted(number: int, what: str) -> str:
    """`1 episode`, `12 episodes`."""
    return f"{number:,} {what}{'s' * (number != 1)}"
