"""What an RLDS data set of any tool means (Ramos et al. 2021): which split is learnt from, and which steps are decisions."""

from pathlib import Path
from typing import Any

import numpy as np

OURS = "executed_action"
"""The part of a step that recordings of ours have and those of other tools do not."""


def training_split(info: Any, folder: Path) -> str:
    """The split to learn from: `train`, or the only one.

    Args:
        info: a `tfds.core.DatasetInfo`.
        folder: of the data set, for messages.

    Raises:
        ValueError: there are several, and none is called train; or there is none.
    """
    names = sorted(info.splits)
    if "train" in names:
        return "train"
    if len(names) != 1:
        raise ValueError(
            f"{folder} has {'the splits ' + ', '.join(names) if names else 'no split'}, and none is called train: give a data "
            "set whose episodes are in a split called train"
        )
    return names[0]


def decisions(ours: bool, is_last: Any, length: int) -> int:
    """How many of an episode's steps are decisions. In RLDS the step that `is_last` marks has the final observation, and an
    action that means nothing; in recordings of ours it marks the last decision.

    Args:
        ours: the steps have the part `OURS`.
        is_last: flags (T,); None where the steps have none.
        length: T.
    """
    if ours or is_last is None or not length:
        return length
    return length - bool(np.asarray(is_last).reshape(-1)[-1])
