"""Questions about composed scenes, with the right answer: pointing, naming a place, matching, and templated VQA.

Answers of each kind are balanced, so that a model that does not see the image is right only by chance: yes and no are equally
likely, and so are colours, numbers and sides. Of held-out pairs the words alone tell more: what is there is always one, what is
not there seldom is.

    <image> point to the red heart: <loc0102><loc0256><loc0511><loc0640> chunk_end
            what is at <loc0102><loc0256><loc0511><loc0640>? answer: red heart chunk_end
            a blue heart left of a green cat. does this match? answer: no chunk_end

One question may also stand before the image, of which each position then knows what is asked:

    point to the red heart: <image> <loc0102><loc0256><loc0511><loc0640> chunk_end
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from generalist.data.scenes import APART, COLOURS, MOST, Placed, Scene, names
from generalist.tokenizers.locations import BETWEEN, NOISE, Box, box_text
from generalist.tokenizers.sequence import CHUNK_END, Part, Predicted

Kind = Literal["point", "here", "match", "exists", "colour", "count", "relation", "hidden", "refer", "alone"]

SIDES = ("left of", "right of", "above", "below")
DETECT = "detect:"
"""Asks for everything. It stands after the image, as in training."""
YES_NO = (" yes", " no")
_GREY = (128, 128, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about a scene."""

    kind: Kind
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    """Answers to choose among, the right one included; none where a box is written."""
    target: Placed | None = None
    """What is asked about, if it is one thing."""
    about: tuple[Placed, ...] = ()
    """Things whose colour, name or place question and answer tell."""
    meant: tuple[Placed | None, ...] = ()
    """What the question describes, in the order of its words; None: it does not show. What is counted, from the top."""
    covered: Box | None = None
    """A part of the image that is covered with grey."""

    def parts(self) -> list[Part]:
        """The question with the predicted answer, for `Assembler.document`."""
        return [self.text, Predicted(self.answer)]


def point(scene: Scene, rng: np.random.Generator) -> Asked:
    """Where is it? Any thing of the scene."""
    one = _any(scene.placed, rng)
    return Asked(
        kind="point", text=f"point to the {one.name}:", answer=box_text(one.box), target=one, about=(one,), meant=(one,)
    )


def here(scene: Scene, rng: np.random.Generator) -> Asked:
    """What is in this box? Choices are the names of the scene's things."""
    one = _any(scene.placed, rng)
    text = f"what is at {box_text(one.box)}? answer:"
    return Asked(
        kind="here", text=text, answer=f" {one.name}", choices=_names(scene), target=one, about=(one,), meant=(one,)
    )


def match(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Does a text about one or two things match? A wrong one differs by one attribute: colour, thing or side."""
    one, is_right = _any(scene.placed, rng), bool(rng.random() < 0.5)
    pairs = _sides(scene)
    about: tuple[Placed, ...] = (one,)
    meant: tuple[Placed | None, ...] = (one if is_right else None,)
    if pairs and rng.random() < 0.5:
        one, other, side = pairs[rng.integers(len(pairs))]
        about, first = (one, other), one.name
        if not is_right and rng.random() < 2 / 3:
            # As before, both are of one colour or thing or of two, so that the words alone do not tell a false text.
            first = _changed(scene, one, rng, beside=other) or one.name
        # Of what is not changed the side is. A false side is the opposite one: what is left of something may be above it too.
        if not is_right and first == one.name:
            side = _opposite(side)
        meant = (one if first == one.name else None, other)
        text = f"a {first} {side} a {other.name}"
    else:
        named = one.name if is_right else _changed(scene, one, rng)
        if named is None:
            return None
        text = f"a {named}"
    return _yes_no("match", f"{text}. does this match? answer:", is_right, about, meant)


def exists(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Is there such a thing? One that is not there differs from one that is by its colour or its thing."""
    one, is_right = _any(scene.placed, rng), bool(rng.random() < 0.5)
    name = one.name if is_right else _changed(scene, one, rng)
    if name is None:
        return None
    return _yes_no("exists", f"is there a {name}? answer:", is_right, (one,), (one if is_right else None,))


def colour(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Which colour has it? Only about a thing that occurs once."""
    once = [one for one in scene.placed if sum(one.thing == other.thing for other in scene.placed) == 1]
    if not once:
        return None
    one = _any(once, rng)
    choices = tuple(f" {name}" for name in scene.colours)
    text = f"which colour is the {one.thing}? answer:"
    return Asked(
        kind="colour", text=text, answer=f" {one.colour}", choices=choices, target=one, about=(one,), meant=(one,)
    )


def count(scene: Scene, rng: np.random.Generator) -> Asked:
    """How many things are there? Balanced if scenes of every number are equally likely, and as likely to be asked so."""
    choices = tuple(f" {number}" for number in range(1, MOST + 1))
    from_the_top = sorted(scene.placed, key=lambda one: one.box.sides)
    return Asked(
        kind="count",
        text="how many things are there? answer:",
        answer=f" {len(scene.placed)}",
        choices=choices,
        meant=tuple(from_the_top),
    )


def relation(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Is one thing left of, right of, above or below another? A false side is the opposite one."""
    if not (pairs := _sides(scene)):
        return None
    one, other, side = pairs[rng.integers(len(pairs))]
    is_right = bool(rng.random() < 0.5)
    asked = side if is_right else _opposite(side)
    both = (one, other)
    return _yes_no("relation", f"is the {one.name} {asked} the {other.name}? answer:", is_right, both, both)


def hidden(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Which of the listed things is covered? The text says what the masked patches show (UNITER masks one modality at a time)."""
    if len(scene.placed) < 2:
        return None
    one = _any(scene.placed, rng)
    # Nothing else under the cover, or it would be asked about two things.
    if any(one.box.overlap(other.box) for other in scene.placed if other is not one):
        return None
    listed = [scene.placed[index] for index in rng.permutation(len(scene.placed))]
    text = f"{', '.join(each.name for each in listed)}. which is covered? answer:"
    return Asked(
        kind="hidden",
        text=text,
        answer=f" {one.name}",
        choices=_names(scene),
        target=one,
        about=scene.placed,
        meant=tuple(None if each is one else each for each in listed),
        covered=one.box,
    )


def refer(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Where is the one on that side of another? Its thing may occur several times, but only once on that side."""

    def is_beyond(one: Placed, other: Placed, side: str) -> bool:
        down, right = np.subtract(one.centre, other.centre)
        return bool((-right, right, -down, down)[SIDES.index(side)] > 0)

    found = [
        (one, other, side)
        for one, other, side in _sides(scene)
        if sum(alike.thing == one.thing and is_beyond(alike, other, side) for alike in scene.placed) == 1
    ]
    if not found:
        return None
    one, other, side = found[rng.integers(len(found))]
    text = f"point to the {one.thing} {side} the {other.name}:"
    return Asked(kind="refer", text=text, answer=box_text(one.box), target=one, about=(one, other), meant=(one, other))


def alone(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Where is the only one of its colour, or of its thing?"""
    colours, things = ([getattr(one, part) for one in scene.placed] for part in ("colour", "thing"))
    found = [(one, f"{one.colour} thing") for one in scene.placed if colours.count(one.colour) == 1]
    found += [(one, one.thing) for one in scene.placed if things.count(one.thing) == 1]
    if not found:
        return None
    one, name = found[rng.integers(len(found))]
    return Asked(
        kind="alone", text=f"point to the {name}:", answer=box_text(one.box), target=one, about=(one,), meant=(one,)
    )


ASKING: dict[Kind, Callable[[Scene, np.random.Generator], Asked | None]] = {
    "point": point,
    "here": here,
    "match": match,
    "exists": exists,
    "colour": colour,
    "count": count,
    "relation": relation,
    "hidden": hidden,
    "refer": refer,
    "alone": alone,
}
"""How each kind is asked; None: the scene allows no such question."""
OF_SEVERAL: tuple[Kind, ...] = ("relation", "hidden", "refer", "count")
"""Kinds that need scenes of several things."""
VQA: tuple[Kind, ...] = ("exists", "colour", "count", "relation", "here", "hidden")


def detection(scene: Scene, entries: int, rng: np.random.Generator) -> list[Part]:
    """The parts of a document that names everything in random order, then noise up to that many entries (Pix2Seq). What noise is
    called is learned, where it is not: it is nowhere in particular."""
    parts: list[Part] = [scene.image, DETECT]
    order = [scene.placed[index] for index in rng.permutation(len(scene.placed))]
    for number in range(max(entries, len(order))):
        between = BETWEEN if number else ""
        if number < len(order):
            parts.append(Predicted(f"{between}{box_text(order[number].box)} {order[number].name}"))
        else:
            parts += [Predicted(between), box_text(_random_box(rng)), Predicted(f" {NOISE}")]
    return parts


def covered(scene: Scene, asked: Asked) -> np.ndarray:
    """The scene's image, with what the question covers."""
    if asked.covered is None:
        return scene.image
    image = scene.image.copy()
    top, left, bottom, right = (round(side * len(image)) for side in asked.covered.sides)
    image[top:bottom, left:right] = _GREY
    return image


def document(scene: Scene, asked: Sequence[Asked]) -> list[Part]:
    """The parts of a document that asks several questions about one image."""
    parts: list[Part] = [covered(scene, asked[0])]
    for number, one in enumerate(asked):
        parts += [CHUNK_END, *one.parts()] if number else one.parts()
    return parts


def asked_first(scene: Scene, asked: Asked) -> list[Part]:
    """The parts of a document whose only question stands before the image."""
    return [asked.text, covered(scene, asked), Predicted(asked.answer)]


def training_texts(things: int = 0) -> Iterable[str]:
    """Texts like those of the questions about composed scenes, for training the text tokenizer."""
    return question_texts(names("train", things), tuple(COLOURS))


def question_texts(things: Sequence[str], colours: Sequence[str]) -> Iterable[str]:
    """Texts like those of the questions about things in colours."""
    for number, thing in enumerate(things):
        name, side = f"{colours[number % len(colours)]} {thing}", SIDES[number % len(SIDES)]
        yield f"point to the {name}:"
        yield f"a {name} {side} a {name}. does this match? answer: yes no"
        yield f"is there a {name}? answer: yes. which colour is the {thing}? answer: {colours[-1 - number % len(colours)]}"
        yield f"is the {name} {side} the {name}? answer: no"
        yield f"{name}, {name}. which is covered? answer: {name}{BETWEEN}{DETECT} {NOISE}"
    yield "what is at ? answer: how many things are there? answer: 1 2 3 4 5 6"


def _any(placed: Sequence[Placed], rng: np.random.Generator) -> Placed:
    return placed[int(rng.integers(len(placed)))]


def _names(scene: Scene) -> tuple[str, ...]:
    return tuple(f" {one.name}" for one in scene.placed)


def _yes_no(
    kind: Kind, text: str, is_right: bool, about: tuple[Placed, ...], meant: tuple[Placed | None, ...]
) -> Asked:
    return Asked(kind=kind, text=text, answer=YES_NO[not is_right], choices=YES_NO, about=about, meant=meant)


def _opposite(side: str) -> str:
    return SIDES[SIDES.index(side) ^ 1]


def _changed(scene: Scene, one: Placed, rng: np.random.Generator, beside: Placed | None = None) -> str | None:
    """The name of something that is not in the scene, and differs from `one` by its colour or by its thing: where possible, the
    other thing's name is one of the scene. None: there is none that may be named.

    Args:
        beside: what is named with it: whether the two are of one colour, and of one thing, stays as it is.
    """
    there = {other.name for other in scene.placed}

    def allowed(colour: str, thing: str) -> bool:
        # Training must not name what it never shows, or it would learn that these are never there.
        known = scene.is_held_out(one.colour, one.thing) or not scene.is_held_out(colour, thing)
        alike = beside is None or (colour == beside.colour, thing == beside.thing) == (
            one.colour == beside.colour,
            one.thing == beside.thing,
        )
        return known and alike and f"{colour} {thing}" not in there

    others = [other.thing for other in scene.placed if allowed(one.colour, other.thing)]
    if others and rng.random() < 0.5:
        return f"{one.colour} {others[rng.integers(len(others))]}"
    free = [name for name in scene.colours if allowed(name, one.thing)]
    return f"{free[rng.integers(len(free))]} {one.thing}" if free else None


def _sides(scene: Scene) -> list[tuple[Placed, Placed, str]]:
    """Pairs of things and the side of the second on which the first clearly is."""
    found = []
    for one in scene.placed:
        for other in scene.placed:
            down, right = np.subtract(one.centre, other.centre)
            if abs(right) >= APART:
                found.append((one, other, SIDES[int(right > 0)]))
            if abs(down) >= APART:
                found.append((one, other, SIDES[2 + int(down > 0)]))
    return found


def _random_box(rng: np.random.Generator) -> Box:
    """A box of any place and of an object's size."""
    height, width = rng.uniform(0.2, 0.45, 2)
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    return Box(top=float(top), left=float(left), bottom=float(top + height), right=float(left + width))
