"""Minari's data sets in their Arrow and Parquet layouts; `minari` has the other one, and the metadata.

<id>/data/metadata.json         the spaces of observations and actions, how many episodes
<id>/data/0/metadata.json       total_steps: T; seed, options and what else was kept of the episode
<id>/data/0/part-0.arrow        or part-0.parquet; one table with T + 1 rows, whose last row has an observation and no action
  observations, actions         structs nested as the space is: Dict by names, Tuple by 0, 1, ...; arrays are flat lists
  rewards, terminations, truncations, infos

Dimension key: N episodes, T steps of one.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from generalist.data.formats.arrays import (
    Shape,
    array_field,
    check_values,
    first_fields,
    native,
    told_field,
    told_value,
)
from generalist.data.formats.arrow import read_rows
from generalist.data.formats.columns import ArrayFrames, Column, EncodedFrames, decode_image
from generalist.data.formats.episodes import EpisodeSet, Field, Opening, RawEpisode
from generalist.data.formats.faults import BrokenRecord, Unread, naming
from generalist.data.formats.index import Arrays, grouped
from generalist.data.formats.json_files import is_count, json_object
from generalist.data.formats.minari import METADATA, MISSIONS, data_folder, read_metadata
from generalist.data.formats.places import Place

LAYOUTS = ("arrow", "parquet")
# Names as Minari writes them: `007` beside `7` would be the same episode twice.
NUMBER = r"0|[1-9][0-9]{0,17}"


class MinariArrow(EpisodeSet):
    """Episodes in the order of their numbers, with the same keys as in the HDF5 layout."""

    format = "Minari Arrow"

    def __init__(self, place: Place, opening: Opening):
        super().__init__(place, opening)
        folder = data_folder(place)
        self._metadata = read_metadata(folder)
        if self._metadata.layout not in LAYOUTS:
            raise ValueError(
                f"{folder / METADATA}: data_format is {self._metadata.layout!r}, not {' or '.join(LAYOUTS)}"
            )
        numbers = sorted(int(one.name) for one in folder.iterdir() if re.fullmatch(NUMBER, one.name))
        # Without it the number of steps is not known; episodes that are missing for this are named by `lost`.
        numbers = [number for number in numbers if (folder / str(number) / METADATA).exists()]
        if not numbers:
            raise ValueError(f"{folder} has no episodes: copy it again")
        self._folders = [folder / str(number) for number in numbers]
        found = grouped([one / METADATA for one in self._folders], scan, kind="minari-arrow 1", opening=opening)
        self.lengths = found["lengths"]
        self._broken = {int(number): str(found["reasons"][number]) for number in np.flatnonzero(found["reasons"] != "")}
        self.fields = first_fields(self, self._fields)
        self._broken |= dict(enumerate(self._metadata.lost(set(numbers)), start=len(self)))

    @classmethod
    def matches(cls, place: Place) -> bool:
        """See `EpisodeSet.matches`."""
        folder = data_folder(place)
        return (folder / METADATA).exists() and any(re.fullmatch(NUMBER, one.name) for one in folder.iterdir())

    @property
    def files(self) -> list[Place]:
        """See `EpisodeSet.files`."""
        return [self._metadata.folder / METADATA, *map(self._file, range(len(self)))]

    def where(self, index: int) -> str:
        """See `EpisodeSet.where`."""
        return str(self._file(index))

    def broken(self) -> Mapping[int, str]:
        """See `EpisodeSet.broken`."""
        return self._broken

    def read(self, index: int, keys: Collection[str]) -> RawEpisode:
        """See `EpisodeSet.read`."""
        if index in self._broken:
            raise BrokenRecord(self._broken[index])
        where, fields = self.where(index), {key: self.fields[key] for key in keys}
        stored = self._stored(index)
        columns: dict[str, Column] = {}
        for key, field in fields.items():
            if field.level == "step":
                if key not in stored:
                    raise BrokenRecord(f"{where} has no {key!r}, which the first episode has: add it")
                columns[key] = self._column(field, stored[key], where)
        told = self._told(index, stored) if len(columns) < len(fields) else {}
        values = {key: told_value(field, told, where) for key, field in fields.items() if field.level == "episode"}
        return RawEpisode(columns=columns, values=values)

    def _file(self, index: int) -> Place:
        return self._folders[index] / f"part-0.{self._metadata.layout}"

    def _stored(self, index: int) -> dict[str, "Stored"]:
        where = self.where(index)
        rows = read_rows(self._file(index), int(self.lengths[index]))
        with naming(where):
            # (T,) rows: the last observation was cut off by `read_rows`.
            columns = zip(rows.schema, rows.columns, strict=True)
            return {one.key: one for field, array in columns for one in _leaves(field.name, field, array, where)}

    def _shape(self, stored: "Stored") -> Shape:
        space = self._metadata.spaces.get(stored.key)
        return stored.shape if space is None else space.shape

    def _column(self, field: Field, stored: "Stored", where: str) -> Column:
        # Files of images stay as they are until a window is decoded.
        if field.kind == "image" and stored.is_encoded and not stored.array.null_count:
            return EncodedFrames(stored.array.to_pylist(), field.shape, f"{where}, {field.key!r}")
        # (T, *shape)
        values = native(stored.values(self._shape(stored), where))
        # (T, H, W) of grey to (T, H, W, 1)
        if field.kind == "image" and values.ndim == 3:
            values = values[..., None]
        check_values(field, values.shape, values.dtype, where)
        return ArrayFrames(values) if field.kind == "image" else values

    def _fields(self, index: int) -> dict[str, Field]:
        where, fields, unread = self.where(index), {}, {}
        stored = self._stored(index)
        for key, one in stored.items():
            space = self._metadata.spaces.get(key)
            try:
                if one.is_encoded and space is not None and space.kind == "image":
                    # The first image tells the shape, since its bytes say more than a space that may have been
                    # written wrong; `agreed` compares the two.
                    shape = decode_image(one.array[0].as_py(), f"{where}, {key!r}, frame 0").shape
                    field = Field(key=key, kind="image", shape=shape, dtype="uint8")
                else:
                    values = one.values(self._shape(one), where)
                    field = array_field(key, values.shape[1:], np.dtype("U") if one.is_text else values.dtype, where)
                fields[key] = field if space is None else space.agreed(field, where)
            except Unread as error:
                unread[key] = str(error)
        self.unread = unread
        told = self._told(index, stored)
        return fields | {key: told_field(key, value, where) for key, value in told.items() if key not in fields}

    def _told(self, index: int, stored: Mapping[str, "Stored"]) -> dict[str, str | np.ndarray]:
        with naming(self._folders[index]):
            found = dict(_attributes(json_object(self._folders[index] / METADATA)))
        for key in MISSIONS:
            if key in stored and "instruction" not in found and stored[key].is_text and stored[key].array[0].is_valid:
                found["instruction"] = stored[key].array[0].as_py()
        return found


class Stored(NamedTuple):
    """A part of a step, T of it."""

    key: str
    array: Any
    """`pyarrow.Array`"""
    shape: Shape
    """Of one value, as its column says."""

    @property
    def is_encoded(self) -> bool:
        """Whether it holds files of images."""
        import pyarrow as pa

        return pa.types.is_binary(self.array.type)

    @property
    def is_text(self) -> bool:
        """Whether it holds texts."""
        import pyarrow as pa

        return pa.types.is_string(self.array.type)

    def values(self, shape: Shape, where: str) -> Shaped[np.ndarray, "T ..."]:
        """Its values, (T, *shape).

        Raises:
            Unread: they are neither numbers nor texts.
            BrokenRecord: they have gaps, or another shape.
        """
        import pyarrow as pa

        array, kind = self.array, self.array.type
        # `flatten` leaves out lists that are missing; these are refused below.
        if pa.types.is_fixed_size_list(kind):
            array, kind = array.flatten(), kind.value_type
        if not (pa.types.is_primitive(kind) or self.is_text):
            raise Unread(f"{where}: {self.key!r} holds values of the type {kind}, which are not read")
        if array.null_count or self.array.null_count:
            raise BrokenRecord(f"{where}: {self.key!r} has gaps: copy it again, or take it out")
        # Arrow has only the total of a flat list: (3, 4) and (4, 3) fit alike, so that the space decides.
        if len(array) != len(self.array) * math.prod(shape):
            raise BrokenRecord(
                f"{where}: {self.key!r} has {len(array):,} numbers in {len(self.array):,} steps, where its space in {METADATA} "
                f"says {shape}"
            )
        with naming(f"{where}: {self.key!r}"):
            return array.to_numpy(zero_copy_only=False).reshape(len(self.array), *shape)


def _leaves(key: str, field: Any, array: Any, where: str) -> Iterator[Stored]:
    """The columns within a column, by their keys.

    Raises:
        BrokenRecord: it has gaps.
    """
    import pyarrow as pa

    # A space of spaces; each leaf becomes a field of its own.
    if pa.types.is_struct(field.type):
        if array.null_count:
            raise BrokenRecord(f"{where}: {key!r} has gaps: copy it again, or take it out")
        for number, inner in enumerate(field.type):
            yield from _leaves(f"{key}/{inner.name}", inner, array.field(number), where)
        return
    is_list = pa.types.is_fixed_size_list(field.type)
    # Minari notes the shape of an array beside its flat list.
    said = (field.metadata or {}).get(b"shape", b"")
    shape = tuple(int(size) for size in said.split(b",") if size) if is_list and said else ()
    yield Stored(key, array, shape or ((field.type.list_size,) if is_list else ()))


def _attributes(value: Any, key: str = "") -> Iterator[tuple[str, str | np.ndarray]]:
    """Texts and numbers of an episode's metadata.json, by their keys."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _attributes(inner, f"{key}/{name}" if key else name)
    elif isinstance(value, str):
        yield key, value
    # JSON's integers above 64 bits become objects in NumPy, and are left out.
    elif isinstance(value, int | float) and np.asarray(value).dtype.kind in "fiub":
        yield key, np.asarray(value)


def scan(file: Place) -> Arrays:
    """The length of an episode by its metadata.json, (1,); 0 if that can't be read, with the reason, (1,)."""
    steps, reason = 0, ""
    try:
        with naming(file):
            said = json_object(file).get("total_steps")
        if said and is_count(said):
            steps = said
        else:
            reason = f"{file} says {said!r} for its steps (total_steps): copy it again, or take it out"
    except BrokenRecord as error:
        reason = str(error)
    return {"lengths": np.array([steps], np.int64), "reasons": np.array([reason])}
