"""The user's text files: JSONL, JSON and plain lines, read in the same way everywhere; and names of other files in them.

Texts are UTF-8, with or without a byte-order mark. A line ends at a line feed and nowhere else: `str.splitlines` would also cut
at U+2028, U+2029 and U+0085, which occur within texts. A carriage return before the line feed belongs to the line's end.
"""

import codecs
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from generalist.data.formats.places import Place

MARK = "\ufeff"  # the byte-order mark: at a file's beginning, or anywhere in a file joined from others
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's marks begin with UTF-16's, or contain zero bytes

LONGEST_NAME = 255  # bytes per part of a path, on all usual file systems
LONGEST_LINE = 2**28  # bytes: a longer one is not a line of JSON, or meant to exhaust the memory

AnyPlace = TypeVar("AnyPlace", bound=Place)


class DocumentError(ValueError):
    """A file, an entry of a file or an image that cannot be read; the message names it, what is wrong and the remedy."""


class Line(NamedTuple):
    """A nonempty line of a file."""

    row: int
    """Number of the line, counted from 1; empty lines count, so that an editor shows the same number."""
    offset: int
    """Bytes before it."""
    content: bytes


def lines(path: Place) -> Iterator[Line]:
    """The nonempty lines of a file, one in memory at a time.

    Raises:
        DocumentError: the file is missing, can't be read, is UTF-16 or UTF-32, or has a line of more than 256 MiB.
    """
    try:
        # As bytes: in text mode an offset would be unknown, and one bad byte would hide which line has it.
        with path.open("rb") as file:
            offset = 0
            # `readline` with a bound: iterating over the file would read a line of any length into memory.
            for row, content in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(content) > LONGEST_LINE:
                    raise DocumentError(f"{path} line {row} has more than {LONGEST_LINE:,} bytes: break it up")
                # Before anything else is read: in UTF-16 a line feed is two bytes, and the lines cut here would be nonsense.
                if row == 1 and content.startswith(WIDE):
                    raise DocumentError(f"{path} is UTF-16 or UTF-32: save it as UTF-8")
                if content.strip().removeprefix(codecs.BOM_UTF8):
                    yield Line(row, offset, content)
                offset += len(content)
    except OSError as error:
        raise DocumentError(f"{path} can't be read ({error}): put it there, or name another one") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each nonempty line of a file, without the line's end.

    Raises:
        DocumentError: as `lines`, or a line is not UTF-8.
    """
    for row, _, content in lines(path):
        yield row, decoded(content, f"{path} line {row}").rstrip("\r\n")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Place (file and line) and value of each entry of a JSONL file.

    Raises:
        DocumentError: as `lines`, or a line is not JSON.
    """
    for row, _, content in lines(path):
        yield f"{path} line {row}", parsed_line(content, f"{path} line {row}")


def json_file(path: Place) -> Any:
    """The value of a JSON file.

    Raises:
        DocumentError: the file is missing, can't be read, or is not JSON.
    """
    return parsed(whole(path), str(path))


def whole(path: Place) -> bytes:
    """The content of a file.

    Raises:
        DocumentError: the file is missing, can't be read, or is UTF-16 or UTF-32.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path} can't be read ({error}): put it there, or name another one") from error
    if content.startswith(WIDE):
        raise DocumentError(f"{path} is UTF-16 or UTF-32: save it as UTF-8")
    return content


def parsed_line(content: bytes, where: str) -> Any:
    """The JSON value of a line; messages say what a line of JSONL is, since a file of indented JSON is a common mistake.

    Raises:
        DocumentError: as `parsed`.
    """
    try:
        return parsed(content.rstrip(b"\r\n"), where)
    except DocumentError as error:
        raise DocumentError(
            f"{error}; a line of JSONL holds one whole value: correct the line, or delete it"
        ) from error


def parsed(content: bytes, where: str) -> Any:
    """The JSON value of a line or a file.

    Args:
        content: its bytes.
        where: its place, for messages.

    Raises:
        DocumentError: it is not UTF-8, not JSON, or has an object with a key twice.
    """
    text = decoded(content, where)
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        # Python counts lines from the text's first one, which may be any of the file's.
        fault = f"{error}" if "\n" in text else f"{error.msg} at character {error.pos + 1}"
        raise DocumentError(f"{where} is not JSON ({fault})") from error
    except (ValueError, RecursionError) as error:  # deeply nested brackets exhaust Python's stack
        raise DocumentError(f"{where} is not JSON ({error})") from error


def decoded(content: bytes, where: str) -> str:
    """UTF-8 as text, without a byte-order mark at its beginning.

    Raises:
        DocumentError: it is not UTF-8.
    """
    # Zero bytes are valid UTF-8, but no text has them: they are those of UTF-16 without a mark.
    if b"\0" in content:
        raise DocumentError(f"{where} is not UTF-8 text (it has bytes of zero, like UTF-16): save the file as UTF-8")
    try:
        return content.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        raise DocumentError(f"{where} is not UTF-8 text ({error}): save the file as UTF-8") from error


def check_letters(text: str, what: str) -> None:
    """Checks that a text from JSON, where escapes can write anything, can be encoded as UTF-8.

    Raises:
        DocumentError: it contains half a character.
    """
    if _has_surrogate(text):
        raise DocumentError(f"{what} {text!r:.60} has half a character (a lone surrogate): write the whole character")


def named(folder: AnyPlace, name: str, where: str) -> AnyPlace:
    """The file that an entry names, within the folder.

    Only the name is checked: it comes with the data, so it must not lead out of the folder. A link within the folder, or a folder
    that is one, was made on this machine by its user, and is followed wherever it leads.

    Raises:
        DocumentError: the name leads out of the folder (it is absolute, or has `..`), or is not a possible file name.
    """
    if "://" in name:
        raise DocumentError(
            f"{where}: the image {name!r:.80} is an address: nothing is downloaded; get it, and name its file"
        )
    path = Path(name)
    # Such names make `open` raise a ValueError or an OSError that does not say which entry has them.
    if "\0" in name or _has_surrogate(name) or any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise DocumentError(f"{where}: {name!r:.60} is not a file name: write another one")
    if path.anchor or ".." in path.parts:
        raise DocumentError(
            f"{where}: the image {name!r:.80} is outside the folder of the file: put it (or a link to it) inside, and write its "
            "name from there, such as images/1.png"
        )
    return cast(AnyPlace, folder.absolute() / name)


def is_file(path: Place | str) -> bool:
    """Whether there is such a file; False for a text that cannot be a file name (too long, or with a zero byte)."""
    # Not `Path.is_file` for local files: it raises for a name that is too long.
    return os.path.isfile(path) if isinstance(path, Path | str) else path.is_file()


def _has_surrogate(text: str) -> bool:
    """Whether a text contains half of a surrogate pair, which UTF-8 cannot encode."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as a dictionary; Python's own parser silently keeps the last value of a repeated key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has {twice!r} twice, and one of the values would be lost")
    return found
