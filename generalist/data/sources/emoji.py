"""Emoji drawings with their names: captions, and naming as question and answer.

Dimension key: S pixels per side of a drawing (72).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from generalist.data.emoji import drawings, things, training_texts, variant
from generalist.data.examples import EmojiExamples, Examples
from generalist.data.source import Reading, Say, Source, Stored, Ways, register


@dataclasses.dataclass(frozen=True)
class Variants:
    """The fixed variants of every training drawing."""

    count: int
    """Variants of each drawing."""

    def __len__(self) -> int:
        return len(drawings("train")) * self.count

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        # One at a time: ten variants of each would take half a gigabyte.
        return (variant(drawing, number) for drawing in drawings("train") for number in range(self.count))


@register("emoji")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Emoji(Source):
    """Images and their names."""

    variants: int = 0
    """Fixed variants of each drawing, so that a frozen encoder's features can be stored; 0 draws a new variant each time."""
    naming_items: int = 400
    """Maximum number of held-out drawings per split that an evaluation asks the name of."""
    naming_choices: int = 10
    """Names to choose among; chance is one over this number."""

    def __post_init__(self) -> None:
        for name, least in (("variants", 0), ("naming_items", 1), ("naming_choices", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"data.emoji.{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("naming",)

    def check_settings(self, name: str, ways: Ways) -> None:
        """See `Source.check_settings`."""
        if ways.features == "stored" and not self.variants:
            raise ValueError(f"data.features = stored needs a fixed set of images: set data.{name}.variants above 0")

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Checks that the drawings are installed, and that there are enough names to choose among."""
        if not self.takes_part:
            return
        drawings("train")  # raises if a package is missing
        # Not in `__post_init__`: the number of things is known only with the packages, which a source left out does not need.
        if self.naming_choices > (most := len(things("names"))):
            raise ValueError(
                f"data.{name}.naming_choices must be from 2 to {most}, the number of held-out things, got {self.naming_choices}"
            )

    def texts(self, stored: Stored) -> list[str]:
        """See `Source.texts`."""
        return training_texts()

    def fixed_images(self) -> Variants | None:
        """See `Source.fixed_images`."""
        return Variants(self.variants) if self.variants else None

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """See `Source.open`."""
        return [
            EmojiExamples(drawings=drawings("train"), assembler=reading.assembler, variants=self.variants)
        ]  # fmt: skip
