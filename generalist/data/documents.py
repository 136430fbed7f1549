"""The user's own documents: text and images in any order, one document per line of a JSONL file, images as files beside it.

{"content": ["A cat", {"image": "cat.png"}, "on a mat", {"image": "dog.png"}, "and a dog."]}
{"image": "cat.png", "text": "a cat on a mat"}          a pair: short for an image followed by its text
{"text": "no image at all"}

Dimension key: H height, W width of an image, h and w after resizing.
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
from jaxtyping import UInt8

from generalist.data.files import DocumentError, check_letters, lines, named, parsed_line
from generalist.data.images import check_image, read_image
from generalist.tokenizers.image import to_frame
from generalist.tokenizers.pieces import PATCH_SIZE
from generalist.tokenizers.sequence import Assembler, Sequence

UNREADABLE = 0.05
"""Share of the documents that may have an unreadable image; these are left out, counted and named."""
REPORTED = 10  # documents left out that are reported one by one; after them only the 16th, the 32nd, and so on
LISTED = 20  # of them in an error message
KEYS = {"content", "image", "text"}
_KEYS = ", ".join(sorted(KEYS))

Part = str | Path
"""A text, or an image's file."""


class Documents:
    """The documents of a file, or of all `*.jsonl` files of a folder. Only each document's offset is kept in memory.

    A document with an unreadable image is left out wherever it comes up, as long as there are few of them.

    Args:
        path: the file or the folder.
        unreadable: the share that may be left out.
        checked: whether the images were checked already; checking opens each of them, which takes a while if there are many.

    Raises:
        DocumentError: there is no document, one is malformed, or more than that share have an image that is missing, of an
            unknown format, too large, or cut off. Pixels are not read for this check; see `read_all`.
    """

    def __init__(self, path: Path, unreadable: float = UNREADABLE, *, checked: bool = False):
        self.path, self._unreadable = Path(path), unreadable
        self._files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.jsonl"))
        if not self._files:
            raise DocumentError(f"{self.path} is neither a JSONL file nor a folder with *.jsonl files")
        self.left_out: dict[int, str] = {}
        """Index of a document that can't be read → the reason; complete only after `read_all`."""
        self.unread: Counter[str] = Counter()
        """Keys that are ignored, and how many documents have them."""
        found: list[tuple[int, int, int]] = []
        for number, file in enumerate(self._files):
            for row, offset, line in lines(file):
                # A malformed document is an error whatever the share: it is a mistake, where a bad image is an accident.
                document = _document(line, f"{file} line {row}")
                parts = _parts(document, file, row)
                self.unread.update(document.keys() - KEYS)
                if not checked:
                    self._look(len(found), parts, check_image)
                found.append((number, offset, row))
        if not found:
            raise DocumentError(f"{self.path} has no document: write one per line")
        # 24 bytes per document, whatever its length: (documents, file and offset and line).
        self._index = np.array(found, np.int64)
        self._check_share()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> list[Part]:
        """A document's texts and images in order."""
        number, offset, row = self._index[index].tolist()
        # Opened for each document: loaders in several processes and threads read at once, and share no position.
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
            advance: called after each document.

        Raises:
            DocumentError: more than the allowed share can't be read.
        """
        for index in range(len(self)):
            self._look(index, self[index], read_image)
            advance()
        # Only at the end, so that all of them are known at once.
        self._check_share()

    def leave_out(self, index: int, why: DocumentError) -> None:
        """Counts a document with an unreadable image and reports it on standard error, once.

        Raises:
            DocumentError: more than the allowed share were left out.
        """
        if index in self.left_out:
            return
        self.left_out[index] = str(why)
        self._check_share()
        count = len(self.left_out)
        # A power of two has one bit: the reports get rarer as they get longer.
        if count <= REPORTED or count & (count - 1) == 0:
            tell(f"left out ({count:,} of {len(self):,} documents so far): {self.where(index)}: {why}")

    def notes(self) -> list[str]:
        """Lines for the user before training: the documents left out so far, and the keys that are ignored."""
        reasons = [f"left out: {self.where(index)}: {why}" for index, why in sorted(self.left_out.items())]
        return reasons + [
            f"{self.path}: the key {key!r} of {count:,} documents is not read; known keys are {_KEYS}"
            for key, count in self.unread.most_common()
        ]

    def pairs(self) -> list[tuple[int, Path, str]]:
        """The documents that consist of one image followed by one text, as a contrastive loss needs them, with their indices.

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
        """All texts, for training a text tokenizer."""
        return [part for index in range(len(self)) for part in self[index] if isinstance(part, str)]

    def _look(self, index: int, parts: list[Part], look: Callable[[Path], Any]) -> None:
        """Applies `look` to each image of a document, and leaves the document out if it fails."""
        try:
            for part in parts:
                if isinstance(part, Path):
                    look(part)
        except DocumentError as error:
            self.left_out[index] = str(error)

    def _check_share(self) -> None:
        """
        Raises:
            DocumentError: more than the allowed share were left out.
        """
        count, total = len(self.left_out), len(self)
        if count <= self._unreadable * total:
            return
        reasons = [f"{self.where(index)}: {self.left_out[index]}" for index in sorted(self.left_out)[:LISTED]]
        more = f"; and {count - LISTED:,} more" if count > LISTED else ""
        raise DocumentError(
            f"{count:,} of {total:,} documents can't be read, but the setting `unreadable` allows a share of {self._unreadable}: "
            f"repair them, remove them, or raise it; {'; '.join(reasons)}{more}"
        )


def _document(line: bytes, where: str) -> dict[str, Any]:
    """The object on a line."""
    document = parsed_line(line, where)
    if not isinstance(document, dict):
        raise DocumentError(f"{where} holds {type(document).__name__} instead of an object: write one object per line")
    return document


def _parts(document: dict[str, Any], file: Path, row: int) -> list[Part]:
    """The texts and images of an object, in order."""
    where, content = f"{file} line {row}", document.get("content")
    if content is not None and (both := sorted(document.keys() & {"image", "text"})):
        raise DocumentError(f'{where} has "content" and {both[0]!r}, which would be lost: put it into the content')
    if content is None:
        content = [{"image": document["image"]}] if "image" in document else []
        content += [document["text"]] if "text" in document else []
        # Other keys are ignored with a note; but beside a lone image one of them is probably the text, misnamed.
        if content and "text" not in document and (other := sorted(map(str, document.keys() - KEYS))):
            raise DocumentError(
                f"{where} has no text, but the key {other[0]!r}, which is not read: known keys are {_KEYS}"
            )
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
                f'{where}: {other[0]!r} stands beside "image" and would be lost: make it a part of its own after the image'
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
    """Opens documents, and reports those that are left out and the keys that are ignored.

    Args:
        path: the file or the folder.
        unreadable: the share that may be left out.
        say: prints a line.
        whole: reads every image whole, not only its beginning and end.
        advance: called after each document that is read whole.

    Raises:
        DocumentError: as `Documents`; with `whole`, after all unreadable documents were reported.
    """
    # Reading an image whole includes the check of its beginning and end.
    documents = Documents(path, unreadable, checked=whole)
    try:
        if whole:
            documents.read_all(advance or (lambda: None))
    finally:
        for note in documents.notes():
            say(f"note: {note}")
    return documents


def tell(line: str) -> None:
    """Prints a line on standard error: in a loader process there is no console, and standard output may be a table."""
    print(f"note: {line}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentExamples:
    """Documents as Flamingo trains on them (section 2.4 and appendix A.3.1): a random stretch of `length` positions with at most
    its first `images` images; all texts attend to the image before them or, with `next_probability`, to the one after. A stretch
    without an image is plain text."""

    documents: Documents
    assembler: Assembler
    length: int = 256
    """Maximum number of positions of a stretch."""
    images: int = 5
    """Maximum number of images in a stretch."""
    next_probability: float = 0.5
    """Probability that all texts of a stretch attend to the next image instead of the previous one."""

    def __len__(self) -> int:
        return len(self.documents)

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        """A stretch of a document or, if one of its images can't be read, of the next one that can.

        Raises:
            DocumentError: more documents than may be left out can't be read, or none can.
        """
        for step in range(len(self.documents)):
            number = (index + step) % len(self.documents)
            # Tried even if it was left out before: the outcome, and what it draws, must depend on the files and the generator
            # alone, or a resumed run, which has not met the bad image yet, would see other examples.
            try:
                return self._example(number, rng)
            except DocumentError as error:
                self.documents.leave_out(number, error)
        raise DocumentError(f"no document of {self.documents.path} can be read: repair their images")

    def _example(self, index: int, rng: np.random.Generator) -> Sequence:
        to_next = bool(rng.random() < self.next_probability)
        stretch = self._stretch(self.documents[index], rng)
        if not any(isinstance(part, Path) for part in stretch):
            texts = [part for part in stretch if isinstance(part, np.ndarray)]
            # The empty array serves a stretch in which nothing fits, such as one image longer than the row.
            return self.assembler.text(np.concatenate([np.zeros(0, np.int32), *texts]), eos=False)
        # Only the images of the stretch are read.
        parts = [self._sized(read_image(part)) if isinstance(part, Path) else part for part in stretch]
        return self.assembler.document(parts, to_next=to_next)

    def _stretch(self, document: list[Part], rng: np.random.Generator) -> list[Path | np.ndarray]:
        """A random stretch of a document: texts as ids int32 (n,), cut at both ends; an image is included whole or not at all."""
        whole: list[Path | np.ndarray] = [
            part if isinstance(part, Path) else self.assembler.text_tokenizer.encode(part) for part in document
        ]
        # An image takes its own positions, and one for the mark that ends its chunk.
        lengths = [self._image_positions + 1 if isinstance(part, Path) else len(part) for part in whole]
        room = self.length - 1  # one position is for the beginning mark
        start = int(rng.integers(max(0, sum(lengths) - room) + 1))
        taken: list[Path | np.ndarray] = []
        at = shown = 0  # positions before the part; images taken
        for part, length in zip(whole, lengths, strict=True):
            # The stretch's bounds, counted within the part.
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

    def _sized(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """If images enter as patches, where every pixel costs positions: stretched to a square that takes at most a quarter of
        the length, such as 256 pixels per side for a length of 1024; otherwise unchanged."""
        if "patches" not in self.assembler.images.split("+"):
            return image
        return to_frame(image, PATCH_SIZE * max(1, math.isqrt(self.length // 4)))

    @cached_property
    def _image_positions(self) -> int:
        """Positions of an image, all of one number: measured on one, so that no rule of the assembler is repeated here."""
        # Without the beginning mark.
        return len(self.assembler.document([self._sized(np.zeros((16, 16, 3), np.uint8))])) - 1
