"""Files of JSON objects, a document each: JSONL, and JSON with one long list. Only where each object begins is kept in memory."""

import abc
import dataclasses
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from generalist.data.files import DocumentError, Line, lines, named, parsed, parsed_line
from generalist.data.formats.documents import DocumentOpening, NumberedDocuments, Numbering, Part, beginning, listed
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.json_list import elements
from generalist.data.formats.places import Place, read_range
from generalist.data.formats.records import KEYS, LISTED, found_or_decoded, interleaved, is_own, own_parts, record_parts
from generalist.data.formats.unpacked import PACKED, is_packed, unpacked
from generalist.data.images import ImageRef

MOST_KEYS = 1000  # names of keys that are not read, per file: more are not counted


@dataclasses.dataclass(frozen=True)
class Reader:
    """Gives the parts of an object of a file."""

    file: Place
    """As the user has it."""
    opening: DocumentOpening
    entry: str
    """What an object of the file is called in messages: `line`."""

    def where(self, row: int) -> str:
        """For messages."""
        return f"{self.file} {self.entry} {row}"

    def record(self, content: bytes, row: int) -> dict[str, Any]:
        """The object of an entry, under our own names."""
        where = self.where(row)
        # Lines get a message of their own: most broken ones are values that stand on several lines.
        found = (parsed_line if self.entry == "line" else parsed)(content, where)
        if not isinstance(found, dict):
            raise DocumentError(
                f"{where} holds {type(found).__name__} instead of an object: write one object per {self.entry}"
            )
        for ours, theirs in (("image", self.opening.image_column), ("text", self.opening.text_column)):
            # So that every layout below sees one name, whatever the setting says.
            if theirs is not None and theirs in found:
                found[ours] = found.pop(theirs)
        return found

    def find(self, name: str, where: str) -> ImageRef:
        """The image of a name."""
        return named(self.opening.images or self.file.parent, name, where)

    def parts(self, record: dict[str, Any], row: int) -> list[Part]:
        """See `record_parts`."""
        return record_parts(record, self.where(row), self.find if is_own(record) else found_or_decoded(self.find))


class JsonRecords(NumberedDocuments):
    """One file, or all of a folder, with any of the layouts of `generalist.data.formats.records`."""

    entry: ClassVar[str]
    """What an object of a file is called in messages."""
    endings: ClassVar[tuple[str, ...]]
    """Of names of files, compressed ones left aside."""

    def __init__(self, place: Place, opening: DocumentOpening):
        super().__init__(place, opening)
        self._files = self.members(place)
        if not self._files:
            raise DocumentError(f"{place} has no file that ends with {' or '.join(self.endings)}")
        kept = self.kept if any(map(is_packed, self._files)) else None
        # What is unpacked goes to the same folder in every worker, so that each file is unpacked once.
        scan = partial(scan_records, kind=type(self), opening=opening, kept=kept)
        # The columns decide which documents are pairs, which the index has.
        kind = f"{self.format.lower()} {opening.columns}"
        self._indices = indexed(self._files, scan, kind=kind, opening=opening)
        self._numbering = Numbering([len(one["offset"]) for one in self._indices])
        if not len(self):
            raise DocumentError(f"{place} has no document: write one object per {self.entry}")
        self.pairs = self._numbering.joined([one["pairs"] for one in self._indices])

    @classmethod
    def members(cls, place: Place) -> list[Place]:
        """The files of a set."""
        return listed(place, cls.all_endings())

    @classmethod
    def all_endings(cls) -> tuple[str, ...]:
        """Of names of files, compressed or not."""
        return tuple(end + packed for end in cls.endings for packed in ("", *PACKED))

    @classmethod
    @abc.abstractmethod
    def objects(cls, file: Place) -> Iterator[Line]:
        """Where each object of a file is, and its bytes."""

    def parts(self, index: int) -> list[Part]:
        reader, record, row = self._read(index)
        return reader.parts(record, row)

    def absent(self, index: int) -> int:
        reader, record, row = self._read(index)
        # Only MMC4 names images that may be gone; elsewhere a missing image is an error.
        return interleaved(record, reader.where(row), reader.find)[1] if "text_list" in record else 0

    def where(self, index: int) -> str:
        number, at = self._numbering.find(index)
        return self._reader(number).where(int(self._indices[number]["row"][at]))

    def notes(self) -> list[str]:
        unread: Counter[str] = Counter()
        for one in self._indices:
            unread.update(dict(zip(one["unread"].tolist(), one["unread_count"].tolist(), strict=True)))
        return [
            f"{self.place}: {key!r} of {count:,} documents is not read; there are {LISTED}"
            for key, count in unread.most_common()
        ]

    def _reader(self, number: int) -> Reader:
        return Reader(self._files[number], self.opening, self.entry)

    def _read(self, index: int) -> tuple[Reader, dict[str, Any], int]:
        number, at = self._numbering.find(index)
        arrays = self._indices[number]
        offset, length, row = (int(arrays[name][at]) for name in ("offset", "length", "row"))
        reader = self._reader(number)
        try:
            content = read_range(self.plain(self._files[number]), offset, length)
        except (OSError, ValueError) as error:
            raise DocumentError(f"{reader.where(row)} can't be read ({error})") from error
        return reader, reader.record(content, row), row


class JsonLines(JsonRecords):
    """An object a line."""

    format = "JSONL"
    entry = "line"
    endings = (".jsonl", ".ndjson")

    @classmethod
    def matches(cls, place: Place) -> bool:
        if place.is_dir():
            return bool(cls.members(place))
        return has_ending(place, cls) or beginning(place).startswith(b"{")

    @classmethod
    def objects(cls, file: Place) -> Iterator[Line]:
        return lines(file)


class JsonLists(JsonRecords):
    """A list of objects."""

    format = "JSON"
    entry = "entry"
    endings = (".json",)

    @classmethod
    def members(cls, place: Place) -> list[Place]:
        found = super().members(place)
        # Folders of images often have a .json with a description: an object, not a list of documents.
        return found if found == [place] else [file for file in found if beginning(file).startswith(b"[")]

    @classmethod
    def matches(cls, place: Place) -> bool:
        if place.is_dir():
            return bool(cls.members(place))
        # A line of a .jsonl may be a list too, which is then an error of that line.
        return not has_ending(place, JsonLines) and beginning(place).startswith(b"[")

    @classmethod
    def objects(cls, file: Place) -> Iterator[Line]:
        return (line for _, line in elements(file))


def has_ending(file: Place, kind: type[JsonRecords]) -> bool:
    """Whether a file's name ends as those of a format do; what it begins with decides where names say nothing."""
    return file.name.lower().endswith(kind.all_endings())


def scan_records(file: Place, kind: type[JsonRecords], opening: DocumentOpening, kept: Path | None) -> Arrays:
    """Where each object of a file is, what it is made of, and which keys are not read.

    Raises:
        DocumentError: the file is damaged, or an object of our own layout is not as it should be; one of a published layout is
            left out when it is met.
    """
    reader, unread = Reader(file, opening, kind.entry), Counter[str]()
    found, pairs = array("q"), array("q")
    # A file of gigabytes is walked over once, one object in memory at a time.
    for number, (row, offset, content) in enumerate(kind.objects(file if kept is None else unpacked(file, kept))):
        record = reader.record(content, row)
        # Our own layout is checked at once, since people write it by hand. Published sets have broken records,
        # which may be left out later.
        if is_own(record):
            parts = own_parts(record, reader.where(row), reader.find)
            # The number of different keys is limited: a file may use a new one in every record.
            unread.update(key for key in record.keys() - KEYS if key in unread or len(unread) < MOST_KEYS)
            if is_pair(parts):
                pairs.append(number)
        elif _is_published_pair(reader, record, row):
            pairs.append(number)
        # Three numbers of 8 bytes per document: tuples in a list would take several times as much.
        found.extend((offset, len(content), row))
    # (N, 3) to three of (N,)
    offsets, lengths, rows = np.array(found, np.int64).reshape(-1, 3).T
    return {
        "offset": offsets,
        "length": lengths,
        "row": rows,
        "pairs": np.array(pairs, np.int64),
        "unread": np.array(list(unread), np.str_),
        "unread_count": np.array(list(unread.values()), np.int64),
    }


def is_pair(parts: list[Part]) -> bool:
    """Whether a document is one image with one text after it."""
    return len(parts) == 2 and not isinstance(parts[0], str) and isinstance(parts[1], str)


def _is_published_pair(reader: Reader, record: dict[str, Any], row: int) -> bool:
    try:
        # Whether a page's images are there would have to be looked up for each.
        return "text_list" not in record and is_pair(reader.parts(record, row))
    except DocumentError:
        return False
