"""JSON and JSONL files that describe a data set."""

import json
from collections.abc import Iterator
from typing import Any

from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.places import Place, size

LARGEST_JSON = 2**26
"""Bytes of a file: the largest published descriptions have a few megabytes."""
LONGEST_LINE = 2**22
"""Bytes."""


def json_object(file: Place) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: it is not there.
        BrokenRecord: it is too large, is not JSON, or holds something other than an object.
    """
    if size(file) > LARGEST_JSON:
        raise BrokenRecord(f"{file} has more than {LARGEST_JSON:,} bytes, which no description has: copy it again")
    return parsed_object(file.read_bytes(), str(file))


def json_rows(file: Place) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, one in memory at a time, each with its line, counted from 1.

    Raises:
        FileNotFoundError: it is not there.
        BrokenRecord: a line is too long, is not JSON, or holds something other than an object.
    """
    with file.open("rb") as lines:
        row = 0
        # `for line in lines` would read a line of any length; one byte more than allowed shows that it is longer.
        while line := lines.readline(LONGEST_LINE + 1):
            row += 1
            if len(line) > LONGEST_LINE:
                raise BrokenRecord(f"{file}, line {row} has more than {LONGEST_LINE:,} bytes: copy it again")
            if line.strip():
                yield row, parsed_object(line, f"{file}, line {row}")


def is_count(value: Any) -> bool:
    """Whether a value of JSON is a whole number from 0 that every other program would read as the same."""
    # `True` is an int in Python. From 2^53 on, readers that take JSON's numbers for doubles round them.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def parsed_object(content: bytes | str, where: str) -> dict[str, Any]:
    """The object that a text of JSON is.

    Raises:
        BrokenRecord: it is not JSON, or another value.
    """
    try:
        value = json.loads(content)
    # UnicodeDecodeError is a ValueError; lists in lists in lists end Python's parser with RecursionError.
    except (ValueError, RecursionError) as error:
        raise BrokenRecord(f"{where} is damaged ({error}): copy it again") from error
    if not isinstance(value, dict):
        raise BrokenRecord(f"{where} must hold an object, got {value!r:.60}: copy it again")
    return value
