"""Interpretation of RLDS data sets of any tool (Ramos et al. 2021): the split to learn from, and the steps that are decisions."""

from pathlib import Path
from typing import Any

import numpy as np

OURS = "executed_action"
"""A part of a step that only our own recordings have."""


def training_split(info: Any, folder: Path) -> str:
    """The split to learn from: `train`, or the only one.

    Args:
        info: a `tfds.core.DatasetInfo`.
        folder: the data set's folder, for messages.

    Raises:
        ValueError: there are no splits, or several and none is called train.
    """
    names = sorted(info.splits)
    if "train" in names:
        return "train"
    if len(names) != 1:
        raise ValueError(
            f"{folder} has {'the splits ' + ', '.join(names) if names else 'no split'}, and none is called train: use a data "
            "set whose episodes are in a split called train"
        )
    return names[0]


def decisions(ours: bool, is_last: Any, length: int) -> int:
    """Number of an episode's steps that are decisions. In RLDS the step marked `is_last` has the final observation and a
    meaningless action; in our own recordings it is the last decision.

    Args:
        ours: the steps have the part `OURS`.
        is_last: flags (T,); None if the steps have none.
        length: T.
    """
    if ours or is_last is None or not length:
        return length
    return length - bool(np.asarray(is_last).reshape(-1)[-1])
