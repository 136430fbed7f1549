"""Composed scenes with exact truth: one to a few coloured drawings on a textured ground, with their boxes.

A drawing is cut out, tinted with one of eight colours, scaled and laid on the ground, where it may hide a part of another one. So
colour, name, place, number and relation of everything in the image are known. Pairs of a thing and a colour that the split
`pairs` shows never occur in training; `drawings` shows held-out drawings of known things (`generalist.data.emoji`).

Dimension key: S pixels per side of a scene (96), h height and w width of a drawing.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from generalist.data.emoji import Drawing, drawings
from generalist.data.stable_hash import stable_hash
from generalist.tokenizers.locations import Box

Split = Literal["train", "pairs", "drawings"]

SIZE = 96  # six patches along each side
SMALLEST, LARGEST = 26, 44  # pixels of a drawing's longer side
HIDDEN = 0.3  # maximum share of a drawing's box that later ones may cover
TRIES = 60  # places tried for a drawing before the scene is begun anew
MOST = 6  # things in a scene
HELD_OUT_PAIRS = 10  # percent
APART = 12  # pixels between two centres, from which on one is left of or above the other
COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 165, 60),
    "blue": (50, 90, 235),
    "yellow": (245, 210, 30),
    "purple": (150, 60, 205),
    "pink": (255, 130, 190),
    "brown": (140, 85, 40),
    "black": (50, 50, 55),
}
# A name of one or two words without a colour: "red apple" in green would be two colours, and long names fill rows.
_NAME = re.compile(r"[a-z]+(?: [a-z]+)?")
_COLOURED = re.compile(rf"\b(?:{'|'.join((*COLOURS, 'orange', 'white', 'grey'))})\b")


def is_held_out(colour: str, thing: str) -> bool:
    """Whether training never shows the thing in that colour."""
    return stable_hash(f"{colour} {thing}") % 100 < HELD_OUT_PAIRS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """A drawing in a scene."""

    colour: str
    thing: str
    box: Box

    @property
    def name(self) -> str:
        """Colour and thing, such as `red heart`."""
        return f"{self.colour} {self.thing}"

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column in pixels."""
        return SIZE * (self.box.top + self.box.bottom) / 2, SIZE * (self.box.left + self.box.right) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """An image and everything in it, those in front last. No two things have the same name."""

    image: UInt8[np.ndarray, "S S 3"]
    placed: tuple[Placed, ...]
    colours: tuple[str, ...] = tuple(COLOURS)
    """All colours that things may have."""
    is_held_out: Callable[[str, str], bool] = is_held_out
    """Whether training never shows a thing, the second, in a colour, the first."""


Draw = Callable[[Split, int, np.random.Generator, int], Scene]
"""Draws a scene of a split with a number of things, of the first so many (0: all), as `draw_scene` does."""


@functools.cache
def pool(split: Split) -> dict[str, tuple[Drawing, ...]]:
    """The drawings that scenes show, by the thing; the same on every machine.

    Raises:
        MissingImages: the packages with the drawings are not installed.
    """
    found: dict[str, list[Drawing]] = {}
    for drawing in drawings("drawings" if split == "drawings" else "train"):
        if _NAME.fullmatch(drawing.thing) and not _COLOURED.search(drawing.thing):
            found.setdefault(drawing.thing, []).append(drawing)
    return {thing: tuple(several) for thing, several in sorted(found.items())}


@functools.cache
def names(split: Split, things: int = 0) -> tuple[str, ...]:
    """The first things of a split in the order of their hashes; 0: all. Fewer things are the beginning of more."""
    # Ranked among the training things: a held-out drawing is shown only if training shows its thing.
    known = sorted(pool("train"), key=stable_hash)[: things or None]
    return tuple(thing for thing in known if thing in pool(split))


def draw_scene(split: Split, objects: int, rng: np.random.Generator, things: int = 0) -> Scene:
    """A scene with `objects` things.

    Half of the things after the first share their colour or their thing with one before, so that neither alone tells which is
    meant.

    Args:
        split: which drawings, and which pairs of thing and colour.
        objects: number of things; at most `MOST`, for which there is room.
        rng: for all random choices.
        things: number of things to choose among; 0: all.
    """
    # From the beginning where the last thing finds no place: scenes of every number are so equally likely.
    while (scene := _compose(split, objects, rng, things)) is None:
        pass
    return scene


def _compose(split: Split, objects: int, rng: np.random.Generator, things: int) -> Scene | None:
    canvas, placed = _ground(rng), list[Placed]()

    def fits(colour: str, thing: str) -> bool:
        # `pairs` shows held-out pairs alone, `train` only the others; a held-out drawing is new in any colour.
        return split == "drawings" or is_held_out(colour, thing) == (split == "pairs")

    for _ in range(objects):
        colour, thing = choose_pair(tuple(COLOURS), names(split, things), fits, placed, rng)
        several = pool(split)[thing]
        cut = _scaled(several[rng.integers(len(several))], int(rng.integers(SMALLEST, LARGEST + 1)))
        height, width = cut.shape[:2]
        if (corner := _place(height, width, placed, rng)) is None:
            return None
        top, left = corner
        part = canvas[top : top + height, left : left + width]
        alpha = cut[..., 3:].astype(np.float32) / 255
        part[:] = part * (1 - alpha) + _tinted(cut, colour) * alpha
        box = Box.of_pixels(top, left, top + height, left + width, height=SIZE, width=SIZE)
        placed.append(Placed(colour=colour, thing=thing, box=box))
    return Scene(image=np.rint(canvas).astype(np.uint8), placed=tuple(placed))


def choose_pair(
    colours: tuple[str, ...],
    things: tuple[str, ...],
    fits: Callable[[str, str], bool],
    before: list[Placed],
    rng: np.random.Generator,
) -> tuple[str, str]:
    """A colour and a thing that fit, and that are not both those of one placed before."""
    taken = {one.name for one in before}
    while True:
        colour, thing = colours[rng.integers(len(colours))], things[rng.integers(len(things))]
        if before and rng.random() < 0.5:
            alike = before[rng.integers(len(before))]
            colour, thing = (alike.colour, thing) if rng.random() < 0.5 else (colour, alike.thing)
        if fits(colour, thing) and f"{colour} {thing}" not in taken:
            return colour, thing


def _place(height: int, width: int, placed: list[Placed], rng: np.random.Generator) -> tuple[int, int] | None:
    """Row and column of the upper left corner of a box that hides little of the others; None: not found."""
    for _ in range(TRIES):
        top, left = int(rng.integers(SIZE - height + 1)), int(rng.integers(SIZE - width + 1))
        box = Box.of_pixels(top, left, top + height, left + width, height=SIZE, width=SIZE)
        # Of the smaller box, or a small one could vanish in front of or behind a large one.
        if all(box.overlap(one.box) <= HIDDEN * min(one.box.area, box.area) for one in placed):
            return top, left
    return None


# All drawings of scenes take 20 MB, and opening their files is most of the work.
@functools.cache
def _cut_out(path: str) -> UInt8[np.ndarray, "h w 4"]:
    """A drawing without its transparent margins."""
    with Image.open(path) as image:
        whole = image.convert("RGBA")
        return np.asarray(whole.crop(whole.getchannel("A").getbbox()))


def _scaled(drawing: Drawing, longest: int) -> UInt8[np.ndarray, "h w 4"]:
    """A drawing cut out, with the longer side of that many pixels."""
    cut = _cut_out(str(drawing.path))
    scale = longest / max(cut.shape[:2])
    height, width = (max(4, round(side * scale)) for side in cut.shape[:2])
    return np.asarray(Image.fromarray(cut).resize((width, height), Image.Resampling.BILINEAR))


def _tinted(cut: UInt8[np.ndarray, "h w 4"], colour: str) -> Float[np.ndarray, "h w 3"]:
    """The drawing's lightness in shades of a colour."""
    light = cut[..., :3].mean(axis=-1, keepdims=True) / 255  # (h, w, 1)
    # Never darker than a third: a black drawing would have no colour.
    return np.asarray(COLOURS[colour], np.float32) * (0.35 + 0.65 * light)


def _ground(rng: np.random.Generator) -> Float[np.ndarray, "S S 3"]:
    """A pale ground of coarse noise and stripes in two colours."""
    first, second = rng.uniform(165, 255, (2, 3))
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    rows, columns = np.mgrid[:SIZE, :SIZE] * rng.uniform(0.05, 0.4, (2, 1, 1))
    mix = 0.7 * np.asarray(coarse, np.float32) / 255 + 0.15 * (1 + np.sin(rows + columns))  # (S, S) in 0..1
    ground = first + mix[..., None] * (second - first) + rng.normal(0, 4, (SIZE, SIZE, 1))
    return np.clip(ground, 0, 255).astype(np.float32)
