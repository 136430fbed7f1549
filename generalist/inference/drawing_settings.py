"""How images are drawn. Does not import JAX, so that a wrong setting is reported at once."""

import dataclasses
import operator

from generalist.tokenizers.drawing import LARGEST_GUIDANCE

# The program that draws computes in float32 and int32, in which wider ranges end in infinity.
LEAST, LARGEST = 1e-3, 1e3  # temperatures
LEAST_SHARE = 1e-6
LARGEST_TOP_K = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawingSettings:
    """How images are drawn."""

    guidance: float = 3.0
    """How far the text counts: 1 as much as the model says, and with `min_p` = 0 drawings are of the model as it is; above 1,
    what the text makes likelier."""
    temperature: float = 1.0
    """Of the draws."""
    top_k: int = 0
    """Draw only from the k likeliest codes; 0: from all."""
    top_p: float = 1.0
    """Draw only from the fewest likeliest codes that together have this probability."""
    min_p: float = 0.1
    """Draw only codes that, with the text, are at least this share as likely as the likeliest; 0: from all. Guidance needs it:
    the ratio of two tiny probabilities can be anything (contrastive decoding; Li et al., 2022, section 3.3)."""
    seed: int = 0
    """Seed of the draws; together with the number of the image it determines the image."""

    def __post_init__(self) -> None:
        for name in ("top_k", "seed"):
            try:
                operator.index(getattr(self, name))
            except TypeError:
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}") from None
        # `not` also refuses NaN.
        if not 1 <= self.guidance <= LARGEST_GUIDANCE:
            raise ValueError(
                f"guidance must be a number from 1 to {LARGEST_GUIDANCE:g}, got {self.guidance}: at 1 the text counts as much as "
                "the model says"
            )
        if not LEAST <= self.temperature <= LARGEST:
            raise ValueError(
                f"temperature must be a number from {LEAST:g} to {LARGEST:g}, got {self.temperature}: top_k = 1 draws the "
                "likeliest codes"
            )
        if not 0 <= self.top_k <= LARGEST_TOP_K:
            raise ValueError(f"top_k must be from 0 to {LARGEST_TOP_K:,}, got {self.top_k}: 0 draws from all codes")
        if not LEAST_SHARE <= self.top_p <= 1:
            raise ValueError(f"top_p must be from {LEAST_SHARE:g} to 1, got {self.top_p}: 1 draws from all codes")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must be at least 0 and below 1, got {self.min_p}: 0 draws from all codes")


def check_counts(count: int, candidates: int) -> None:
    """Checks the numbers of images that are kept and drawn.

    Raises:
        ValueError: no image is kept, or more than are drawn.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if candidates < count:
        raise ValueError(
            f"best_of must be at least count = {count}, the images that are kept, got {candidates}: raise it, or leave it out"
        )


def check_text(text: str) -> None:
    """Checks that there is something to draw.

    Raises:
        ValueError: the text is empty. Drawing without one is what texts are compared with: nothing guides it, or tells which
            drawing is best.
    """
    if not text.strip():
        raise ValueError("the text is empty: say what the image shows, such as 'a red heart'")
