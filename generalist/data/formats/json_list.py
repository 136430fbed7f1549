"""The elements of lists in a JSON file, one in memory at a time, however long the lists are."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from generalist.data.files import LONGEST_LINE, WIDE, DocumentError, Line
from generalist.data.formats.places import Place

CHUNK = 2**20
SPACE = re.compile(r"[ \t\r\n]*")
# Numbers as text: Python refuses to convert very long ones, and the rest would be converted for nothing. Objects
# as None, since only their ends are wanted.
DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: None, parse_int=str, parse_float=str)
"""Finds where a value ends; what it holds is parsed later."""


def elements(file: Place) -> Iterator[tuple[str, Line]]:
    """The elements of a file's list, or of all lists that are values of its object, by their keys (of a list: an empty one), each
    numbered from 1, with its offset and its bytes.

    Raises:
        DocumentError: it can't be read, is cut off, or holds neither a list nor an object.
    """
    try:
        with file.open("rb") as opened:
            yield from _Scanner(opened, file).elements()
    except OSError as error:
        raise DocumentError(f"{file} can't be read ({error}): put it there, or name another one") from error


def members(file: Place) -> Iterator[Line]:
    """The values of a file's object, each numbered from 1, with its offset and its bytes.

    Raises:
        DocumentError: it can't be read, is cut off, or holds no object.
    """
    try:
        with file.open("rb") as opened:
            yield from _Scanner(opened, file).members()
    except OSError as error:
        raise DocumentError(f"{file} can't be read ({error}): put it there, or name another one") from error


class _Scanner:
    """Walks over a file's values. Its bytes are taken for Latin-1, where a character is a byte: JSON's own marks are ASCII, which
    no part of another character is in UTF-8."""

    def __init__(self, opened: Any, file: Place):
        self._opened, self._file = opened, file
        # What of the file is in memory, where we are in it, and how many bytes went before it.
        self._text, self._at, self._before = "", 0, 0
        self._ended = False
        self._fill()
        # Read as UTF-8, UTF-16 looks like text with zeros, which would be reported as broken JSON somewhere in
        # the middle.
        if self._text.encode("latin-1").startswith(WIDE):
            raise DocumentError(f"{file} is UTF-16 or UTF-32: save it as UTF-8")
        if self._text.encode("latin-1").startswith(codecs.BOM_UTF8):
            self._at = len(codecs.BOM_UTF8)

    def elements(self) -> Iterator[tuple[str, Line]]:
        begin = self._mark()
        if begin == "[":
            yield from self._list("")
        elif begin == "{":
            yield from self._object()
        else:
            raise self._error("holds neither a list nor an object")
        # Two files that were joined would otherwise lose the second one.
        if self._mark(or_end=True):
            raise self._error("has something behind its end")

    def members(self) -> Iterator[Line]:
        if self._mark() != "{":
            raise self._error("holds no object")
        for row, _ in enumerate(self._keys(), 1):
            start, end = self._value()
            yield Line(row, self._before + start, self._text[start:end].encode("latin-1"))
        if self._mark(or_end=True):
            raise self._error("has something behind its end")

    def _object(self) -> Iterator[tuple[str, Line]]:
        for key in self._keys():
            if self._take("["):
                # Parsed, since a key may be written with escapes.
                yield from self._list(json.loads(key))
            else:
                # Stepped over, such as the licence that VQA's files have before their questions.
                self._value()

    def _keys(self) -> Iterator[str]:
        """The keys of an object as they are written; whoever takes one goes behind its value."""
        if self._take("}"):
            return
        while True:
            start, end = self._value()
            key = self._text[start:end]
            if not key.startswith('"') or self._mark() != ":":
                raise self._error("has an object with something else than keys and values")
            yield key
            if (mark := self._mark()) == "}":
                return
            if mark != ",":
                raise self._error("has an object without a comma between its keys")

    def _list(self, key: str) -> Iterator[tuple[str, Line]]:
        if self._take("]"):
            return
        row = 0
        while True:
            start, end = self._value()
            row += 1
            yield key, Line(row, self._before + start, self._text[start:end].encode("latin-1"))
            if (mark := self._mark()) == "]":
                return
            if mark != ",":
                raise self._error("has a list without a comma between its elements")

    def _mark(self, or_end: bool = False) -> str:
        """The next character that is no white space, behind which we then are; empty at the end, if that may be."""
        self._skip()
        if self._at == len(self._text):
            if or_end:
                return ""
            raise self._error("is cut off")
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, mark: str) -> bool:
        """Goes behind a character if it is the next one."""
        found = self._mark() == mark
        self._at -= not found
        return found

    def _value(self) -> tuple[int, int]:
        """Where the next value begins and ends in the text, behind which we then are."""
        self._skip()
        if self._at > CHUNK:  # what is behind us is not needed any more
            self._before, self._text, self._at = self._before + self._at, self._text[self._at :], 0
        while True:
            try:
                _, end = DECODER.raw_decode(self._text, self._at)
                # A number that reaches the end of what is read, such as 12, may be 123 in the file.
                if end < len(self._text) or self._ended:  # a number may go on
                    start, self._at = self._at, end
                    return start, end
            except (ValueError, RecursionError) as error:
                # An error may only mean that the value is not read whole yet; it is final at the end of the file,
                # or when no value may be this long.
                if self._ended or len(self._text) - self._at > LONGEST_LINE:
                    raise self._error(f"is not JSON ({error})") from error
            self._fill(len(self._text) - self._at)  # twice as much, so that a long value is not begun too often

    def _skip(self) -> None:
        while True:
            match: Any = SPACE.match(self._text, self._at)
            self._at = match.end()
            if self._at < len(self._text) or self._ended:
                return
            self._fill()

    def _fill(self, count: int = 0) -> None:
        chunk = self._opened.read(max(CHUNK, count))
        self._ended = not chunk
        self._text += chunk.decode("latin-1")

    def _error(self, what: str) -> DocumentError:
        return DocumentError(f"{self._file} {what}, at byte {self._before + self._at:,}: get it again")
