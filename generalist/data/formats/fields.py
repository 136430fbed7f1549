"""Fields of entries in annotations of other projects, checked one by one: a message names the file, the entry and the field."""

from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, UInt8

from generalist.data.files import DocumentError, check_letters
from generalist.tokenizers.locations import place_in

Kind = TypeVar("Kind", int, str, list, dict)

_KINDS: dict[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}
LARGEST = 2**53
"""What a number may be: larger ones are no longer exact in JSON."""


def field(entry: Any, keys: str | tuple[str, ...], kind: type[Kind], where: str) -> Kind:
    """A field of an entry.

    Args:
        entry: what a file holds where an object should be.
        keys: the field's name, or those that it had in several versions: the first that is there counts.
        kind: its type.
        where: file and entry, for messages.

    Raises:
        DocumentError: the entry is no object, lacks the field, or holds something else in it.
    """
    value = _value(entry, keys, where)
    # `type`, since a boolean is an int for `isinstance`.
    if type(value) is not kind or (type(value) is int and abs(value) >= LARGEST):
        raise DocumentError(
            f"{where}: its {_name(keys)} is {shown(value)} instead of {_KINDS[kind]}: get the file again"
        )
    if isinstance(value, str):
        check_letters(value, f"{where}: its {_name(keys)}")
    return value


def optional(entry: Any, key: str, kind: type[Kind], where: str, default: Kind) -> Kind:
    """A field of an entry, or the default if it is missing or null.

    Raises:
        DocumentError: as `field`.
    """
    return default if _value(entry, key, where) is None else field(entry, key, kind, where)


def check_no_places(text: str, where: str) -> None:
    """Checks that a text has no location tokens: they would be read as a place, or have no id.

    Raises:
        DocumentError: it has one.
    """
    if place := place_in(text):
        raise DocumentError(
            f"{where} has {place} in a text, which is how a place is written: get the file again, or take it out"
        )


def check_once(numbers: list[int], row: str, kind: str) -> None:
    """Checks that every number is there once.

    Args:
        numbers: by which others refer to the rows, in the order of the rows.
        row: file and kind of row, to which the row's place from 1 is added in messages.
        kind: what has the numbers.

    Raises:
        DocumentError: one is there twice.
    """
    first: dict[int, int] = {}
    for at, one in enumerate(numbers, 1):
        if one in first:
            raise DocumentError(
                f"{row} {at}: {kind} {one} has {row.rsplit(maxsplit=1)[-1]} {first[one]} too: get the file again, or take one of "
                "them out"
            )
        first[one] = at


def number(entry: Any, keys: str | tuple[str, ...], where: str) -> float:
    """A field with a finite number, such as a side of a box.

    Raises:
        DocumentError: as `field`.
    """
    value = _value(entry, keys, where)
    # `not <` also refuses NaN.
    if type(value) not in (int, float) or not abs(value) < LARGEST:
        raise DocumentError(f"{where}: its {_name(keys)} is {shown(value)} instead of a number: get the file again")
    return float(value)


def shown(value: Any) -> str:
    """A value in a message. Of lists and objects the type alone: one that holds itself many times has no end."""
    return (
        f"{value!r:.60}" if isinstance(value, str | int | float | None) else _KINDS.get(type(value), "something else")
    )


def packed(texts: list[str]) -> tuple[UInt8[np.ndarray, "bytes"], Int[np.ndarray, "N"]]:
    """Texts as arrays that an index can hold: all their bytes, and where each ends."""
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(one) for one in encoded], dtype=np.int64)


def unpacked(content: UInt8[np.ndarray, "bytes"], ends: Int[np.ndarray, "N"], index: int) -> str:
    """One of the texts that `packed` took."""
    return content[int(ends[index - 1]) if index else 0 : int(ends[index])].tobytes().decode()


def _value(entry: Any, keys: str | tuple[str, ...], where: str) -> Any:
    if not isinstance(entry, dict):
        raise DocumentError(f"{where} holds {shown(entry)} instead of an object: get the file again")
    names = (keys,) if isinstance(keys, str) else keys
    return next((entry[name] for name in names if name in entry), None)


def _name(keys: str | tuple[str, ...]) -> str:
    return keys if isinstance(keys, str) else " or ".join(keys)
