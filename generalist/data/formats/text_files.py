"""Plain text: a file is a document, and a long one several, cut where a line ends. One array has the names of a million files."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from upath import UPath

from generalist.data.files import DocumentError, decoded
from generalist.data.formats.documents import DocumentOpening, DocumentSet, Numbering, Part
from generalist.data.formats.index import Arrays, read_arrays, write_arrays
from generalist.data.formats.places import Place, read_range, size
from generalist.data.formats.unpacked import PACKED, is_packed

ENDINGS = (".txt", *(f".txt{packed}" for packed in PACKED))
# A document is cut to the model's window later; 64 KB are more than most windows, and few enough bytes to read
# for one.
PIECE = 2**16
"""Bytes of a document at least where a longer file is cut."""
# Lines of text are shorter as a rule. Without a limit, a file of one line would be searched to its end.
WINDOW = 2**12
"""Bytes within which a cut looks for the end of a line, else of a word."""


class TextFiles(DocumentSet):
    """A `.txt` file, or all of a folder and the folders below it; empty ones are left aside."""

    format = "text"

    def __init__(self, place: Place, opening: DocumentOpening):
        super().__init__(place, opening)
        listed = _listing(place, opening.index) if place.is_dir() else _arrays([(b"", size(place))], [])
        # All names in one array of bytes, with the end of each: a million objects of `str` would take several times as much.
        self._names, self._ends, self._sizes = listed["names"], listed["ends"], np.array(listed["sizes"])
        # The size on the disk says nothing of the text in a compressed file, which is unpacked at once.
        for number in listed["packed"].tolist() if place.is_dir() else range(is_packed(place)):
            self._sizes[number] = size(self.plain(self._file(number)))
        # The last piece of a file takes what is left, so that none is shorter than the others.
        self._pieces = np.where(self._sizes == 0, 0, np.maximum(1, self._sizes // PIECE))
        self._numbering = Numbering(self._pieces)
        if not len(self):
            raise DocumentError(f"{place} has no text")
        # (P,), P = 0
        self.pairs = np.zeros(0, np.int64)

    @classmethod
    def matches(cls, place: Place) -> bool:
        if not place.is_dir():
            return place.name.lower().endswith(ENDINGS)
        # The first one is enough; a folder may have a million.
        return next(_walk(place, []), None) is not None

    def __len__(self) -> int:
        return len(self._numbering)

    @property
    def files(self) -> Iterator[Place]:
        return (self._file(number) for number in np.flatnonzero(self._sizes).tolist())

    def parts(self, index: int) -> list[Part]:
        number, piece = self._numbering.find(index)
        file, where = self._file(number), self.where(index)
        try:
            content = self._content(self.plain(file), number, piece)
        except (OSError, ValueError) as error:
            raise DocumentError(f"{where} can't be read ({error})") from error
        text = decoded(content, where)
        if not text.strip():
            raise DocumentError(f"{where} has nothing but white space: take it out")
        return [text]

    def where(self, index: int) -> str:
        number, piece = self._numbering.find(index)
        return f"{self._file(number)}" + (f" from byte {piece * PIECE:,}" if piece else "")

    def notes(self) -> list[str]:
        empty = int((self._sizes == 0).sum())
        return [f"{self.place}: {empty:,} empty files are left aside"] if empty else []

    def _file(self, number: int) -> Place:
        begin = int(self._ends[number - 1]) if number else 0
        # Names are bytes on Linux, and need not be UTF-8.
        name = os.fsdecode(self._names[begin : self._ends[number]].tobytes())
        return self.place / name if name else self.place

    def _content(self, file: Place, number: int, piece: int) -> bytes:
        """The bytes of a piece of a file."""
        if self._pieces[number] == 1:
            with file.open("rb") as opened:  # whose size may have changed a little since it was listed
                content = opened.read(2 * PIECE + 1)
            if len(content) > 2 * PIECE:
                raise ValueError("it has grown since it was indexed: delete the folder of indices")
            return content
        start, last = piece * PIECE, piece + 1 == self._pieces[number]
        # A window more on the right: the cut at the end must be where the next piece finds its beginning.
        stop = int(self._sizes[number]) if last else start + PIECE + WINDOW
        content = read_range(file, start, stop - start)
        # Both pieces look for the same cut within the same bytes, so that no letter is lost or read twice.
        end = len(content) if last else PIECE + _cut(content[PIECE:])
        return content[_cut(content[:WINDOW]) if piece else 0 : end]


def _listing(place: Place, index: Path | None) -> Arrays:
    """The text files of a folder, taken from the folder of indices as long as no folder has changed."""
    if isinstance(place, UPath) or index is None:
        return _arrays(sorted(_walk(place, [])), [])
    # Named by the folder alone: the times of all folders in it say whether the list still holds.
    kept = index / f"text-{hashlib.sha256(os.fsencode(place.resolve())).hexdigest()[:32]}.npz"
    stored = read_arrays(kept)
    if stored is not None and all(_changed(os.fsdecode(name)) == time for name, time in _times(stored)):
        return stored
    folders: list[tuple[bytes, int]] = []
    files = sorted(_walk(place.resolve(), folders))
    found = _arrays(files, folders)
    write_arrays(kept, found)
    return found


def _arrays(files: list[tuple[bytes, int]], folders: list[tuple[bytes, int]]) -> Arrays:
    """Names with sizes, and folders with the times of their changes, as arrays."""
    packed = tuple(ending.encode() for ending in PACKED)
    return {
        "names": np.frombuffer(b"".join(name for name, _ in files), np.uint8),
        "ends": np.cumsum([len(name) for name, _ in files], dtype=np.int64),
        "sizes": np.array([count for _, count in files], np.int64),
        "packed": np.array([at for at, (name, _) in enumerate(files) if name.lower().endswith(packed)], np.int64),
        "folders": np.frombuffer(b"\0".join(name for name, _ in folders), np.uint8),
        "times": np.array([time for _, time in folders], np.int64),
    }


def _times(arrays: Arrays) -> Iterator[tuple[bytes, int]]:
    return zip(arrays["folders"].tobytes().split(b"\0"), arrays["times"].tolist(), strict=True)


def _changed(folder: str) -> int:
    """When a folder got or lost a file; -1 if it is gone."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def _walk(place: Place, folders: list[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """Names within a folder, and sizes, of its text files and those of the folders below, without hidden ones. Linked folders are
    not followed, since they could lead in a circle.

    Args:
        folders: gets each local folder with the time of its last change.

    Raises:
        DocumentError: a folder can't be read.
    """
    if not isinstance(place, UPath):
        yield from _walk_local(str(place), "", folders)
        return
    # One request lists all of a bucket's folder, with sizes; buckets have no times of folders to compare.
    for path, about in place.fs.find(place.path, detail=True).items():
        name = path.removeprefix(place.path.rstrip("/") + "/")
        if name.lower().endswith(ENDINGS) and not any(part.startswith(".") for part in name.split("/")):
            yield os.fsencode(name), about["size"]


def _walk_local(folder: str, within: str, folders: list[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    # The time before the folder is listed: a file that comes meanwhile makes the list old, not wrong.
    folders.append((os.fsencode(folder), _changed(folder)))
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(ENDINGS) and entry.is_file():
                    yield os.fsencode(within + entry.name), entry.stat().st_size
                # Linked files are read, linked folders are not.
                elif entry.is_dir(follow_symlinks=False):
                    yield from _walk_local(entry.path, f"{within}{entry.name}/", folders)
    except OSError as error:
        raise DocumentError(f"{folder} can't be read ({error})") from error


def _cut(content: bytes) -> int:
    """Where a document begins within some bytes: behind the first end of a line, else of a word, else of a letter."""
    for mark in (b"\n", b" "):
        if (found := content.find(mark)) >= 0:
            return found + 1
    # Bytes of UTF-8 that begin with the bits 10 are within a letter.
    return next((at for at, byte in enumerate(content) if byte & 0xC0 != 0x80), 0)
