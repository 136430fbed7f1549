"""Places in an image as tokens, in PaliGemma's order (Beyer et al., 2024, section 3.2): a box is four location tokens,

    <loc0102><loc0256><loc0511><loc0640> red heart ; <loc0000><loc0000><loc0200><loc0300> blue cat
     y_min    x_min    y_max    x_max    label

each the number of the bin of a coordinate, as a share of the image's height or width. In text a token is written `<loc0102>`;
`promoted` and `written` exchange that for its id of the vocabulary, which a text tokenizer would cut into several pieces.

Dimension key: n ids of a text.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, Int32

BINS = 1024
"""PaliGemma's number of bins."""
LARGEST_BINS = 10_000
"""Of four digits."""
BETWEEN = " ; "
"""What stands between two objects."""
NOISE = "noise"
"""Label of boxes at places where nothing is (Pix2Seq, section 2.4): a model learns to go on with these where it is unsure, and
they are left out of what it found."""

# Not \d, which also matches the digits of other scripts.
_TOKEN = re.compile(r"<loc([0-9]{4})>")
_BOX = re.compile(r"(?:<loc[0-9]{4}>){4}")
# A label ends where the next box begins, or the text ends; it may have a semicolon or a < of its own.
_OBJECT = re.compile(r"((?:<loc[0-9]{4}>){4})\s*((?:(?!<loc[0-9]{4}>).)*?)\s*(?=;\s*(?:<loc[0-9]{4}>|$)|$)", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle in an image, in shares of its height and width: 0 is the top or left edge, 1 the bottom or right one."""

    top: float
    left: float
    bottom: float
    right: float

    def __post_init__(self) -> None:
        # `not <=` also refuses NaN.
        if not (0 <= self.top <= self.bottom <= 1 and 0 <= self.left <= self.right <= 1):
            raise ValueError(
                f"a box has shares 0 <= top <= bottom <= 1 and 0 <= left <= right <= 1, got top {self.top}, left {self.left}, "
                f"bottom {self.bottom}, right {self.right}: divide pixels by the image's height or width"
            )

    @classmethod
    def of_pixels(cls, top: float, left: float, bottom: float, right: float, *, height: float, width: float) -> "Box":
        """The box of pixel edges in an image of that size."""
        return cls(top=top / height, left=left / width, bottom=bottom / height, right=right / width)

    @property
    def sides(self) -> tuple[float, float, float, float]:
        """y_min, x_min, y_max, x_max."""
        return self.top, self.left, self.bottom, self.right

    @property
    def area(self) -> float:
        """Share of the image that it covers."""
        return (self.bottom - self.top) * (self.right - self.left)

    def overlap(self, other: "Box") -> float:
        """Area of the intersection."""
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        width = min(self.right, other.right) - max(self.left, other.left)
        return max(0.0, height) * max(0.0, width)

    def iou(self, other: "Box") -> float:
        """Intersection over union; 0 for two empty boxes."""
        shared = self.overlap(other)
        union = self.area + other.area - shared
        return shared / union if union else 0.0

    def cropped(self, crop: "Box") -> "Box | None":
        """The box within a part of the image, in shares of that part; None: nothing of it is left."""
        if not self.overlap(crop):
            return None
        height, width = crop.bottom - crop.top, crop.right - crop.left

        def within(value: float, start: float, size: float) -> float:
            return min(1.0, max(0.0, (value - start) / size))

        return Box(
            top=within(self.top, crop.top, height),
            left=within(self.left, crop.left, width),
            bottom=within(self.bottom, crop.top, height),
            right=within(self.right, crop.left, width),
        )


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A box and what it shows."""

    box: Box
    label: str = ""


def box_text(box: Box, bins: int = BINS) -> str:
    """A box as four location tokens."""
    # The last bin holds its upper edge too: 1.0 is in bin `bins` - 1.
    return "".join(f"<loc{min(int(side * bins), bins - 1):04d}>" for side in box.sides)


def objects_text(objects: Sequence[Labelled], bins: int = BINS) -> str:
    """Boxes with their labels, as PaliGemma writes what it detects."""
    return BETWEEN.join(f"{box_text(one.box, bins)} {one.label}".rstrip() for one in objects)


def read_objects(text: str, bins: int = BINS, *, with_noise: bool = False) -> list[Labelled]:
    """The boxes that a text names, with their labels; what is no box of four tokens is left out, as are boxes whose sides are
    the wrong way around, and boxes labelled `noise`, which show no object. A side is the middle of its bin, so that it is at
    most half a bin from the one that was written.

    Args:
        text: what a model wrote.
        bins: of a coordinate.
        with_noise: boxes of noise are kept.
    """
    boxes = [(_box(tokens, bins), label) for tokens, label in _OBJECT.findall(text)]
    return [Labelled(box, label) for box, label in boxes if box is not None and (with_noise or label != NOISE)]


def first_box(text: str, bins: int = BINS) -> Box | None:
    """The box of a text's first four location tokens in a row, whatever follows; None without them, or if its sides are the wrong
    way around. A side is the middle of its bin."""
    found = _BOX.search(text)
    return None if found is None else _box(found[0], bins)


def _box(tokens: str, bins: int) -> Box | None:
    """The box of four location tokens; None if its sides are the wrong way around."""
    top, left, bottom, right = ((int(number) + 0.5) / bins for number in _TOKEN.findall(tokens))
    return Box(top=top, left=left, bottom=bottom, right=right) if top <= bottom <= 1 and left <= right <= 1 else None


def promoted(text: str, encode: Callable[[str], Int32[np.ndarray, "n"]], ids: range) -> Int32[np.ndarray, "n"]:
    """Ids of a text whose location tokens get their own ids.

    Args:
        text: may contain `<loc0000>` and so on.
        encode: ids of the text between them.
        ids: the vocabulary's range of locations; empty: such tokens are text like any other.

    Raises:
        ValueError: a location token has no id.
    """
    if not ids or "<loc" not in text:
        return encode(text)
    parts = []
    # Split by a pattern with a group: texts and numbers take turns.
    for part, is_number in zip(_TOKEN.split(text), itertools.cycle((False, True))):
        if is_number and int(part) >= len(ids):
            raise ValueError(
                f"<loc{part}> is beyond the last of the {len(ids)} locations: raise tokens.locations, or leave it out"
            )
        parts.append(np.array([ids[int(part)]], np.int32) if is_number else encode(part))
    return np.concatenate(parts)


def place_in(text: str) -> str | None:
    """The first location token of a text; None without one."""
    found = _TOKEN.search(text)
    return None if found is None else found[0]


def written(ids: Int[np.ndarray, "n"], decode: Callable[[Int[np.ndarray, "n"]], str], locations: range) -> str:
    """The text of ids that a model wrote, with its location tokens written out.

    Args:
        ids: text and locations.
        decode: ids of a text → the text.
        locations: the vocabulary's range of locations.
    """
    ids = np.asarray(ids)
    located = (ids >= locations.start) & (ids < locations.stop)
    if not located.any():
        return decode(ids)
    # Pieces between two locations are decoded together: the text of one may depend on the one before it.
    cuts = np.flatnonzero(located[1:] != located[:-1]) + 1
    return "".join(
        "".join(f"<loc{int(one) - locations.start:04d}>" for one in run) if is_located[0] else decode(run)
        for run, is_located in zip(np.split(ids, cuts), np.split(located, cuts), strict=True)
    )
