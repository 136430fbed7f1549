"""How the texts of a model begin and end, in ids.

Dimension key: H height, W width.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from generalist.tokenizers.shown import PanAndScan, Shown, Tiles, one_by_one
from generalist.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossMarks:
    """How a published model marks an image that its text sees through cross-attention."""

    image: int
    """The id of an image, from which on positions see it."""
    around: tuple[int, ...] = ()
    """Ids before and behind it; between two images in a row they stand once (IDEFICS)."""
    stripped: bool = False
    """Whether texts lose the spaces at both ends (IDEFICS)."""
    implied: bool = True
    """Whether an image ends the chunk before it (OpenFlamingo)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMarks:
    """What a published model's tokenizer writes for an image whose features stand in the sequence."""

    soft: str
    """The control token that stands at each of an image's positions."""
    id: int
    """Its id."""
    count: int
    """Positions of an image, or of each tile that it is cut into."""
    marker: str
    """The control token that stands for an image in the text of a chat template."""
    before: str = ""
    """Text before the positions, with control tokens written out."""
    after: str = ""
    """Text behind them."""
    closing: str = ""
    """Text at the end of a prompt."""
    begin_last: bool = False
    """Whether the marks of the beginning stand behind the last image (PaliGemma)."""
    blocks: Literal["none", "image", "prompt"] = "none"
    """What sees itself in both directions: nothing (LLaVA), each image (Gemma 3), or the whole prompt (PaliGemma)."""

    cut: PanAndScan | Tiles | None = None
    """How an image is cut into several; None: it is shown whole."""

    @property
    def text(self) -> str:
        """An image that is shown whole, written out."""
        return self._text(self.count)

    def shown(self, image: UInt8[np.ndarray, "H W 3"]) -> Shown:
        """What the encoder sees of an image, and its positions."""
        if isinstance(self.cut, Tiles):
            return self.cut.shown(image)
        return one_by_one([image, *(self.cut.crops(image) if self.cut is not None else [])], self.count)

    def written(self, shown: Shown) -> str:
        """An image, written out."""
        if isinstance(self.cut, Tiles):
            return self._text(len(shown.modality))
        first, *crops = [self.text] * len(shown.images)
        if not crops:
            return first
        # Gemma 3's own words.
        return f"Here is the original image {first} and here are some crops to help you see better {' '.join(crops)}"

    def _text(self, count: int) -> str:
        return f"{self.before}{self.soft * count}{self.after}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks:
    """The ids around texts: our own special ids, or those of a published language model."""

    begin: tuple[int, ...]
    """Ids before a document."""
    ends: tuple[int, ...]
    """Ids that end a text which is written."""
    chunk_end: int
    """Id behind each shot; a choice that is ranked includes it."""
    pieces: int
    """Number of ids that a text is made of, from 0 on."""
    stops: tuple[str, ...] = ()
    """Texts that also end what is written after shots."""
    silent: tuple[int, ...] = ()
    """Ids among those of texts that are never written, such as an image's."""
    cross: CrossMarks | None = None
    """How images are marked that a published model sees through cross-attention; None: it has none."""
    image: ImageMarks | None = None
    """How images stand in the text; None: they don't."""

    @property
    def ended(self) -> bool:
        """Whether the end of an answer about an image must be marked, since the next image does not end it."""
        return self.image is not None or (self.cross is not None and not self.cross.implied)

    @classmethod
    def of(cls, vocabulary: Vocabulary, pieces: int) -> "Marks":
        """Our special ids.

        Args:
            pieces: size of the text tokenizer.
        """
        ends = (vocabulary.eos, vocabulary.chunk_end)
        return cls(begin=(vocabulary.bos,), ends=ends, chunk_end=vocabulary.chunk_end, pieces=pieces)
