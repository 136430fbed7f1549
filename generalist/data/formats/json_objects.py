"""JSON within data sets."""

from typing import Any

from generalist.data.files import DocumentError, parsed
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.places import Place

LARGEST_JSON = 2**28  # bytes


def json_object(content: bytes, where: str) -> dict[str, Any]:
    """The object that a text of JSON is.

    Raises:
        BrokenRecord: it is no JSON, or another value.
    """
    try:
        value = parsed(content, where)
    except DocumentError as error:
        raise BrokenRecord(f"{error}: get it again") from error
    if not isinstance(value, dict):
        raise BrokenRecord(f"{where} is no object of JSON, such as {{}}: get it again")
    return value


def json_file(place: Place) -> dict[str, Any]:
    """The object that a file of JSON holds.

    Raises:
        BrokenRecord: it can't be read, is no JSON, or another value.
    """
    try:
        with place.open("rb") as stream:
            content = stream.read(LARGEST_JSON + 1)
    except OSError as error:
        raise BrokenRecord(f"{place} can't be read ({error}): get it again") from error
    if len(content) > LARGEST_JSON:
        raise BrokenRecord(f"{place} has more than {LARGEST_JSON:,} bytes, more than such files have: get it again")
    return json_object(content, str(place))
