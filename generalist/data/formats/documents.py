"""What every format of documents is read as: a set of texts and images with random access, as published, nothing converted.

A format is one file of this folder with a subclass of `DocumentSet` that says in `matches` which folders and files are its own
(`detect_documents.FORMATS` lists them).

Dimension key: N documents, P of them pairs, S files.
"""

import abc
import dataclasses
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int
from upath import UPath

from generalist.data.files import DocumentError
from generalist.data.formats.episodes import Opening
from generalist.data.formats.places import Place
from generalist.data.formats.unpacked import is_packed, unpacked
from generalist.data.images import ImageRef

Part = str | ImageRef
"""A text, or an image that is not read yet."""

IMAGE_NAMES = ("image", "images", "img", "picture", "jpg", "jpeg", "png", "webp")
"""What columns and keys with images are called, unless a setting says it."""
TEXT_NAMES = ("text", "texts", "caption", "captions", "sentence", "sentences", "txt")
"""The same for texts."""

# ImageNet-like sets have a folder per class; each would cost a request for its list in a bucket.
MOST_FOLDERS = 100
"""Of a set that has files in folders of its own, such as one per split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentOpening(Opening):
    """What opening a set of documents may use, and what its files don't say."""

    images: Place | None = None
    """Folder of the images that records name; None: the folder of the file that names them."""
    image_column: str | None = None
    """Name of the column or key with the image; None: one of `IMAGE_NAMES`."""
    text_column: str | None = None
    """Name of the column or key with the text; None: one of `TEXT_NAMES`."""

    @property
    def columns(self) -> str:
        """Settings that an index depends on, for its name."""
        return f"{self.image_column!r} {self.text_column!r}"


class DocumentSet(abc.ABC):
    """A set of N documents in some format, which several threads may read.

    Args:
        place: its folder or file.
        opening: where its index is kept, and what its files don't say.

    Raises:
        DocumentError: it is damaged, has no document, or is no set of this format; the message names the file.
        ImportError: a package that reads it is not installed; the message names the extra.
    """

    format: ClassVar[str]
    """For people, such as `WebDataset`."""
    pairs: Int[np.ndarray, "P"]
    """Numbers of the documents that are one image with one text after it, as far as is known without reading them."""

    def __init__(self, place: Place, opening: DocumentOpening):
        self.place, self.opening = place, opening
        # Made only when a compressed file is met, which most sets have none of.
        self._scratch: Path | None = None
        self._copies: dict[Place, Place] = {}

    @classmethod
    @abc.abstractmethod
    def matches(cls, place: Place) -> bool:
        """Whether a folder or file looks like this format, by the names of its files or its first bytes; opens no more."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def parts(self, index: int) -> list[Part]:
        """A document's texts and images in order, at least one; texts are not empty, and images not read yet.

        Raises:
            DocumentError: it can't be read, or is not as the format has it; names file and record.
        """

    def texts(self, index: int) -> list[str]:
        """Its texts alone.

        Raises:
            DocumentError: as `parts`.
        """
        return [part for part in self.parts(index) if isinstance(part, str)]

    def absent(self, index: int) -> int:
        """Images that a document names and which are not there, so that `parts` has left them out, as published sets of addresses
        are never whole."""
        return 0

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """File and record of a document, for messages."""

    @property
    @abc.abstractmethod
    def files(self) -> Iterable[Place]:
        """All files that documents are read from, in a fixed order, without those that records name: for a fingerprint."""

    def notes(self) -> list[str]:
        """What the user should know: which parts of the files are not read."""
        return []

    def plain(self, file: Place) -> Place:
        """A file, or its unpacked copy if it is compressed.

        Raises:
            DocumentError: it can't be unpacked.
        """
        if not is_packed(file):
            return file
        # Asking for the copy again would ask for the file's stamp, a request per document in a bucket.
        if file not in self._copies:
            self._copies[file] = unpacked(file, self.kept)
        return self._copies[file]

    @property
    def kept(self) -> Path:
        """Folder for what is unpacked: that of the indices or, without one, a temporary one that goes with this object."""
        if self.opening.index is not None:
            return self.opening.index
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="generalist-documents-"))
            # Not `__del__`, which need not be called when the interpreter ends.
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch


class Numbering:
    """Which file a document is in, where S files have some each.

    Args:
        counts: documents per file.
    """

    def __init__(self, counts: Sequence[int] | Int[np.ndarray, "S"]):
        self._ends = np.cumsum(np.asarray(counts, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def find(self, index: int) -> tuple[int, int]:
        """The number of a document's file, and its own within that.

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no document {index}: there are {len(self)}")
        # `right`: files without documents repeat an end, and are stepped over.
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - self.first(file)

    def first(self, file: int) -> int:
        """Number of a file's first document."""
        return int(self._ends[file - 1]) if file else 0

    def joined(self, numbers: Sequence[Int[np.ndarray, "_"]]) -> Int[np.ndarray, "_"]:
        """Numbers within each file as numbers within all."""
        # The empty array is for a set without files, which `np.concatenate` refuses.
        return np.concatenate([np.zeros(0, np.int64), *(one + self.first(file) for file, one in enumerate(numbers))])


class NumberedDocuments(DocumentSet):
    """A set whose documents are numbered through its files."""

    _files: list[Place]
    _numbering: Numbering

    def __len__(self) -> int:
        return len(self._numbering)

    @property
    def files(self) -> list[Place]:
        return self._files


def listed(place: Place, endings: tuple[str, ...]) -> list[Place]:
    """The files of a set: the place itself, or those of a folder that end so, hidden ones left out, in the order of their names.

    Raises:
        DocumentError: the folder can't be read.
    """
    if not place.is_dir():
        return [place]
    return [place / name for name in _names(place) if name.lower().endswith(endings)]


def folders(place: Place) -> list[Place]:
    """The folders in a folder, without hidden ones, in the order of their names; none if there are so many that they hold the
    files of a large set rather than its splits.

    Raises:
        DocumentError: the folder can't be read.
    """
    found = [place / name for name in _names(place, only_folders=True)]
    # Too many count as none rather than as an error, since the place may still have files of its own.
    return found if len(found) <= MOST_FOLDERS else []


def _names(place: Place, *, only_folders: bool = False) -> list[str]:
    """The names in a folder, without hidden ones."""
    try:
        if isinstance(place, UPath):
            # fsspec has no `scandir`, which in local folders knows the kind of each entry without another look at
            # the disk.
            names = [one.name for one in place.iterdir() if not only_folders or one.is_dir()]
        else:
            with os.scandir(place) as entries:
                names = [one.name for one in entries if not only_folders or one.is_dir()]
    except OSError as error:
        raise DocumentError(f"{place} can't be read ({error})") from error
    # Hidden names are what operating systems and half-finished downloads leave behind (.DS_Store, ._x.json,
    # .x.part).
    return sorted(name for name in names if not name.startswith("."))


def beginning(place: Place, count: int = 64) -> bytes:
    """The first bytes of a file, without white space and a byte-order mark before them; none if it can't be read."""
    try:
        with place.open("rb") as file:
            # Some editors put a byte-order mark before UTF-8; without a limit a file of blanks would be read
            # whole.
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:count]
    except OSError:
        return b""
