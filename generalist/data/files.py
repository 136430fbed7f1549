"""Text files that a user brings: JSONL, JSON and plain lines, read in one way everywhere; and the names of other files in them.

Texts are UTF-8, with or without a byte-order mark. A line ends at a line feed and nowhere else (`str.splitlines` also cuts at
U+2028, U+2029 and U+0085, which stand in texts as they are); a carriage return before it belongs to the end.
"""

import codecs
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from generalist.data.formats.places import Place

MARK = "\ufeff"  # the byte-order mark: at a file's beginning, or anywhere in files that were joined
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # those of UTF-32 begin with the same bytes, or hold bytes of zero

LONGEST_NAME = 255  # bytes of one part
LONGEST_LINE = 2**28  # bytes: more is no line, or meant to exhaust the memory

AnyPlace = TypeVar("AnyPlace", bound=Place)


class DocumentError(ValueError):
    """A file, an entry of one or an image that cannot be read; the message names it, what is wrong and the remedy."""


class Line(NamedTuple):
    """A line of a file that is not empty."""

    row: int
    """Counted from 1."""
    offset: int
    """Bytes before it."""
    content: bytes


def lines(path: Place) -> Iterator[Line]:
    """The lines of a file that are not empty, one in memory at a time.

    Raises:
        DocumentError: it is not there, can't be read, is UTF-16, or has a line of more than 256 MB.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for row, content in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(content) > LONGEST_LINE:
                    raise DocumentError(f"{path} line {row} has more than {LONGEST_LINE:,} bytes: break it up")
                if row == 1 and content.startswith(WIDE):
                    raise DocumentError(f"{path} is UTF-16 or UTF-32: save it as UTF-8")
                if content.strip().removeprefix(codecs.BOM_UTF8):
                    yield Line(row, offset, content)
                offset += len(content)
    except OSError as error:
        raise DocumentError(f"{path} can't be read ({error}): put it there, or name another one") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, as text without their ends, by their numbers.

    Raises:
        DocumentError: as `lines`.
    """
    for row, _, content in lines(path):
        yield row, decoded(content, f"{path} line {row}").rstrip("\r\n")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each entry of a JSONL file stands, and what it holds.

    Raises:
        DocumentError: as `lines`, or a line is not JSON.
    """
    for row, _, content in lines(path):
        yield f"{path} line {row}", parsed_line(content, f"{path} line {row}")


def json_file(path: Place) -> Any:
    """What a JSON file holds.

    Raises:
        DocumentError: it is not there, can't be read, or is not JSON.
    """
    return parsed(whole(path), str(path))


def whole(path: Place) -> bytes:
    """All of a file.

    Raises:
        DocumentError: it is not there, can't be read, or is UTF-16.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path} can't be read ({error}): put it there, or name another one") from error
    if content.startswith(WIDE):
        raise DocumentError(f"{path} is UTF-16 or UTF-32: save it as UTF-8")
    return content


def parsed_line(content: bytes, where: str) -> Any:
    """The JSON value of a line.

    Raises:
        DocumentError: as `parsed`.
    """
    try:
        return parsed(content, where)
    except DocumentError as error:
        raise DocumentError(f"{error}; a line of JSONL holds one whole value") from error


def parsed(content: bytes, where: str) -> Any:
    """The JSON value of a line or a file.

    Raises:
        DocumentError: it is no UTF-8, not JSON, or has a key twice, of which one would be lost.
    """
    text = decoded(content, where)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where} is not JSON ({error})") from error


def decoded(content: bytes, where: str) -> str:
    """UTF-8 as text, without a byte-order mark at its beginning.

    Raises:
        DocumentError: it is no UTF-8.
    """
    if b"\0" in content:
        raise DocumentError(f"{where} is not UTF-8 text (it has bytes of zero, as UTF-16 has): save the file as UTF-8")
    try:
        return content.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        raise DocumentError(f"{where} is not UTF-8 text ({error}): save the file as UTF-8") from error


def check_letters(text: str, what: str) -> None:
    """
    Raises:
        DocumentError: half a character stands in the text, which no file can hold.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DocumentError(f"{what} {text!r:.60} has half a character (a lone surrogate): write it whole")


def named(folder: AnyPlace, name: str, where: str) -> AnyPlace:
    """The file that an entry names, within the folder. What is decided is the name alone: a link within the folder, or the folder
    being one, is the user's own doing and is followed, wherever it leads.

    Raises:
        DocumentError: the name leads out of the folder (it is absolute, or has `..`), or none can be called so.
    """
    if "://" in name:
        raise DocumentError(
            f"{where}: the image {name!r:.80} is an address: nothing is downloaded; get it, and name its file"
        )
    path = Path(name)
    half = any("\ud800" <= letter <= "\udfff" for letter in name)
    if "\0" in name or half or any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise DocumentError(f"{where}: {name!r:.60} is no file's name: write another one")
    if path.anchor or ".." in path.parts:
        raise DocumentError(
            f"{where}: the image {name!r:.80} is outside the folder of the file: put it (or a link to it) inside, and write its "
            "name from there, such as images/1.png"
        )
    return cast(AnyPlace, folder.absolute() / name)


def is_file(path: Place | str) -> bool:
    """Whether there is such a file; a text that no file can be called (too long, a byte of zero) is none."""
    return os.path.isfile(path) if isinstance(path, Path | str) else path.is_file()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has {twice!r} twice, of which one would be lost")
    return found
