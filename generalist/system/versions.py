"""Format numbers of stored files: each file states the format that it was written in, and readers check that they know it."""

from collections.abc import Mapping
from typing import Any

BEFORE = 1
"""The format of files without a number, which were written before there were numbers."""


class FormatError(ValueError):
    """A file in a format that this version of the package does not read; the message has the remedy."""


def stored_format(stored: Any, newest: int, where: object) -> int:
    """The format number of a file's contents.

    Args:
        stored: the contents, a JSON value; one that is not an object has no number.
        newest: the highest number that this version of the package reads.
        where: the file, for the message.

    Raises:
        FormatError: the file is of a newer format than this version of the package reads, or its number is not valid.
    """
    number = stored.get("format", BEFORE) if isinstance(stored, Mapping) else BEFORE
    # `type`, not isinstance: True is an int in Python.
    if type(number) is not int or number < BEFORE:
        raise FormatError(f"{where} has format = {number!r:.40}, which is no format number: restore the file")
    if number > newest:
        raise FormatError(
            f"{where} has format {number}, but this version of generalist reads formats up to {newest}: update the package"
        )
    return number
