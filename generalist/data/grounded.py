"""Images of which texts and places are known: regions with phrases that describe them, and questions with answers."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from generalist.data.formats.places import Place
from generalist.data.images import Size, check_image, read_image
from generalist.tokenizers.locations import Box

Kind = Literal["regions", "questions"]
"""What is known of an image; the names of the fields of `Grounded`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """A part of an image, and a text that describes it."""

    box: Box
    phrase: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question about an image, with its one answer."""

    text: str
    answer: str
    structure: str = ""
    """What it asks for, by GQA's structural types, such as `verify` or `query`; empty if its set has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photograph:
    """An image's file, and the size that its annotations give it; None: they give none."""

    file: Place
    size: Size | None

    def read(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image, turned as its annotations mean it.

        Raises:
            DocumentError: see `read_image`.
        """
        return read_image(self.file, self.size)

    def check(self) -> None:
        """Checks it without reading its pixels.

        Raises:
            DocumentError: see `check_image`.
        """
        check_image(self.file, self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grounded:
    """An image with what is known of it."""

    image: Place
    regions: Sequence[Region] = ()
    questions: Sequence[Question] = ()
    where: str
    """File and entry, for messages."""


class GroundedSet(abc.ABC):
    """A set of such images in a published layout, divided into splits.

    Raises:
        DocumentError: a file is missing or damaged; the message names it, the field and the remedy.
    """

    name: str
    splits: tuple[str, ...]
    """The splits that an evaluation scores; `train` is another one."""

    has_regions: bool = True
    """Whether there are regions to point to."""
    has_questions: bool = False
    """Whether there are questions with answers."""
    literal_answers: bool = False
    """Whether an answer is right only if its text is the known one; otherwise both are normalised first."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is known of its images."""
        has: dict[Kind, bool] = {"regions": self.has_regions, "questions": self.has_questions}
        return tuple(kind for kind, is_there in has.items() if is_there)

    def scored(self, split: str) -> tuple[Kind, ...]:
        """The kinds that an evaluation can score on a split: those of which there are any, if it has two images, since everything
        is asked with another image too."""
        count = self.count(split)
        return tuple(
            kind
            for kind in self.kinds
            if count > 1 and any(getattr(self.image(split, index), kind) for index in range(count))
        )

    @abc.abstractmethod
    def count(self, split: str) -> int:
        """Number of images of a split."""

    @abc.abstractmethod
    def file(self, split: str, index: int) -> Place:
        """The file of an image of a split, whether or not it is there."""

    @abc.abstractmethod
    def size(self, split: str, index: int) -> Size | None:
        """The size of an image of a split, as the annotations give it; None: they do not."""

    def photograph(self, split: str, index: int) -> Photograph:
        """An image of a split, whether or not it is there."""
        return Photograph(file=self.file(split, index), size=self.size(split, index))

    @abc.abstractmethod
    def image(self, split: str, index: int) -> Grounded:
        """An image of a split, with everything that is asked about it."""

    @property
    @abc.abstractmethod
    def files(self) -> list[Place]:
        """The files with the annotations."""

    def notes(self) -> list[str]:
        """What a user should know of what was read, such as how much was left out."""
        return []


def pixel_box(x: float, y: float, width: float, height: float, *, of: Size) -> Box | None:
    """A box of pixels as shares of its image; what sticks out is cut off. None: nothing of it is within the image.

    Args:
        x, y: its left upper corner.
        width, height: its size.
        of: height and width of the image.
    """
    tall, wide = of
    top, left = max(0.0, y), max(0.0, x)
    bottom, right = min(tall, y + height), min(wide, x + width)
    if not (top < bottom and left < right):
        return None
    return Box.of_pixels(top, left, bottom, right, height=tall, width=wide)
