"""What every format of recorded episodes is read as: a set of episodes with random access, as published, nothing converted.

A format is one file of this folder with a subclass of `EpisodeSet` that says in `matches` which folders and files are its own.
What a field means is not in the files: `generalist.data.mapping` says which are observations, which the action.

Dimension key: N episodes, T steps of one.
"""

import abc
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from generalist.data.formats.columns import Column, nbytes
from generalist.data.formats.places import Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """What is stored of every step, or once of an episode, by its key."""

    key: str
    """As the files have it; of nested values joined with `/`."""
    kind: Literal["number", "image", "text"]
    shape: tuple[int | None, ...] = ()
    """Of one value; an image's (H, W, C). None: differs between values."""
    dtype: str = ""
    """NumPy's name of a number's type; empty for texts."""
    names: tuple[str, ...] = ()
    """Of a vector's numbers, where the files say them."""
    level: Literal["step", "episode"] = "step"

    def __post_init__(self) -> None:
        # Complex numbers, times and records have no encoding for a policy, and would fail only when they are
        # tokenized.
        if self.kind == "number" and np.dtype(self.dtype).kind not in "fiub":
            raise ValueError(f"the field {self.key!r} has numbers of the type {self.dtype}, which are not read")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawEpisode:
    """An episode of T steps as its files have it."""

    columns: Mapping[str, Column]
    """Fields of steps, T values each; an observation after the last action is left out."""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the episode: texts as str, numbers as arrays."""
    final: Mapping[str, Column] = dataclasses.field(default_factory=dict)
    """Fields of a step after the last action, where the files have one: one value each, whose action means nothing."""

    def __len__(self) -> int:
        # All columns have T rows: every format checks that while it reads.
        return len(next(iter(self.columns.values())))

    @property
    def nbytes(self) -> int:
        """Memory that it takes, images as they are stored."""
        return sum(map(nbytes, self.columns.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """What opening a data set may use."""

    index: Path | None = None
    """Folder where indices are kept, of all data sets; None: they are built anew each time."""
    workers: int = 1
    """Processes that build an index."""
    split: str = "train"
    """Of data sets that have splits; a data set with only one split gives that."""


class EpisodeSet(abc.ABC):
    """A data set of N episodes in some format.

    Args:
        place: its folder or file.
        opening: where its index is kept.

    Raises:
        FileNotFoundError: a file that it must have is not there.
        ValueError: it is damaged, or no data set of this format; the message names the file.
        ImportError: a package that reads it is not installed; the message names the extra.
    """

    format: ClassVar[str]
    """For people, such as `LeRobot v3.0`."""
    fields: Mapping[str, Field]
    """By key."""
    lengths: Int[np.ndarray, "N"]
    """Steps of each episode; 0 for one that is known to be broken."""
    # Such as LeRobot's `frame_index`: a conversion that kept it would have it beside the one that the new format
    # makes.
    derived: Collection[str] = ()
    """Keys of fields that only number or mark the steps; every format has its own, so that conversions leave them out."""
    # Told by `data inspect`: nothing in a data set is passed over in silence.
    unread: Mapping[str, str] = {}
    """Keys of what is stored but can't be read as a field, with the reason."""
    rate: float | None = None
    """Steps per second, where the files say it."""

    # Subclasses read their index here, so that a damaged set fails before anything is trained.
    def __init__(self, place: Place, opening: Opening):
        self.place, self.opening = place, opening

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    @abc.abstractmethod
    def matches(cls, place: Place) -> bool:
        """Whether a folder or file looks like this format, by the names of its files or its first bytes; opens no more."""

    @property
    @abc.abstractmethod
    def files(self) -> list[Place]:
        """All files that its values come from, in a fixed order: for its fingerprint."""

    @abc.abstractmethod
    def read(self, index: int, keys: Collection[str]) -> RawEpisode:
        """Some fields of an episode. Images are decoded by the column, numbers have the type of the files.

        Args:
            keys: of the fields that are wanted, of steps or of the episode; at least one of steps. What is not wanted is not read
                where the format allows.

        Raises:
            BrokenRecord: it can't be read, or a column has another shape or length than it should; names file and record.
        """

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """File and record of an episode, for messages."""

    def broken(self) -> Mapping[int, str]:
        """Episodes that are known to be broken before they are read, with the reason; records that were lost as a whole have
        numbers from N on."""
        return {}
