"""Training examples from a user's own documents, as Flamingo trains on them."""

import dataclasses
import math
from functools import cached_property

import numpy as np

from generalist.data.documents import Documents
from generalist.data.files import DocumentError
from generalist.data.formats.documents import Part
from generalist.data.images import ImageRef, read_image
from generalist.tokenizers.image import to_frame
from generalist.tokenizers.pieces import PATCH_SIZE
from generalist.tokenizers.sequence import Assembler, Sequence

Taken = ImageRef | np.ndarray
"""An image that is not read yet, or text as ids, int32 (n,)."""


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
            TooManyBroken: more documents than may be left out can't be read.
            DocumentError: none can.
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
        texts = [part for part in stretch if isinstance(part, np.ndarray)]
        if len(texts) == len(stretch):
            return self.assembler.text(np.concatenate([np.zeros(0, np.int32), *texts]), eos=False)
        parts = [part if isinstance(part, np.ndarray) else self._sized(read_image(part)) for part in stretch]
        return self.assembler.document(parts, to_next=to_next)

    def _stretch(self, document: list[Part], rng: np.random.Generator) -> list[Taken]:
        """Text as ids int32 (n,), cut where the stretch begins and ends; an image is in it whole or not at all."""
        encode = self.assembler.text_tokenizer.encode
        whole: list[Taken] = [encode(part) if isinstance(part, str) else part for part in document]
        # An image takes its own positions, and one for the mark that ends its chunk.
        lengths = [len(part) if isinstance(part, np.ndarray) else self._image_positions + 1 for part in whole]
        room = self.length - 1  # the beginning mark
        start = int(rng.integers(max(0, sum(lengths) - room) + 1))
        taken: list[Taken] = []
        at = shown = 0
        for part, length in zip(whole, lengths, strict=True):
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

    def _sized(self, image: np.ndarray) -> np.ndarray:
        """As patches, where every pixel costs positions, an image is stretched to a square that takes a quarter of the length
        at most, as 256 pixels a side do in a stretch of 1024; in all other ways it stays as it is."""
        if "patches" not in self.assembler.images.split("+"):
            return image
        return to_frame(image, PATCH_SIZE * max(1, math.isqrt(self.length // 4)))

    @cached_property
    def _image_positions(self) -> int:
        return len(self.assembler.document([self._sized(np.zeros((16, 16, 3), np.uint8))])) - 1
