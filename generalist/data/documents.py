"""A user's own documents: text and images in any order, one document a line of a JSONL file, images as files beside it.

{"content": ["A cat", {"image": "cat.png"}, "on a mat", {"image": "dog.png"}, "and a dog."]}
{"image": "cat.png", "text": "a cat on a mat"}          a pair: short for an image and then its text
{"text": "no image at all"}
"""

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from generalist.data.files import DocumentError, check_letters, lines, named, parsed_line
from generalist.data.images import check_image, read_image
from generalist.tokenizers.image import to_frame
from generalist.tokenizers.pieces import PATCH_SIZE
from generalist.tokenizers.sequence import Assembler, Sequence

UNREADABLE = 0.05
"""Share of documents that may have an image which can't be read; they are left out, counted and named."""
TOLD = 10  # of them by name; then the 16th, the 32nd, ...
NAMED = 20  # of them in an error
KEYS = {"content", "image", "text"}
_LISTED = ", ".join(sorted(KEYS))

Part = str | Path
"""A text, or an image's file."""


class Documents:
    """The documents of a file, or of all `*.jsonl` files of a folder. Only where each begins is kept in memory.

    A document with an image that can't be read is left out, wherever it is met, as long as there are few of them.

    Args:
        path: the file or the folder.
        unreadable: the share that may be left out.
        checked: whether its images were looked at already, which takes a while where there are many.

    Raises:
        DocumentError: there is none, one of them is not as described above, or more than that share have an image that is not
            there, of no known format, unbearably large, or cut off. Pixels are not read for that: see `read_all`.
    """

    def __init__(self, path: Path, unreadable: float = UNREADABLE, *, checked: bool = False):
        self.path, self._unreadable = Path(path), unreadable
        self._files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.jsonl"))
        if not self._files:
            raise DocumentError(f"{self.path} is neither a JSONL file nor a folder with *.jsonl files")
        self.left_out: dict[int, str] = {}
        """Number of a document → why it can't be read, as far as is known."""
        self.unread: Counter[str] = Counter()
        """Keys that nothing is made of, and how many documents have them."""
        found: list[tuple[int, int, int]] = []
        for number, file in enumerate(self._files):
            for row, offset, line in lines(file):
                document = _document(line, f"{file} line {row}")
                parts = _parts(document, file, row)
                self.unread.update(document.keys() - KEYS)
                if not checked:
                    self._look(len(found), parts, check_image)
                found.append((number, offset, row))
        if not found:
            raise DocumentError(f"{self.path} has no document: write one a line")
        self._index = np.array(found, np.int64)
        self._bear()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> list[Part]:
        """A document's texts and images in order."""
        number, offset, row = self._index[index].tolist()
        with self._files[number].open("rb") as file:
            file.seek(offset)
            line = file.readline()
        return _parts(_document(line, self.where(index)), self._files[number], row)

    def where(self, index: int) -> str:
        """File and line of a document."""
        number, _, row = self._index[index].tolist()
        return f"{self._files[number]} line {row}"

    def read_all(self, advance: Callable[[], None] = lambda: None) -> None:
        """Reads every image.

        Args:
            advance: is called after each document.

        Raises:
            DocumentError: more than the bearable share can't be read; names them all.
        """
        for index in range(len(self)):
            self._look(index, self[index], read_image)
            advance()
        self._bear()

    def leave_out(self, index: int, why: DocumentError) -> None:
        """Counts and names a document with an image that can't be read, on standard error, once.

        Raises:
            DocumentError: it is one too many.
        """
        if index in self.left_out:
            return
        self.left_out[index] = str(why)
        self._bear()
        count = len(self.left_out)
        if count <= TOLD or count & (count - 1) == 0:
            tell(f"left out, the {count}. of {len(self):,} documents: {self.where(index)}: {why}")

    def notes(self) -> list[str]:
        """What the user is told before training: what was left out so far, and what is not read."""
        told = [f"left out: {self.where(index)}: {why}" for index, why in sorted(self.left_out.items())]
        return told + [
            f"{self.path}: {key!r} of {count:,} documents is not read; there are {_LISTED}"
            for key, count in self.unread.most_common()
        ]

    def pairs(self) -> list[tuple[int, Path, str]]:
        """The documents that are one image with one text after it, as a contrastive loss needs them, and their numbers.

        Raises:
            DocumentError: there is none.
        """
        found = []
        for number, parts in enumerate(map(self.__getitem__, range(len(self)))):
            if len(parts) == 2 and isinstance(parts[0], Path) and isinstance(parts[1], str):
                found.append((number, parts[0], parts[1]))
        if not found:
            raise DocumentError(f'{self.path} has no pair of an image and a text: write {{"image": ..., "text": ...}}')
        return found

    def texts(self) -> list[str]:
        """All texts, for learning a text tokenizer."""
        return [part for index in range(len(self)) for part in self[index] if isinstance(part, str)]

    def _look(self, index: int, parts: list[Part], look: Callable[[Path], Any]) -> None:
        try:
            for part in parts:
                if isinstance(part, Path):
                    look(part)
        except DocumentError as error:
            self.left_out[index] = str(error)

    def _bear(self) -> None:
        """
        Raises:
            DocumentError: more were left out than may be.
        """
        count, total = len(self.left_out), len(self)
        if count <= self._unreadable * total:
            return
        told = [f"{self.where(index)}: {self.left_out[index]}" for index in sorted(self.left_out)[:NAMED]]
        more = f"; and {count - NAMED:,} more" if count > NAMED else ""
        raise DocumentError(
            f"{count:,} of {total:,} documents can't be read, where a share of {self._unreadable} may be left out (the setting "
            f"`unreadable`): mend them, or take them out; {'; '.join(told)}{more}"
        )


def _document(line: bytes, where: str) -> dict[str, Any]:
    """The object of a line."""
    document = parsed_line(line, where)
    if not isinstance(document, dict):
        raise DocumentError(f"{where} holds {type(document).__name__} instead of an object: write one a line")
    return document


def _parts(document: dict[str, Any], file: Path, row: int) -> list[Part]:
    """What an object is made of."""
    where, content = f"{file} line {row}", document.get("content")
    if content is not None and (both := sorted(document.keys() & {"image", "text"})):
        raise DocumentError(f'{where} has "content" and {both[0]!r}, which would be lost: put it into the content')
    if content is None:
        content = [{"image": document["image"]}] if "image" in document else []
        content += [document["text"]] if "text" in document else []
        if content and "text" not in document and (other := sorted(map(str, document.keys() - KEYS))):
            raise DocumentError(f"{where} has no text, but {other[0]!r}, which is not read: there are {_LISTED}")
    if not isinstance(content, list) or not content:
        raise DocumentError(f'{where} has neither "content" (a list) nor "text" nor "image"')
    return [_part(part, file, where) for part in content]


def _part(part: Any, file: Path, where: str) -> Part:
    if isinstance(part, str) and part:
        check_letters(part, f"{where}:")
        return part
    if isinstance(part, dict) and isinstance(name := part.get("image"), str) and name:
        if other := sorted(part.keys() - {"image"}):
            raise DocumentError(
                f'{where}: {other[0]!r} stands beside "image", where nothing else is read: put it after it'
            )
        return named(file.parent, name, where)
    raise DocumentError(f'{where}: {part!r:.60} is neither a text nor {{"image": "its file"}}')


def open_documents(
    path: Path,
    unreadable: float,
    say: Callable[[str], None],
    *,
    whole: bool = False,
    advance: Callable[[], None] | None = None,
) -> Documents:
    """Documents, with a word about those that are left out and what is not read.

    Args:
        whole: reads every image, and not only where it begins and ends.

    Raises:
        DocumentError: as `Documents`; where the images are read, after all that can't be read were named.
    """
    documents = Documents(path, unreadable, checked=whole)
    try:
        if whole:
            documents.read_all(advance or (lambda: None))
    finally:
        for note in documents.notes():
            say(f"note: {note}")
    return documents


def tell(line: str) -> None:
    """A line on standard error, also from a process that only makes batches."""
    print(f"note: {line}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentExamples:
    """Documents as Flamingo trains on them (section 2.4 and appendix A.3.1): a random stretch of `length` positions with at most
    the first `images` images in it; all texts belong to the image before them or, half the time, to the one after. A stretch
    without an image is plain text."""

    documents: Documents
    assembler: Assembler
    length: int = 256
    images: int = 5
    next_probability: float = 0.5

    def __len__(self) -> int:
        return len(self.documents)

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        """A stretch of a document or, where it has an image that can't be read, of the next one. Which one that is depends on the
        files and the generator alone, not on what was left out before: a run that goes on sees what it would have seen.

        Raises:
            DocumentError: more documents than may be left out can't be read, or none can.
        """
        for step in range(len(self.documents)):
            number = (index + step) % len(self.documents)
            try:
                return self._example(number, rng)
            except DocumentError as error:
                self.documents.leave_out(number, error)
        raise DocumentError(f"no document of {self.documents.path} can be read: mend their images")

    def _example(self, index: int, rng: np.random.Generator) -> Sequence:
        to_next = bool(rng.random() < self.next_probability)
        stretch = self._stretch(self.documents[index], rng)
        if not any(isinstance(part, Path) for part in stretch):
            texts = [part for part in stretch if isinstance(part, np.ndarray)]
            return self.assembler.text(np.concatenate([np.zeros(0, np.int32), *texts]), eos=False)
        parts = [self._sized(read_image(part)) if isinstance(part, Path) else part for part in stretch]
        return self.assembler.document(parts, to_next=to_next)

    def _stretch(self, document: list[Part], rng: np.random.Generator) -> list[Path | np.ndarray]:
        """Text as ids int32 (n,), cut where the stretch begins and ends; an image is in it whole or not at all."""
        whole: list[Path | np.ndarray] = [
            part if isinstance(part, Path) else self.assembler.text_tokenizer.encode(part) for part in document
        ]
        # An image takes its own positions, and one for the mark that ends its chunk.
        lengths = [self._image_positions + 1 if isinstance(part, Path) else len(part) for part in whole]
        room = self.length - 1  # the beginning mark
        start = int(rng.integers(max(0, sum(lengths) - room) + 1))
        taken: list[Path | np.ndarray] = []
        at = shown = 0
        for part, length in zip(whole, lengths, strict=True):
            low, high = max(start - at, 0), min(start + room - at, length)
            at += length
            if isinstance(part, Path):
                if low == 0 and high == length and length:
                    if shown == self.images:
                        break  # the texts from here on belong to images that are not shown
                    taken.append(part)
                    shown += 1
            elif high > low:
                taken.append(part[low:high])
        return taken

    def _sized(self, image: np.ndarray) -> np.ndarray:
        """As patches, where every pixel costs positions, an image is stretched to a square that takes a quarter of the length
        at most, as 256 pixels a side do in a stretch of 1024; in all other ways it stays as it is."""
        if "patches" not in self.assembler.images.split("+"):
            return image
        return to_frame(image, PATCH_SIZE * max(1, math.isqrt(self.length // 4)))

    @cached_property
    def _image_positions(self) -> int:
        return len(self.assembler.document([self._sized(np.zeros((16, 16, 3), np.uint8))])) - 1
