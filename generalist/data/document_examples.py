"""Training examples from the user's own documents, as Flamingo trains on them.

Dimension key: n ids of a text, H height and W width of an image, h and w after resizing.
"""

import dataclasses
import math
from functools import cached_property

import numpy as np
from jaxtyping import Int32, UInt8

from generalist.data.documents import Documents
from generalist.data.files import DocumentError
from generalist.data.formats.documents import Part
from generalist.data.images import ImageRef, read_image
from generalist.tokenizers.image import to_frame
from generalist.tokenizers.pieces import PATCH_SIZE
from generalist.tokenizers.sequence import Assembler, Sequence

Taken = ImageRef | Int32[np.ndarray, "_n"]
"""An image that is not read yet, or the ids of a text."""


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
            TooManyBroken: more documents than may be left out can't be read.
            DocumentError: none can.
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
        texts = [part for part in stretch if isinstance(part, np.ndarray)]
        if len(texts) == len(stretch):
            # The empty array serves a stretch in which nothing fits, such as one image longer than the row.
            return self.assembler.text(np.concatenate([np.zeros(0, np.int32), *texts]), eos=False)
        # Only the images of the stretch are read.
        parts = [part if isinstance(part, np.ndarray) else self._sized(read_image(part)) for part in stretch]
        return self.assembler.document(parts, to_next=to_next)

    def _stretch(self, document: list[Part], rng: np.random.Generator) -> list[Taken]:
        """A random stretch of a document: texts as ids, cut at both ends; an image is included whole or not at all."""
        encode = self.assembler.encode
        whole: list[Taken] = [encode(part) if isinstance(part, str) else part for part in document]
        # An image takes its own positions, and one for the mark that ends its chunk.
        lengths = [len(part) if isinstance(part, np.ndarray) else self._image_positions + 1 for part in whole]
        room = self.length - 1  # one position is for the beginning mark
        start = int(rng.integers(max(0, sum(lengths) - room) + 1))
        taken: list[Taken] = []
        at = shown = 0  # positions before the part; images taken
        for part, length in zip(whole, lengths, strict=True):
            # The stretch's bounds, counted within the part.
            low, high = max(start - at, 0), min(start + room - at, length)
            at += length
            if not isinstance(part, np.ndarray):
                if low == 0 and high == length and length:
                    if shown == self.images:
                        break  # the texts from here on belong to images that are not shown
                    taken.append(part)
                    shown += 1
            elif high > low:
                taken.append(part[low:high])
        return taken

    def _sized(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return stretched(image, self.assembler, self.length)

    @cached_property
    def _image_positions(self) -> int:
        """Positions of an image, all of one number: measured on one, so that no rule of the assembler is repeated here."""
        # Without the beginning mark.
        return len(self.assembler.document([self._sized(np.zeros((16, 16, 3), np.uint8))])) - 1


def stretched(image: UInt8[np.ndarray, "H W 3"], assembler: Assembler, length: int) -> UInt8[np.ndarray, "h w 3"]:
    """If images enter as patches, where every pixel costs positions: the image stretched to a square that takes at most a quarter
    of a row's `length`, such as 256 pixels per side for a length of 1024; otherwise unchanged."""
    if "patches" not in assembler.images.split("+"):
        return image
    return to_frame(image, PATCH_SIZE * max(1, math.isqrt(length // 4)))
