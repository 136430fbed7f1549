"""A user's own documents: text and images in any order, one document a line of a JSONL file, images as files beside it.

{"content": ["A cat", {"image": "cat.png"}, "on a mat", {"image": "dog.png"}, "and a dog."]}
{"image": "cat.png", "text": "a cat on a mat"}          a pair: short for an image and then its text
{"text": "no image at all"}
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from generalist.tokenizers.image import to_frame
from generalist.tokenizers.pieces import PATCH_SIZE
from generalist.tokenizers.sequence import Assembler, Sequence

LARGEST_IMAGE = 64_000_000  # pixels: more is a mistake, or meant to exhaust the memory
# No format that is a program (EPS is run by another one), and none that Pillow needs a plugin for.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

_SURROGATE = re.compile("[\ud800-\udfff]")

Part = str | Path
"""A text, or an image's file."""


class DocumentError(ValueError):
    """A document or an image that cannot be read; the message names the file, the line and what is wrong."""


class Documents:
    """The documents of a file, or of all `*.jsonl` files of a folder. Only where each begins is kept in memory.

    Raises:
        DocumentError: there is none, or one of them is not as described above. All are checked at once, images for what their
            first bytes say: that they are there, of a known format and of a bearable size.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.jsonl"))
        if not self._files:
            raise DocumentError(f"{self.path} is neither a JSONL file nor a folder with *.jsonl files")
        found: list[tuple[int, int, int]] = []
        for number, file in enumerate(self._files):
            with file.open("rb") as lines:
                offset = 0
                for row, line in enumerate(lines, start=1):
                    if line.strip():
                        for part in self._parse(line, file, row):
                            if isinstance(part, Path):
                                _check_image(part, f"{file} line {row}")
                        found.append((number, offset, row))
                    offset += len(line)
        if not found:
            raise DocumentError(f"{self.path} has no document: write one a line")
        self._index = np.array(found, np.int64)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> list[Part]:
        """A document's texts and images in order."""
        number, offset, row = self._index[index].tolist()
        with self._files[number].open("rb") as file:
            file.seek(offset)
            return self._parse(file.readline(), self._files[number], row)

    def pairs(self) -> list[tuple[Path, str]]:
        """The documents that are one image with one text, as a contrastive loss needs them.

        Raises:
            DocumentError: there is none.
        """
        found = []
        for parts in map(self.__getitem__, range(len(self))):
            if len(parts) == 2 and isinstance(parts[0], Path) and isinstance(parts[1], str):
                found.append((parts[0], parts[1]))
        if not found:
            raise DocumentError(f'{self.path} has no pair of an image and a text: write {{"image": ..., "text": ...}}')
        return found

    def texts(self) -> list[str]:
        """All texts, for learning a text tokenizer."""
        return [part for index in range(len(self)) for part in self[index] if isinstance(part, str)]

    @staticmethod
    def _parse(line: bytes, file: Path, row: int) -> list[Part]:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DocumentError(f"{file} line {row} is not JSON ({error})") from error
        if not isinstance(document, dict):
            raise DocumentError(f"{file} line {row} holds {type(document).__name__} instead of an object")
        content = document.get("content")
        if content is None:
            content = [{"image": document["image"]}] if "image" in document else []
            content += [document["text"]] if "text" in document else []
        if not isinstance(content, list) or not content:
            raise DocumentError(f'{file} line {row} has neither "content" (a list) nor "text" nor "image"')
        return [_part(part, file, row) for part in content]


def _part(part: Any, file: Path, row: int) -> Part:
    if isinstance(part, str) and part:
        if _SURROGATE.search(part):
            raise DocumentError(
                f"{file} line {row}: {part!r:.60} has half a character (a lone surrogate): write it whole"
            )
        return part
    if isinstance(part, dict) and isinstance(name := part.get("image"), str) and name:
        try:
            path = (file.parent / name).resolve()
        except (ValueError, OSError, RuntimeError) as error:  # a NUL, or links in a ring
            raise DocumentError(f"{file} line {row}: {name!r:.60} is no file's name ({error})") from error
        if not path.is_relative_to(file.parent.resolve()):
            raise DocumentError(
                f"{file} line {row}: the image {name!r} is outside the folder of the file: put it inside"
            )
        return path
    raise DocumentError(f'{file} line {row}: {part!r:.60} is neither a text nor {{"image": "its file"}}')


def _check_image(path: Path, where: str) -> None:
    """Opens an image without reading its pixels.

    Raises:
        DocumentError: it is not there, no image, or too large.
    """
    try:
        if not path.is_file():
            raise DocumentError(f"there is no image {path}")
        with _opened(path):
            pass
    except (OSError, DocumentError) as error:  # OSError: such as a name that is too long
        raise DocumentError(f"{where}: {error}") from error


def read_image(path: Path) -> np.ndarray:
    """An image file, uint8 (H, W, 3), upright as its camera says; transparency is laid on white, 16 bits become 8.

    Raises:
        DocumentError: it is no image, broken, or larger than 64 million pixels.
    """
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):  # whose conversion would clip
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        layers = image.convert("RGBA")
    white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, layers).convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, opened; whatever goes wrong with it until it is closed names it."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise DocumentError(f"{path} has {image.width} × {image.height} pixels: make it smaller")
            yield image
    except DocumentError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DocumentError(f"{path} has too many pixels: make it smaller ({error})") from error
    except Exception as error:  # a broken file ends Pillow's decoders in many ways
        raise DocumentError(f"{path} is no image that can be read ({error})") from error


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
