"""Episodes that bind made-up names to classes of drawings (docs/prompts.md)."""

import dataclasses
from collections.abc import Sequence

from generalist.data.emoji import drawings
from generalist.data.examples import Examples
from generalist.data.new_words import FewShotExamples
from generalist.data.source import Reading, Say, Source, Stored, Ways, register
from generalist.data.sources.emoji import Variants


@register("fewshot")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NewWords(Source):
    """New words for new images."""

    weight: float = 0.0
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    images: int = 20
    """Maximum number of images per episode; each takes about six positions with its name."""
    ways: int = 6
    """Maximum number of classes per episode."""
    variants: int = 10
    """Fixed variants of each drawing."""

    def __post_init__(self) -> None:
        # Two images of each of two classes are the least that has a name to predict for both.
        for name, least in (("images", 4), ("ways", 2), ("variants", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"data.fewshot.{name} must be at least {least}, got {getattr(self, name)}")

    def check_settings(self, name: str, ways: Ways) -> None:
        """See `Source.check_settings`."""
        # Only images of cross-attention are limited per row; others are limited by its length.
        if self.images > ways.row_images and "encoder" in ways.documents:
            raise ValueError(
                f"data.{name}.images = {self.images} exceeds data.row_images = {ways.row_images}, the maximum per row: raise the "
                "latter, or lower the former"
            )

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Checks that the drawings are installed."""
        if self.takes_part:
            drawings("train")  # raises if a package is missing

    def fixed_images(self) -> Variants:
        """See `Source.fixed_images`."""
        # Equal to those of the emoji source if both have as many variants: their features are then computed once.
        return Variants(self.variants)

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """See `Source.open`."""
        return [
            FewShotExamples(
                assembler=reading.assembler,
                length=reading.length,
                images=self.images,
                ways=self.ways,
                variants=self.variants,
            )
        ]
