"""Format numbers of stored files: each file says which rules it was written by, and who reads it checks that it knows them."""

from collections.abc import Mapping
from typing import Any

BEFORE = 1
"""The format of files that say none: they were written before there were numbers."""


class FormatError(ValueError):
    """A file whose format this version of the package does not read; the message says what to do."""


def stored_format(stored: Any, newest: int, where: object) -> int:
    """The format number of a file's contents.

    Args:
        stored: the contents, a JSON value; what is no object has no number.
        newest: the highest number that this version of the package reads.
        where: the file, for the message.

    Raises:
        FormatError: the file is of a newer format than this version of the package reads, or its number is none.
    """
    number = stored.get("format", BEFORE) if isinstance(stored, Mapping) else BEFORE
    if type(number) is not int or number < BEFORE:
        raise FormatError(f"{where} has format = {number!r:.40}, which is no format number: restore the file")
    if number > newest:
        raise FormatError(
            f"{where} has format {number}, but this version of generalist reads formats up to {newest}: update the package"
        )
    return number
