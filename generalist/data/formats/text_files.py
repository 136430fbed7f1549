"""Plain text: a file is a document, and a long one several, cut where a line ends. One array has the names of a million files."""

import os
from collections.abc import Iterator

import numpy as np
from upath import UPath

from generalist.data.files import DocumentError, decoded
from generalist.data.formats.documents import DocumentOpening, DocumentSet, Numbering, Part
from generalist.data.formats.places import Place, read_range, size
from generalist.data.formats.unpacked import PACKED

ENDINGS = (".txt", *(f".txt{packed}" for packed in PACKED))
PACKED_BYTES = tuple(ending.encode() for ending in PACKED)
PIECE = 2**16
"""Bytes of a document at least where a longer file is cut."""
WINDOW = 2**12
"""Bytes within which a cut looks for the end of a line, else of a word."""


class TextFiles(DocumentSet):
    """A `.txt` file, or all of a folder and the folders below it; empty ones are left aside."""

    format = "text"

    def __init__(self, place: Place, opening: DocumentOpening):
        super().__init__(place, opening)
        found = sorted(_files(place)) if place.is_dir() else [(b"", size(place))]
        found = [(name, self._plain_size(name, count)) for name, count in found]
        self._empty = sum(count == 0 for _, count in found)
        found = [(name, count) for name, count in found if count]
        self._names = np.frombuffer(b"".join(name for name, _ in found), np.uint8)
        self._ends = np.cumsum([len(name) for name, _ in found], dtype=np.int64)
        self._sizes = np.array([count for _, count in found], np.int64)
        # The last piece of a file takes what is left, so that none is shorter than the others.
        self._numbering = Numbering(np.maximum(1, self._sizes // PIECE))
        if not len(self):
            raise DocumentError(f"{place} has no text")
        self.pairs = np.zeros(0, np.int64)

    @classmethod
    def matches(cls, place: Place) -> bool:
        if not place.is_dir():
            return place.name.lower().endswith(ENDINGS)
        return next(_files(place), None) is not None

    def __len__(self) -> int:
        return len(self._numbering)

    @property
    def files(self) -> Iterator[Place]:
        return (self._file(number) for number in range(len(self._sizes)))

    def parts(self, index: int) -> list[Part]:
        number, piece = self._numbering.find(index)
        last = piece + 1 == max(1, self._sizes[number] // PIECE)
        start = piece * PIECE
        stop = int(self._sizes[number]) if last else start + PIECE + WINDOW
        try:
            content = read_range(self.plain(self._file(number)), start, stop - start)
        except (OSError, ValueError) as error:
            raise DocumentError(f"{self._file(number)} can't be read ({error})") from error
        end = len(content) if last else PIECE + _cut(content[PIECE:])
        begin = _cut(content[:WINDOW]) if piece else 0
        text = decoded(content[begin:end], self.where(index))
        if not text.strip():
            raise DocumentError(f"{self.where(index)} has nothing but white space: take it out")
        return [text]

    def where(self, index: int) -> str:
        number, piece = self._numbering.find(index)
        return f"{self._file(number)}" + (f" from byte {piece * PIECE:,}" if piece else "")

    def notes(self) -> list[str]:
        return [f"{self.place}: {self._empty:,} empty files are left aside"] if self._empty else []

    def _file(self, number: int) -> Place:
        begin = int(self._ends[number - 1]) if number else 0
        name = os.fsdecode(self._names[begin : self._ends[number]].tobytes())
        return self.place / name if name else self.place

    def _plain_size(self, name: bytes, count: int) -> int:
        if not (name or os.fsencode(self.place.name)).lower().endswith(PACKED_BYTES):
            return count
        return size(self.plain(self.place / os.fsdecode(name) if name else self.place))


def _files(folder: Place) -> Iterator[tuple[bytes, int]]:
    """Names within a folder, and sizes, of its text files and those of the folders below, without hidden ones. Linked folders are
    not followed, since they could lead in a circle."""
    if not isinstance(folder, UPath):
        yield from _local_files(os.fspath(folder), "")
        return
    for path, about in folder.fs.find(folder.path, detail=True).items():
        name = path.removeprefix(folder.path.rstrip("/") + "/")
        if name.lower().endswith(ENDINGS) and not any(part.startswith(".") for part in name.split("/")):
            yield os.fsencode(name), about["size"]


def _local_files(folder: str, within: str) -> Iterator[tuple[bytes, int]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(ENDINGS) and entry.is_file():
                    yield os.fsencode(within + entry.name), entry.stat().st_size
                elif entry.is_dir(follow_symlinks=False):
                    yield from _local_files(entry.path, f"{within}{entry.name}/")
    except OSError as error:
        raise DocumentError(f"{folder} can't be read ({error})") from error


def _cut(content: bytes) -> int:
    """Where a document begins within some bytes: behind the first end of a line, else of a word, else of a letter."""
    for mark in (b"\n", b" "):
        if (found := content.find(mark)) >= 0:
            return found + 1
    return next((at for at, byte in enumerate(content) if byte & 0xC0 != 0x80), 0)
