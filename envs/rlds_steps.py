"""Interpretation of RLDS data sets of any tool (Ramos et al. 2021): the split to learn from, and the steps that are decisions."""

from pathlib import Path
from typing import Any

import numpy as np

INSTRUCTIONS = ("instruction", "language_instruction")
"""Names under which data sets of other tools store the instruction, of an episode or of each of its steps."""


def is_ours(features: Any) -> bool:
    """Whether a data set was recorded by us, judged by the parts of its episodes and their steps."""
    return {"episode_id", "task", "return"} <= set(features) and "executed_action" in features["steps"].feature


def instruction(episode: Any, default: str) -> str:
    """The instruction of an episode as TFDS parses it: with its steps together, or as a list of steps.

    Raises:
        ValueError: it is not a string.
    """
    steps = episode["steps"]
    first = steps[0] if isinstance(steps, list) and steps else steps
    # The episode's own instruction comes before those of its steps.
    places = [(place, name) for place in (episode, first) for name in INSTRUCTIONS if name in place]
    if not places:
        return default
    place, name = places[0]
    # Of one instruction per step, the first: it holds for the whole episode here.
    value = np.asarray(place[name], object).reshape(-1)[0]
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise ValueError(f"its {name} is no UTF-8 text ({error})") from error
    if not isinstance(text, str):
        raise ValueError(f"its {name} is {text!r:.60}, not a text")
    return text or default


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
        ours: see `is_ours`.
        is_last: flags (T,); None if the steps have none.
        length: T.

    Raises:
        ValueError: it marks another step than the last one.
    """
    if ours or is_last is None or not length:
        return length
    flags = np.asarray(is_last, bool).reshape(-1)
    if flags[:-1].any():
        raise ValueError(f"is_last marks step {int(flags.argmax())} of {length}: store one episode per record")
    # In a data set that marks no step as the last one, every step is a decision.
    return length - bool(flags[-1])
