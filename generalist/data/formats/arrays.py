"""Arrays as files store them: which hold images, numbers or texts, and whether one is what the first episode had.

Dimension key: T steps, *S any shape.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from generalist.data.formats.episodes import EpisodeSet, Field
from generalist.data.formats.faults import BrokenRecord, Unread

# Bytes that a column, or what is read of it at once, may take: more is a mistake, or meant to exhaust the memory.
LARGEST = 2**31
# A one-letter `str` of CPython takes about 50 bytes besides its pointer in the array, whatever the file's type
# says it takes.
OBJECT = 64
CHANNELS = (1, 3, 4)
# Opening a set must not read all of it, as it would where every episode is broken.
TRIED = 20  # episodes that are opened to find one that tells the fields

Shape = tuple[int, ...]


def is_image(shape: Shape, dtype: np.dtype) -> bool:
    """Whether values of a shape are images: 8 bits, (H, W, C)."""
    # By shape and type alone, since keys have no standard names. Channels must come last: of (C, H, W) nothing
    # would say so.
    return dtype == np.uint8 and len(shape) == 3 and shape[-1] in CHANNELS and min(shape) > 0


def array_field(
    key: str, shape: Shape, dtype: np.dtype, where: str, *, level: Literal["step", "episode"] = "step"
) -> Field:
    """The field of values of a shape and a type.

    Raises:
        Unread: they are neither numbers nor texts.
    """
    if dtype.kind in "US":
        return Field(key=key, kind="text", shape=shape, level=level)
    # Left out on purpose: V (records and raw bytes), O (in .npz that is a pickle), c, m and M, which no policy
    # takes.
    if dtype.kind not in "fiub":
        raise Unread(
            f"{where}: {key!r} holds values of the type {dtype}, which are not read: store numbers, booleans or texts"
        )
    # An array of a whole episode is never taken for a picture: a goal map or a mask has the same shape.
    image = level == "step" and is_image(shape, dtype)
    return Field(key=key, kind="image" if image else "number", shape=shape, dtype=dtype.name, level=level)


def check_size(shape: Shape, dtype: np.dtype, what: str) -> None:
    """
    Raises:
        BrokenRecord: an array of that shape is too large to be read at once.
    """
    # `math.prod` of Python's whole numbers: NumPy's would overflow for a shape that is made to do so.
    each = dtype.itemsize if dtype.kind in "fiub" else max(dtype.itemsize, OBJECT)
    if math.prod(shape) * each > LARGEST:
        raise BrokenRecord(
            f"{what} declares {shape} values of the type {dtype}, more than {LARGEST:,} bytes: divide it"
        )


def check_values(field: Field, shape: Shape, dtype: np.dtype, where: str) -> None:
    """Compares what is stored of a field, (T, ...) of steps, with what its values should be.

    Raises:
        BrokenRecord: it has other shapes or another kind of type.
    """
    # (T, ...) to (...)
    one = shape[1:] if field.level == "step" else shape
    if len(one) != len(field.shape) or not all(map(_fits, one, field.shape)):
        raise BrokenRecord(f"{where}: {field.key!r} has values of the shape {one}, where {field.shape} is expected")
    if not _is_of(field, dtype):
        expected = "texts" if field.kind == "text" else field.dtype
        raise BrokenRecord(f"{where}: {field.key!r} has values of the type {dtype}, where {expected} is expected")


def _is_of(field: Field, dtype: np.dtype) -> bool:
    if field.kind == "number":
        # Only the kind, not the width: float32 in one file and float64 in another mean the same.
        return dtype.kind == np.dtype(field.dtype).kind
    return dtype == np.uint8 if field.kind == "image" else dtype.kind in "USO"


def _fits(size: int, should: int | None) -> bool:
    return should in (None, size)


def check_rows(key: str, rows: int, steps: tuple[int, ...], where: str) -> None:
    """
    Raises:
        BrokenRecord: a column has another number of rows than one of `steps`.
    """
    if rows not in steps:
        expected = " or ".join(f"{count:,}" for count in steps)
        raise BrokenRecord(f"{where}: {key!r} has {rows:,} rows, where {expected} are expected")


def native(values: Shaped[np.ndarray, "*S"]) -> Shaped[np.ndarray, "*S"]:
    """Numbers in this machine's order of bytes, texts as an array of str.

    Raises:
        ValueError: a text is no UTF-8.
    """
    if values.dtype.kind in "USO":
        # Texts as objects: NumPy's own type would pad all of them to the longest one, and cut zeros off their
        # ends.
        texts = np.empty(values.shape, object)
        texts.reshape(-1)[:] = [text(value) for value in values.reshape(-1)]
        return texts
    # Big-endian numbers, which HDF5 and .npy may hold, are not taken by JAX and PyArrow.
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def text(value: str | bytes) -> str:
    """A text that a file holds as bytes, with or without the byte of zero at the end that C gives it, or as str.

    Raises:
        ValueError: it is no UTF-8, or has half a character.
    """
    if isinstance(value, bytes):
        return value.rstrip(b"\0").decode("utf-8")
    # JSON's \ud800 alone makes a str that no tokenizer and no file can take: found here rather than in training.
    value.encode("utf-8")
    return str(value)


def value_of(values: Shaped[np.ndarray, "..."]) -> str | Shaped[np.ndarray, "..."]:
    """A value of the episode: a text as str, numbers and several texts as an array.

    Raises:
        ValueError: a text is no UTF-8.
    """
    values = native(values)
    return str(values[()]) if values.dtype == object and values.ndim == 0 else values


def told_field(key: str, value: str | np.ndarray, where: str) -> Field:
    """The field of a value of an episode. Arrays may have other shapes in other episodes.

    Raises:
        BrokenRecord: it holds neither numbers nor a text.
    """
    if isinstance(value, str):
        return Field(key=key, kind="text", level="episode")
    # An option or a goal may well have a length of its own in every episode, so that only the number of
    # dimensions is kept.
    field = array_field(key, value.shape, value.dtype, where, level="episode")
    return dataclasses.replace(field, shape=(None,) * value.ndim)


def told_value(field: Field, told: Mapping[str, str | np.ndarray], where: str) -> str | np.ndarray:
    """A value of an episode, of those that it has.

    Raises:
        BrokenRecord: it is not among them, or of another kind than in the first episode.
    """
    if field.key not in told:
        raise BrokenRecord(f"{where} has no {field.key!r}, which the first episode has: add it, or do not ask for it")
    value = told[field.key]
    array = np.asarray(value)
    check_values(field, array.shape, array.dtype, where)
    return value


def first_fields(episodes: EpisodeSet, fields: Callable[[int], dict[str, Field]]) -> dict[str, Field]:
    """The fields of the first episode that can be read.

    Args:
        fields: gives those of an episode.

    Raises:
        ValueError: none of the first ones can be read.
    """
    # If none is tried, because all were found broken while indexing, that is what the user should read.
    reason = next(iter(episodes.broken().values()), "it has none")
    for index in np.flatnonzero(episodes.lengths)[:TRIED]:
        try:
            return fields(int(index))
        except BrokenRecord as error:
            reason = str(error)
    raise ValueError(f"no episode of {episodes.place} can be read: {reason}")
