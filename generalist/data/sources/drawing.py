"""Emoji drawings as codes after their names: text to image (docs/drawing.md)."""

import dataclasses
from collections.abc import Sequence

from generalist.data.drawn import TEMPLATES, DrawnExamples, drawing_codes
from generalist.data.emoji import drawings
from generalist.data.examples import Examples
from generalist.data.source import Reading, Say, Source, Stored, Ways, register
from generalist.tokenizers.drawing import LARGEST_GUIDANCE


@register("drawing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImage(Source):
    """Names and the codes of their images."""

    weight: float = 0.0
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    variants: int = 1
    """Fixed variants of each drawing, the first of which is the drawing as it is. More are harder to learn."""
    without_text: float = 0.1
    """Share of the examples whose text is left out, so that drawing can be guided (Ho & Salimans, 2022)."""
    infilling: float = 0.2
    """Share of the examples of which a part is given, so that images can be edited."""
    noise: float = 0.3
    """Maximum share of an example's codes that are read wrongly, so that a wrongly drawn code does not spoil the rest."""

    evaluation_items: int = 0
    """Maximum number of names that an evaluation draws, of each split; 0: drawing is not evaluated."""
    evaluation_judge: str = ""
    """A run of `train.py contrastive` that judges the drawings in an evaluation; it must not rank them."""
    evaluation_towers: str = ""
    """Another run of `train.py contrastive` that ranks the drawings of a name. Empty: the weights rank them."""
    evaluation_guidance: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Strengths of guidance that are evaluated."""
    evaluation_best_of: tuple[int, ...] = (1, 8, 32)
    """Numbers of drawings per name of which the best is judged."""

    def __post_init__(self) -> None:
        if self.variants < 1:
            raise ValueError(f"data.drawing.variants must be at least 1, got {self.variants}")
        if self.evaluation_items and self.evaluation_items < 3:
            raise ValueError(f"data.drawing.evaluation_items must be 0 or at least 3, got {self.evaluation_items}")
        if not self.evaluation_best_of or min(self.evaluation_best_of) < 1:
            raise ValueError(f"data.drawing.evaluation_best_of must be numbers above 0, got {self.evaluation_best_of}")
        # A comparison also refuses NaN.
        if not self.evaluation_guidance or not all(1 <= one <= LARGEST_GUIDANCE for one in self.evaluation_guidance):
            raise ValueError(
                f"data.drawing.evaluation_guidance must be numbers from 1 to {LARGEST_GUIDANCE:g}, got {self.evaluation_guidance}"
            )
        for name in ("without_text", "infilling", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.drawing.{name} must be from 0 to 1, got {getattr(self, name)}")

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("drawing",) if self.evaluation_items else ()

    @property
    def draws(self) -> bool:
        """See `Source.draws`."""
        return True

    def check_settings(self, name: str, ways: Ways) -> None:
        """See `Source.check_settings`."""
        if not ways.codes:
            raise ValueError(
                f"data.{name} needs an image tokenizer: set tokens.image_tokenizer to the folder of one, which "
                "`train.py image_tokenizer` trains, or to learned, which trains it first"
            )

    def check_cells(self, cells: int, length: int) -> None:
        """See `Source.check_cells`."""
        # The markers around the text, and at least one piece of it: how many a name has is known once the pieces are learned.
        if (least := cells + 3) > length:
            raise ValueError(
                f"data.length = {length}, but a name and its drawing of {cells} codes take at least {least} positions, some tens "
                f"more for a long name: raise it, for example to {-(-(least + 29) // 32) * 32}"
            )

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Checks that the drawings are installed, and that drawing is not evaluated without being learned."""
        if self.takes_part:
            drawings("train")  # raises if a package is missing
        elif self.evaluation_items:
            raise ValueError(
                f"data.{name}.evaluation_items = {self.evaluation_items}, but data.{name}.weight = 0, so that nothing is drawn: "
                "raise the weight, or leave the items out"
            )

    def texts(self, stored: Stored) -> list[str]:
        """See `Source.texts`."""
        return sorted({template.format(one.name) for one in drawings("train") for template in TEMPLATES})

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """See `Source.open`.

        Raises:
            ValueError: the longest example does not fit a row, or stored codes are damaged.
        """
        train, assembler = drawings("train"), reading.assembler
        assert assembler.codes is not None, "check_settings refuses a run without an image tokenizer"
        texts = (TEMPLATES[-1].format(one.name) for one in train)
        longest = 2 + max(len(assembler.text_tokenizer.encode(text)) for text in texts) + assembler.codes.side**2
        if longest > reading.length:
            raise ValueError(
                f"data.length = {reading.length}, but a name and its drawing take up to {longest} positions: raise it"
            )
        codes = drawing_codes(train, self.variants, assembler.codes, stored.folder / "codes")
        return [
            DrawnExamples(
                drawings=train,
                codes=codes,
                assembler=assembler,
                side=assembler.codes.side,
                without_text=self.without_text,
                infilling=self.infilling,
                noise=self.noise,
            )
        ]
