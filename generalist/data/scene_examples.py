"""Training examples of composed scenes: questions about one image, or everything in it."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from generalist.data.scene_questions import ASKING, YES_NO, Asked, Kind, asked_first, count, detection, document, point
from generalist.data.scenes import Draw, Placed, Scene, draw_scene
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.sequence import Sequence as TokenSequence

FREQUENCIES: dict[Kind, int] = {
    "point": 4, "alone": 3, "match": 4, "exists": 2, "here": 2, "hidden": 3, "refer": 2, "relation": 2
}  # fmt: skip
"""How often a kind is drawn, beside 1 of all others: those that tell a name's look and place are learned slowly, and what is
hidden can only be asked first."""
CELL_WEIGHT = 0.5
"""Of a cell's name in the loss, beside 1 for a token of an answer: a thing covers several cells."""
IMAGE_CELLS = (Modality.IMAGE, Modality.PROJECTED, Modality.PATCH)
COUNTED = 0.06
"""Share of the scenes whose things are counted. It does not depend on what else can be asked, which of one thing is less."""
TRIES = 12  # questions drawn for a scene; those that are told by others are left out
EPOCH = 20_000  # examples; every one is drawn anew, so an epoch is only a unit of counting


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneExamples:
    """Endless scenes, each with several questions or with the names and places of all things.

    Raises:
        ValueError: a row has no room for a scene with a short question.
    """

    assembler: Assembler
    length: int
    """Maximum number of positions; questions that do not fit are left out."""
    objects: int
    """Maximum number of things per scene; all numbers are equally likely."""
    questions: int
    """Maximum number of questions per scene."""
    detections: float
    """Share of the scenes in which everything is named instead."""
    asked_first: float = 0.0
    """Share of the other scenes that have one question, which stands before the image."""
    things: int
    """Number of things to choose among; 0: all."""
    draw: Draw = draw_scene
    """Draws a scene."""

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        scene = self.draw("train", 1, rng, self.things)
        if (shortest := len(self.assembler.document(document(scene, [point(scene, rng)])))) > self.length:
            raise ValueError(
                f"data.length = {self.length} has no room for a scene with a question, which takes {shortest} positions: raise "
                "it, or let images take fewer positions"
            )

    def __len__(self) -> int:
        return EPOCH

    def example(self, index: int, rng: np.random.Generator) -> TokenSequence:
        scene = self.draw("train", int(rng.integers(1, self.objects + 1)), rng, self.things)
        if rng.random() < self.detections:
            # One entry more than things: even the fullest scene has a box of noise.
            parts = detection(scene, self.objects + 1, rng)
            if len(sequence := self.assembler.document(parts)) <= self.length:
                return self.named(sequence, scene, rng)
        asked = self.questions_about(scene, rng)
        if rng.random() < self.asked_first:
            for one in asked:
                if len(sequence := self.assembler.document(asked_first(scene, one))) <= self.length:
                    return self.named(sequence, scene, rng, one)
        while asked:
            if len(sequence := self.assembler.document(document(scene, asked))) <= self.length:
                return sequence if asked[0].covered else self.named(sequence, scene, rng)
            asked = asked[:-1]
        # Not even one fits: nothing is learned from this scene.
        return self.assembler.text(np.zeros(0, np.int32), eos=False)

    def named(
        self, sequence: TokenSequence, scene: Scene, rng: np.random.Generator, asked: Asked | None = None
    ) -> TokenSequence:
        """The sequence with a target at each position of the image that shows a thing: a random piece of its name.

        Which name belongs to which look is so learned directly. From questions alone it is learned late: as long as no name is
        known to belong to a look, attending to the right thing does not help to answer.

        After a question each position has a target: ` 1` where it shows the first thing that the question describes, ` 2` for the
        second, elsewhere ` no`. To compare one thing with one name is learned much sooner than to find it among several.
        """
        cells = np.flatnonzero(np.isin(sequence.modality, IMAGE_CELLS))
        side = math.isqrt(len(cells))
        if side < 2 or side**2 != len(cells):  # the image is one position
            return sequence
        targets, weight = sequence.targets.copy(), sequence.loss_weight.copy()
        pieces = {one.name: self.assembler.encode(f" {one.name}") for one in scene.placed}
        meant = asked.meant if asked else ()
        number = {one: self.assembler.encode(f" {place}")[-1] for place, one in enumerate(meant, 1)}
        nothing = self.assembler.encode(YES_NO[1])[0]
        for at, one in zip(cells, cells_shown(scene.placed, side), strict=True):
            if weight[at]:  # the last position predicts the answer's beginning
                continue
            if asked:
                targets[at], weight[at] = number.get(one, nothing) if one else nothing, CELL_WEIGHT
            elif one is not None:
                targets[at], weight[at] = rng.choice(pieces[one.name]), CELL_WEIGHT
        return dataclasses.replace(sequence, targets=targets, loss_weight=weight)

    def questions_about(self, scene: Scene, rng: np.random.Generator) -> list[Asked]:
        """Questions of random kinds, no two about the same thing: the answer of one would stand in the text of another."""
        kinds = [kind for kind in ASKING if kind != "count"]
        frequencies = np.array([FREQUENCIES.get(kind, 1) for kind in kinds], np.float64)
        found = [count(scene, rng)] if rng.random() < COUNTED else []
        for _ in range(TRIES):
            # A question that covers a part of the image stands alone: others could be about what is covered.
            kind = kinds[rng.choice(len(kinds), p=frequencies / frequencies.sum())]
            if len(found) == self.questions:
                break
            one = ASKING[kind](scene, rng)
            if one is None or (one.covered and found) or any(_tells(other, one) for other in found):
                continue
            found.append(one)
            if one.covered:
                break
        return found


def _tells(before: Asked, one: Asked) -> bool:
    """Whether a question tells the answer of another one, or something that bears on it."""
    return any(thing in before.about for thing in one.about)


def cells_shown(placed: Sequence[Placed], side: int) -> Iterator[Placed | None]:
    """For each cell of a grid of `side` × `side` over the image, row by row, the frontmost thing whose box has the cell's centre,
    or whose centre is in the cell: what is smaller than a cell shows in one."""
    for down, right in np.ndindex(side, side):
        row, column = (down + 0.5) / side, (right + 0.5) / side
        there = [
            one
            for one in placed
            if (one.box.top <= row <= one.box.bottom and one.box.left <= column <= one.box.right)
            or (int((one.box.top + one.box.bottom) / 2 * side), int((one.box.left + one.box.right) / 2 * side))
            == (down, right)
        ]
        yield there[-1] if there else None
