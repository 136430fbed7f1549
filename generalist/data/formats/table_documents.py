"""Documents in Parquet and Arrow files, as the `datasets` library writes them: a row is a document.

image, text                 an image struct {bytes, path}, bytes, or the name of a file; and its text or its captions
images, texts               lists with one null per place: a page of texts and images in order (OBELICS)
images, messages            a conversation (generalist.data.formats.records)
text                        text alone
"""

import abc
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from generalist.data.files import DocumentError, named
from generalist.data.formats.documents import (
    IMAGE_NAMES,
    TEXT_NAMES,
    DocumentOpening,
    NumberedDocuments,
    Numbering,
    Part,
)
from generalist.data.formats.index import Arrays
from generalist.data.formats.places import Place
from generalist.data.formats.records import PUBLISHED, Find, checked_text, conversation, merged, turns_of
from generalist.data.formats.table_files import of_split, table_files
from generalist.data.images import Encoded, ImageRef, is_there

if TYPE_CHECKING:
    import pyarrow

# `conversations` and `messages`.
CONVERSATIONS = PUBLISHED[:2]
CACHED = 2**28
"""Bytes of rows that are kept, since the next document may be their neighbour."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns a document is read from."""

    image: str | None
    text: str | None
    several: bool
    """Whether the image column has lists."""

    @property
    def names(self) -> list[str]:
        """Both."""
        return [name for name in (self.image, self.text) if name is not None]


class TableDocuments(NumberedDocuments):
    """The rows of one file, or of all of a folder's files of one split."""

    ending: ClassVar[str]
    """Of names of files."""

    def __init__(self, place: Place, opening: DocumentOpening):
        super().__init__(place, opening)
        found = table_files(place, self.ending)
        self._files = of_split(place, found, opening.split)
        self._left = len(found) - len(self._files)
        if not self._files:
            raise DocumentError(f"{place} has no {self.ending} file")
        # By the first file; another one that differs is an error of its rows.
        self._schema = self.schema(self._files[0])
        self._columns = columns_of(self._schema, opening, self._files[0])
        self._indices = self.index()
        self._groups = [Numbering(one["rows"]) for one in self._indices]
        self._numbering = Numbering([len(one) for one in self._groups])
        if not len(self):
            raise DocumentError(f"{place} has no row")
        # By the columns alone: a row without its image or text is found when it is read.
        paired = None not in (self._columns.image, self._columns.text) and not self._columns.several
        self.pairs = np.arange(len(self) if paired and self._columns.text not in CONVERSATIONS else 0)
        self._cached: OrderedDict[tuple[int, int, tuple[str, ...]], Any] = OrderedDict()
        # Several threads read documents; without it two would decode the same group at once.
        self._lock = threading.Lock()

    @classmethod
    def matches(cls, place: Place) -> bool:
        return bool(table_files(place, cls.ending)) if place.is_dir() else place.name.lower().endswith(cls.ending)

    @classmethod
    @abc.abstractmethod
    def schema(cls, file: Place) -> "pyarrow.Schema":
        """The columns of a file.

        Raises:
            DocumentError: it can't be read.
        """

    @abc.abstractmethod
    def index(self) -> list[Arrays]:
        """Of each file `rows`, the number of rows in each of its groups, and what finds these."""

    @abc.abstractmethod
    def group(self, file: int, group: int, columns: Sequence[str]) -> "pyarrow.Table | pyarrow.RecordBatch":
        """A group of rows, whose contents may be damaged still.

        Raises:
            pyarrow.ArrowException, OSError, ValueError: it can't be read.
        """

    def where(self, index: int) -> str:
        file, row = self._numbering.find(index)
        return f"{self._files[file]} row {row}"

    def parts(self, index: int) -> list[Part]:
        return self._document(index, self._columns.names)[0]

    def absent(self, index: int) -> int:
        return self._document(index, self._columns.names)[1] if self._columns.several else 0

    def texts(self, index: int) -> list[str]:
        if self._columns.text is None:
            return []
        if self._columns.text in CONVERSATIONS:
            return super().texts(index)
        # The text column alone: images are most of the bytes, and training a tokenizer needs none.
        value = self._row(index, [self._columns.text])[self._columns.text]
        return [checked_text(one, self.where(index)) for one in listed_values(value) if one]

    def notes(self) -> list[str]:
        unread = [name for name in self._schema.names if name not in self._columns.names]
        told = [f"{self.place}: columns that are not read: {', '.join(unread)}"] if unread else []
        split = f"{self.place}: {self._left:,} files of other splits than {self.opening.split} are not read"
        return [*told, split] if self._left else told

    def _document(self, index: int, columns: Sequence[str]) -> tuple[list[Part], int]:
        """A document, and how many of its images are not there."""
        where, row = self.where(index), self._row(index, columns)
        folder = self.opening.images or self._files[self._numbering.find(index)[0]].parent
        find = partial(image_of, folder)
        image = None if self._columns.image is None else row[self._columns.image]
        text = None if self._columns.text is None else row[self._columns.text]
        if self._columns.text in CONVERSATIONS:
            images = [find(one, where) for one in listed_values(image)]
            return conversation(turns_of({self._columns.text: text}, where, find), images, where), 0
        # OBELICS. Lists of different lengths are images with captions instead.
        if isinstance(image, list) and isinstance(text, list) and len(image) == len(text):
            return page(image, text, where, find)
        parts: list[Part] = [find(one, where) for one in listed_values(image)]
        if isinstance(text, list):  # of several captions each document shows one: its number decides which
            text = text[index % len(text)] if text else None
        parts += [checked_text(text, where)] if text not in (None, "") else []
        if not parts:
            raise DocumentError(f"{where} has neither an image nor a text")
        return parts, 0

    def _row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """The values of a row."""
        file, row = self._numbering.find(index)
        group, at = self._groups[file].find(row)
        import pyarrow

        try:
            with self._lock:
                one = self._kept_group(file, group, tuple(columns)).slice(at, 1)
            one.validate(full=True)  # a damaged file has offsets that lead anywhere
            # Only this row becomes Python objects.
            (found,) = one.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise DocumentError(f"{self.where(index)} can't be read ({reason:.300}): get the file again") from error
        return found

    def _kept_group(self, file: int, group: int, columns: tuple[str, ...]) -> Any:
        key = (file, group, columns)
        if key not in self._cached:
            self._cached[key] = self.group(file, group, columns)
            # The newest stays even if it is larger than the limit by itself.
            while len(self._cached) > 1 and sum(one.nbytes for one in self._cached.values()) > CACHED:
                self._cached.popitem(last=False)
        self._cached.move_to_end(key)
        return self._cached[key]


# ---- what a row is made of


def checked_schema(schema: "pyarrow.Schema") -> "pyarrow.Schema":
    """A schema whose names are texts.

    Raises:
        UnicodeDecodeError: one is none, which pyarrow finds only when it is asked for it.
    """
    # Asking for the names is the check: it decodes them.
    assert all(isinstance(name, str) for name in schema.names)
    return schema


def columns_of(schema: "pyarrow.Schema", opening: DocumentOpening, file: Place) -> Columns:
    """The columns that a setting names, or else those with a usual name.

    Raises:
        DocumentError: there is none, or its values are neither images nor texts.
    """
    import pyarrow.types as types

    names = set(schema.names)
    for setting in ("image_column", "text_column"):
        if (given := getattr(opening, setting)) is not None and given not in names:
            raise DocumentError(f"{setting} = {given}, but {file} has only the columns {', '.join(schema.names)}")
    # In the order of the list of names, not of the columns, so that the choice is the same for every file.
    image = opening.image_column or next((name for name in IMAGE_NAMES if name in names), None)
    text = opening.text_column or next((name for name in (*CONVERSATIONS, *TEXT_NAMES) if name in names), None)
    if image is None and text is None:
        raise DocumentError(
            f"{file} has the columns {', '.join(schema.names)}, of which none is known: set image_column or text_column"
        )
    kind = None if image is None else schema.field(image).type
    return Columns(image, text, kind is not None and (types.is_list(kind) or types.is_large_list(kind)))


def listed_values(value: Any) -> list[Any]:
    """The values of a list that are not null; of a single value a list."""
    return [one for one in (value if isinstance(value, list) else [value]) if one is not None]


def page(images: list[Any], texts: list[Any], where: str, find: Find) -> tuple[list[Part], int]:
    """Texts and images in order, and how many images are not there: they are left out, as many of a page's addresses are gone.

    Raises:
        DocumentError: a place has both or neither, or there is no text.
    """
    parts: list[Part] = []
    absent = 0
    for image, text in zip(images, texts, strict=True):
        # Exactly one of the two per place, or the order of texts and images would be a guess.
        if (image is None) == (text is None):
            raise DocumentError(f"{where}: each place of a page has an image or a text, and null for the other")
        if image is None:
            parts += [checked_text(text, where)] if text else []
        elif is_there(ref := find(image, where)):
            parts.append(ref)
        else:
            absent += 1
    if not any(isinstance(part, str) for part in parts):
        raise DocumentError(f"{where} has no text")
    return merged(parts), absent


def image_of(folder: Place, value: Any, where: str) -> ImageRef:
    """An image as a column has it: bytes, the name of a file, or a struct of both.

    Raises:
        DocumentError: it is none, or its name leads out of the folder.
    """
    if isinstance(value, dict):
        # Bytes first: the path is often only the name that the image once had.
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return Encoded(value, f"{where}: its image")
    if isinstance(value, str) and value:
        return named(folder, value, where)
    raise DocumentError(f"{where}: {value!r:.60} is no image: neither its bytes nor the name of its file")
