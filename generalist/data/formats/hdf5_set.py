"""Episodes in HDF5 files: some rows of the arrays in a group each.

Dimension key: N episodes, F files, n episodes of a file, T steps of an episode.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from generalist.data.formats.arrays import array_field, check_rows, check_values, first_fields, told_field, told_value
from generalist.data.formats.columns import Column, decode_image
from generalist.data.formats.episodes import EpisodeSet, Field, Opening, RawEpisode
from generalist.data.formats.faults import BrokenRecord, Unread
from generalist.data.formats.hdf5 import Opened, arrays, find, opened
from generalist.data.formats.hdf5_arrays import StoredArray, StoredFrames
from generalist.data.formats.index import Arrays, Scan, indexed
from generalist.data.formats.places import Place

Told = Mapping[str, str | np.ndarray]
"""Values of an episode by key."""


def scanned(
    names: Sequence[str],
    lengths: Sequence[int] | Int[np.ndarray, "n"],
    broken: Mapping[int, str],
    *,
    starts: Int[np.ndarray, "n"] | None = None,
    rows: int | None = None,
    instructions: Sequence[str] | None = None,
    rate: float = 0.0,
) -> dict[str, np.ndarray]:
    """The index of a file of n episodes.

    Args:
        names: of the group of each episode.
        lengths: steps of each; 0 for a broken one.
        broken: number of an episode → why it can't be read.
        starts: rows before each in the arrays of its group; None: they begin with it.
        rows: of the arrays in a group; None: as many as the episode has steps.
        instructions: of each, empty for none; None: they have none.
        rate: steps per second; 0: the file does not say.
    """
    steps = np.array(lengths, np.int64)
    return {
        # As bytes: a U array takes 4 bytes per letter, for a hundred thousand names.
        "names": np.array([name.encode() for name in names], "S"),
        "instructions": np.array([text.encode() for text in instructions or [""] * len(names)], "S"),
        "lengths": steps,
        "starts": np.zeros_like(steps) if starts is None else starts,
        "rate": np.array([rate]),
        "rows": steps if rows is None else np.full_like(steps, rows),
        "broken": np.array(list(broken), np.int64),
        "reasons": np.array(list(broken.values()), "U"),
    }


class Hdf5Set(EpisodeSet):
    """A data set in F HDF5 files of one layout, which a subclass knows.

    Args:
        files: of the data set, in their order.
        scan: gives the index of one, as `scanned` makes it.
        kind: name of that index.
    """

    within: ClassVar[str] = ""
    """Path of the group that holds the groups of episodes."""
    of_steps: ClassVar[tuple[str, ...]]
    """Arrays that must hold a value for each step, or groups of them; whether others do is told by their length."""
    passed_over: ClassVar[tuple[str, ...]] = ()
    """Groups that hold nothing of an episode."""

    def __init__(self, place: Place, opening: Opening, files: list[Place], scan: Scan, kind: str):
        super().__init__(place, opening)
        if not files:
            raise FileNotFoundError(f"there are no HDF5 files in {place}: give the folder that has them")
        self._all = files
        found = indexed(files, scan, kind=kind, opening=opening)
        wanted = self.wanted(found)
        # (N,): the number of each episode's file
        self._file = np.repeat(np.arange(len(files)), [int(keep.sum()) for keep in wanted])
        self._names, self._instructions, self._starts, self._rows, self.lengths = (
            np.concatenate([one[name][keep] for one, keep in zip(found, wanted, strict=True)])
            for name in ("names", "instructions", "starts", "rows", "lengths")
        )
        self.rate = float(found[0]["rate"][0]) or None
        # Broken episodes have numbers within their file, before a split was chosen: now they get those in the
        # whole set.
        number = np.cumsum(np.concatenate(wanted)) - 1
        before = np.cumsum([0, *(len(keep) for keep in wanted)])
        self._broken = {
            int(number[first + at]): str(reason)
            for first, one, keep in zip(before[:-1], found, wanted, strict=True)
            for at, reason in zip(one["broken"], one["reasons"], strict=True)
            if keep[at]
        }
        if not len(self.lengths):
            raise ValueError(f"{place} has no episodes: copy it again, or give another folder")
        # A key need not be the path: Minari's `_index_0` is called `0`.
        self._paths: dict[str, str] = {}
        self.fields = first_fields(self, self._fields)

    def wanted(self, found: list[Arrays]) -> list[Bool[np.ndarray, "n"]]:
        """Which episodes of each file belong to the split that is opened."""
        return [np.ones(len(one["lengths"]), bool) for one in found]

    def key(self, path: str) -> str:
        """The key of the field that an array of an episode's group is."""
        return path

    def surplus(self, key: str) -> int:
        """How many rows more than steps an array may have: values after the last action."""
        return 0

    def declared(self, field: Field, array: StoredArray, where: str) -> Field:
        """A field with what the format says of it beyond its array.

        Raises:
            BrokenRecord: the two don't agree.
        """
        return field

    def told(self, index: int, file: Opened, group: Any) -> Told:
        """Values of an episode that stand elsewhere than in arrays of its group."""
        said = self._instructions[index].decode()
        return {"instruction": said} if said else {}

    @property
    def files(self) -> list[Place]:
        """See `EpisodeSet.files`."""
        return self._all

    def where(self, index: int) -> str:
        """See `EpisodeSet.where`."""
        # D4RL's episodes have no group of their own, and thus no name.
        name = self._names[index].decode() or f"rows from {self._starts[index]:,} on"
        return f"{self._all[self._file[index]]}, {name}"

    def broken(self) -> Mapping[int, str]:
        """See `EpisodeSet.broken`."""
        return self._broken

    def read(self, index: int, keys: Collection[str]) -> RawEpisode:
        """See `EpisodeSet.read`."""
        if index in self._broken:
            raise BrokenRecord(self._broken[index])
        columns: dict[str, Column] = {}
        values: dict[str, Any] = {}
        final: dict[str, Column] = {}
        where, fields = self.where(index), {key: self.fields[key] for key in keys}
        with self._reading(index) as (file, group):
            told = None
            for key, field in fields.items():
                if field.level == "episode" and key not in self._paths:
                    # Read once per episode, and only if one of the keys needs it.
                    told = self.told(index, file, group) if told is None else told
                    values[key] = told_value(field, told, where)
                    continue
                array = StoredArray(file, group, self._paths[key], where)
                if field.level == "step":
                    # (T, ...) or (T + 1, ...), whose last value is that after the last action
                    column, length = self._column(field, array, index), int(self.lengths[index])
                    columns[key] = column[:length]
                    if len(column) > length:
                        final[key] = column[length:]
                else:
                    values[key] = array.value(field, where)
        return RawEpisode(columns=columns, values=values, final=final)

    @contextlib.contextmanager
    def _reading(self, index: int) -> Iterator[tuple[Opened, Any]]:
        """The file and the group of an episode."""
        where = self.where(index)
        path = "/".join(part for part in (self.within, self._names[index].decode()) if part)
        with opened(self._all[self._file[index]], where) as file:
            yield file, find(file.content, path, where)

    def _column(self, field: Field, array: StoredArray, index: int) -> Column:
        """The values of an episode's steps and, where the format has it, the one after the last action."""
        where = self.where(index)
        self._check_rows(field.key, array, index)
        # Whether an array has the surplus value is told by its length, not by its name: `infos` of Minari come
        # both ways.
        first, surplus = int(self._starts[index]), array.rows - int(self._rows[index])
        rows = range(first, first + int(self.lengths[index]) + (surplus if self.surplus(field.key) else 0))
        if field.kind != "image":
            check_values(field, array.shape, array.dtype, where)
            return array.read(rows)
        if not array.is_encoded:
            # (rows, H, W) of grey as (rows, H, W, 1)
            shape = array.shape if len(array.shape) == 4 else (*array.shape, 1)
            check_values(field, shape, array.dtype, where)
        place = self._all[self._file[index]]
        # Images are not read with the episode: a window needs some of them only.
        return StoredFrames(place, array.name, rows, field.shape, f"{where}, {field.key!r}")

    def _check_rows(self, key: str, array: StoredArray, index: int) -> None:
        rows = int(self._rows[index])
        check_rows(key, array.rows, tuple(range(rows, rows + self.surplus(key) + 1)), self.where(index))

    def _fields(self, index: int) -> dict[str, Field]:
        where, fields, paths, unread = self.where(index), {}, {}, {}
        with self._reading(index) as (file, group):
            for path in arrays(group, where, unread, self.passed_over):
                key = self.key(path)
                try:
                    fields[key] = self._field(key, StoredArray(file, group, path, where), index)
                    paths[key] = path
                except Unread as error:
                    unread[key] = str(error)
            self._paths, self.unread = paths, unread
            told = self.told(index, file, group)
        # Every array was of a kind that is not read; its reason says more than that there is nothing.
        if not any(field.level == "step" for field in fields.values()):
            raise BrokenRecord(next(iter(unread.values()), f"{where} has no values of steps: take it out"))
        return fields | {key: told_field(key, value, where) for key, value in told.items() if key not in fields}

    def _field(self, key: str, array: StoredArray, index: int) -> Field:
        where = self.where(index)
        # With the slash, so that `obs` does not stand for `obs_normalized` too.
        if any(f"{key}/".startswith(f"{one}/") for one in self.of_steps):
            self._check_rows(key, array, index)
        elif not array.shape or not 0 <= array.rows - self._rows[index] <= self.surplus(key):
            # An array of another length than the episode is a value of the whole; it may have another one
            # elsewhere.
            field = array_field(key, array.shape, array.dtype, where, level="episode")
            return dataclasses.replace(field, shape=(None,) * len(field.shape))
        if array.dtype == object:
            return self.declared(encoded_field(key, array, where), array, where)
        return self.declared(array_field(key, array.shape[1:], array.dtype, where), array, where)


def encoded_field(key: str, array: StoredArray, where: str) -> Field:
    """The field of an array of encoded images, as the first one is.

    Raises:
        BrokenRecord: that can't be read.
    """
    first = decode_image(array.encoded(range(1))[0], f"{where}, {key!r}, frame 0")
    return Field(key=key, kind="image", shape=first.shape, dtype="uint8")
