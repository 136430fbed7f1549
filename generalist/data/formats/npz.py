"""Episodes as .npz files of NumPy, one file each.

<name>.npz        arrays (T, ...) by their keys, such as `observations/image` or `observations.image`, and `actions`;
                  scalars and single texts are values of the episode, such as `instruction`

Pickled objects are never read. Members are read one by one, and only those that are wanted.
"""

import contextlib
import math
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped
from numpy.lib import format as npy

from generalist.data.formats.arrays import (
    LARGEST,
    Shape,
    array_field,
    check_rows,
    check_size,
    check_values,
    first_fields,
    native,
    value_of,
)
from generalist.data.formats.columns import ArrayFrames, Column
from generalist.data.formats.episodes import EpisodeSet, Field, Opening, RawEpisode
from generalist.data.formats.faults import BrokenRecord, Unread, naming
from generalist.data.formats.index import Arrays, grouped
from generalist.data.formats.places import Place

ENDING, MEMBER_ENDING = ".npz", ".npy"
MOST = 10_000  # members of a file
# Version 3.0 differs in the names of structured types alone, which are not read.
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
ENCRYPTED = 1  # a bit of a member's flags


class Npz(EpisodeSet):
    """Episodes in the order of their files' names."""

    format = "npz"

    def __init__(self, place: Place, opening: Opening):
        super().__init__(place, opening)
        self._files = npz_files(place)
        if not self._files:
            raise FileNotFoundError(f"there are no {ENDING} files in {place}: give the folder that has them")
        # Many small files: their lengths are indexed together.
        found = grouped(self._files, scan, kind="npz 1", opening=opening)
        self.lengths = found["lengths"]
        self._broken = {int(number): str(found["reasons"][number]) for number in np.flatnonzero(found["reasons"] != "")}
        self.fields = first_fields(self, self._fields)

    @classmethod
    def matches(cls, place: Place) -> bool:
        """See `EpisodeSet.matches`."""
        return bool(npz_files(place))

    @property
    def files(self) -> list[Place]:
        """See `EpisodeSet.files`."""
        return self._files

    def where(self, index: int) -> str:
        """See `EpisodeSet.where`."""
        return str(self._files[index])

    def broken(self) -> Mapping[int, str]:
        """See `EpisodeSet.broken`."""
        return self._broken

    def read(self, index: int, keys: Collection[str]) -> RawEpisode:
        """See `EpisodeSet.read`."""
        if index in self._broken:
            raise BrokenRecord(self._broken[index])
        columns: dict[str, Column] = {}
        values: dict[str, Any] = {}
        where, fields = self.where(index), {key: self.fields[key] for key in keys}
        with _reading(self._files[index]) as archive:
            # Listed anew: a later file may lack a key of the first one.
            members = _members(archive, where)
            lacking = [key for key in keys if key not in members]
            if lacking:
                raise BrokenRecord(f"{where} has no {lacking[0]!r}, which the first episode has: add it")
            # The sum as well, since ten thousand members may each be just small enough.
            if sum(members[key].file_size for key in keys) > LARGEST:
                raise BrokenRecord(f"{where} declares more than {LARGEST:,} bytes: divide it")
            for key, field in fields.items():
                array = self._array(archive, members[key], field, index)
                if field.level == "episode":
                    values[key] = value_of(array)
                else:
                    columns[key] = ArrayFrames(array) if field.kind == "image" else native(array)
        return RawEpisode(columns=columns, values=values)

    def _array(
        self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, field: Field, index: int
    ) -> Shaped[np.ndarray, "..."]:
        where = self.where(index)
        header = _header(archive, member, where)
        if field.level == "step":
            check_rows(field.key, header.shape[0] if header.shape else 0, (int(self.lengths[index]),), where)
        # By the header, before the values are unpacked.
        check_values(field, header.shape, header.dtype, where)
        with archive.open(member) as stream:
            return npy.read_array(stream, allow_pickle=False)

    def _fields(self, index: int) -> dict[str, Field]:
        where, fields, unread = self.where(index), {}, {}
        with _reading(self._files[index]) as archive:
            for key, member in _members(archive, where).items():
                try:
                    header = _header(archive, member, where)
                    # Scalars belong to the episode; everything else must have a row per step, which `_length` has
                    # checked.
                    level: Literal["step", "episode"] = "step" if header.shape else "episode"
                    fields[key] = array_field(key, header.shape[1:], header.dtype, where, level=level)
                except Unread as error:
                    unread[key] = str(error)
        self.unread = unread
        return fields


def npz_files(place: Place) -> list[Place]:
    """A file itself, or the .npz files of a folder by their names."""
    if not place.is_dir():
        return [place] if place.suffix == ENDING else []
    found = (file for file in place.iterdir() if file.suffix == ENDING and not file.name.startswith("."))
    return sorted(found, key=lambda file: file.name)


def scan(file: Place) -> Arrays:
    """The length of an episode, (1,), by the headers of its arrays; 0 if it can't be read, with the reason, (1,)."""
    try:
        steps, reason = _length(file), ""
    except BrokenRecord as error:
        steps, reason = 0, str(error)
    return {"lengths": np.array([steps], np.int64), "reasons": np.array([reason])}


def _length(file: Place) -> int:
    """Steps of an episode.

    Raises:
        BrokenRecord: it has none, or its arrays have different lengths.
    """
    with _reading(file) as archive:
        rows, unread = {}, ""
        for key, member in _members(archive, str(file)).items():
            try:
                shape = _header(archive, member, str(file)).shape
            except Unread as error:
                unread = str(error)
                continue
            if shape:
                rows[key] = shape[0]
    # No array is guessed to be the odd one out: an observation more than actions is a common mistake, and shifts
    # all steps if it is cut off at the wrong end.
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{key}: {count:,}" for key, count in sorted(rows.items()))
        raise BrokenRecord(
            f"{file} has arrays of different lengths ({counts}): give all of them one row per step, without the observation "
            "after the last action, and store values of the whole episode as scalars"
        )
    if not any(rows.values()):
        raise BrokenRecord(unread or f"{file} has no steps: take it out")
    return next(iter(rows.values()))


@contextlib.contextmanager
def _reading(file: Place) -> Iterator[zipfile.ZipFile]:
    """A file, opened; whatever goes wrong with it names it.

    Raises:
        BrokenRecord: it can't be read.
    """
    with naming(file), file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        yield archive


def _members(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a file by their keys; nothing of them is read.

    Raises:
        BrokenRecord: one is encrypted, packed in a way that NumPy does not write, or there twice.
    """
    infos = archive.infolist()
    if len(infos) > MOST:
        raise BrokenRecord(f"{where} has {len(infos):,} members, more than {MOST:,}: divide it")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if not info.filename.endswith(MEMBER_ENDING):
            continue
        # `np.savez(**{"a.b": ...})` and a folder in the zip name the same field.
        key = "/".join(part for part in re.split("[./]", info.filename.removesuffix(MEMBER_ENDING)) if part)
        # NumPy writes stored and deflated members alone; bzip2 and LZMA allow far smaller bombs.
        if info.flag_bits & ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BrokenRecord(f"{where}: {key!r} is encrypted or packed in an unusual way: write it with numpy.savez")
        if key in members:
            raise BrokenRecord(f"{where} has {key!r} twice: write it with another name")
        members[key] = info
    return members


class _Header(NamedTuple):
    shape: Shape
    dtype: np.dtype


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> _Header:
    """Shape and type of an array, of which no more is read.

    Raises:
        Unread: it holds pickled objects.
        BrokenRecord: it is too large, or has another size than it says.
    """
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise Unread(f"{where}: {member.filename} has the version {version}, which is not read: save plain arrays")
        shape, _, dtype = HEADERS[version](stream)
        begin = stream.tell()
    # By the header, so that the message can say what to save instead; `allow_pickle=False` refuses it once more.
    if dtype.hasobject:
        raise Unread(
            f"{where}: {member.filename} holds pickled Python objects, which are never read, since they could run anything: "
            "save arrays of numbers or texts"
        )
    if min(shape, default=0) < 0:
        raise BrokenRecord(f"{where}: {member.filename} has the shape {shape}: save it again")
    check_size(shape, dtype, f"{where}: {member.filename}")
    # The header and the zip's directory must agree: neither alone can make the reader take more memory than
    # checked.
    size = begin + math.prod(shape) * dtype.itemsize
    if member.file_size != size:
        raise BrokenRecord(f"{where}: {member.filename} has {member.file_size:,} bytes, where its header says {size:,}")
    return _Header(shape, dtype)
