"""Composed scenes: are things found, named, matched and compared, and is it the image that tells?

Scenes of pairs of a thing and a colour that training held out (`pairs`), and of held-out drawings (`drawings`):

    point    accuracy: share of boxes whose intersection over union (IoU) with the true one is at least 0.5 (RefCOCO's rule), 0.8
    match    area under the ROC curve of log P(yes) - log P(no), wrong texts differing by one attribute
    others   accuracy among each question's choices, by kind
    detect   precision and recall: boxes with an IoU of at least 0.5 and the right name, each thing once

Everything is asked again with the image of another scene: what remains is chance, or what the words alone give away.

Dimension key: Q questions, C choices.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from rich.progress import Progress

from generalist.data.scene_questions import ASKING, DETECT, OF_SEVERAL, VQA, Asked, Kind, covered
from generalist.data.scenes import Draw, Placed, Scene, Split, draw_scene
from generalist.eval.held_out.likelihood import LogLikelihood
from generalist.eval.results.scores import Estimate, area, bootstrap, proportion
from generalist.tokenizers.locations import Box, Labelled, first_box, read_objects
from generalist.tokenizers.sequence import Predicted
from generalist.tokenizers.sequence import Sequence as TokenSequence

SEED = 0
ASKED_AT_ONCE = 64
THRESHOLDS = (0.5, 0.8)
COUNTS = (1, 4)
"""Things per scene of pointing."""
KINDS: tuple[Kind, ...] = ("match", *VQA)
"""Questions with choices."""
BY_SIDE = "side"
"""Pointing to a thing by its side of another one."""

Generate = Callable[[list[list[Any]]], list[str]]
"""Documents of image and question → the texts that the model writes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A question about a scene, and a scene that it is not about."""

    asked: Asked
    image: UInt8[np.ndarray, "S S 3"]
    wrong: UInt8[np.ndarray, "S S 3"]
    is_asked_first: bool = False
    """Whether the question stands before the image."""

    def parts(self, shown: str, *answer: Any) -> list[Any]:
        """A document that asks about one of the two images, `image` or `wrong`."""
        image = getattr(self, shown)
        return [self.asked.text, image, *answer] if self.is_asked_first else [image, self.asked.text, *answer]


def questions(
    kind: Kind,
    split: Split,
    items: int,
    objects: Sequence[int],
    things: int,
    draw: Draw = draw_scene,
    *,
    is_asked_first: bool = False,
) -> list[Pair]:
    """Questions of one kind, the same on every machine.

    Args:
        kind: what is asked.
        split: of the scenes.
        items: number of questions.
        objects: numbers of things per scene, equally likely.
        things: number of things to choose among; 0: all.
        draw: draws a scene.
        is_asked_first: questions stand before the image.
    """
    # A generator of its own for each kind, so that another one does not change these questions.
    rng = np.random.default_rng([SEED, list(ASKING).index(kind), len(objects), objects[0]])
    found: list[tuple[Scene, Asked]] = []
    while len(found) < items:
        # At random, not in turns: the number of things in the wrong scene must say nothing about that in the right one.
        scene = draw(split, objects[int(rng.integers(len(objects)))], rng, things)
        if asked := ASKING[kind](scene, rng):
            # An area under the curve needs both answers, however few questions there are.
            if kind == "match" and len(found) == items - 1 and {one.answer for _, one in found} == {asked.answer}:
                continue
            found.append((scene, asked))
    return [
        Pair(
            asked=asked,
            image=covered(scene, asked),
            wrong=covered(found[(number + 1) % items][0], asked),
            is_asked_first=is_asked_first,
        )
        for number, (scene, asked) in enumerate(found)
    ]


def evaluate_scenes(
    assemble: Callable[[list[Any]], TokenSequence],
    log_likelihood: LogLikelihood,
    generate: Generate,
    split: Split,
    *,
    items: int,
    objects: int,
    things: int,
    draw: Draw = draw_scene,
    is_asked_first: bool = False,
    detect: Generate | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All scores of one split, each with its interval and beside the score with a wrong image.

    Args:
        assemble: parts of a document → sequence (`Assembler.document`).
        log_likelihood: scores sequences.
        generate: writes boxes.
        split: of the scenes.
        items: questions per kind, and per number of things.
        objects: maximum number of things per scene in training.
        things: number of things to choose among; 0: all.
        draw: draws a scene.
        is_asked_first: questions stand before the image.
        detect: writes everything in an image, of `items` scenes; None: that is not asked.
        progress: gets one bar.

    Raises:
        MissingImages: the packages with the drawings are not installed.
    """
    whole = range(1, objects + 1)
    # What is pointed to: a thing by its name, among so many, or one by its side of another.
    pointing: dict[str, tuple[Kind, Sequence[int]]] = {
        str(count): ("point", (count,)) for count in COUNTS if count <= objects
    }
    pointing |= {BY_SIDE: ("refer", whole)} if objects > 1 else {}
    # With one thing per scene there is no question of several, however often one is drawn.
    kinds: list[Kind] = [kind for kind in KINDS if objects > 1 or kind not in OF_SEVERAL]
    bar = progress.add_task(f"scenes {split}", total=len(pointing) + len(kinds) + bool(detect)) if progress else None

    def done() -> None:
        if progress and bar is not None:
            progress.advance(bar)

    ask = functools.partial(
        questions, split=split, items=items, things=things, draw=draw, is_asked_first=is_asked_first
    )
    pointed = {}
    for name, (kind, numbers) in pointing.items():
        pointed[name] = point_out(ask(kind, objects=numbers), generate)
        done()
    by_kind = {}
    for kind in kinds:
        by_kind[kind] = choose(kind, ask(kind, objects=whole), assemble, log_likelihood)
        if kind == "count":  # there are choices that no scene has
            by_kind[kind]["chance"] = 100.0 / objects
        done()
    found = {"point": pointed, "questions": by_kind, "items": items, "things": things, "asked_first": is_asked_first}
    if detect:
        rng = np.random.default_rng([SEED, objects])
        found["detection"] = name_all(
            [draw(split, int(rng.integers(1, objects + 1)), rng, things) for _ in range(items)], detect
        )
        done()
    return found


def name_all(drawn: Sequence[Scene], detect: Generate) -> dict[str, Any]:
    """Precision and recall of what is found in scenes, with the right image and that of the next one, and what they are of: per
    scene, how many objects are right, were found, and are there."""
    shown = {"image": drawn, "wrong": [*drawn[1:], drawn[0]]}
    counts = {}
    for name, images in shown.items():
        texts = detect([[scene.image, DETECT] for scene in images])
        found = [read_objects(text) for text in texts]
        counts[name] = [
            [matched(some, scene.placed), len(some), len(scene.placed)]
            for some, scene in zip(found, drawn, strict=True)
        ]
    return detection_scores(counts) | {"counts": counts}


def matched(found: Sequence[Labelled], placed: Sequence[Placed]) -> int:
    """The number of things of which a box has the name and overlaps enough. No two things of a scene have the same name, so a
    box is of one thing at most; a thing that is found twice counts once."""
    return sum(
        any(one.label == thing.name and one.box.iou(thing.box) >= THRESHOLDS[0] for one in found) for thing in placed
    )


def detection_scores(counts: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Any]:
    """Precision and recall over the objects of all scenes, from the counts of each: right, found, there."""
    scores = {}
    for prefix, shown in (("", "image"), ("wrong_", "wrong")):
        right, found, there = np.sum(counts[shown], axis=0).tolist()
        # Where nothing is found, nothing is known of precision.
        precision = proportion(right, found) if found else Estimate(value=0.0, low=0.0, high=100.0)
        scores[f"{prefix}precision"] = dataclasses.asdict(precision)
        scores[f"{prefix}recall"] = dataclasses.asdict(proportion(right, there))
    return scores


def point_out(asked: list[Pair], generate: Generate) -> dict[str, Any]:
    """Accuracy at each threshold with the right image and a wrong one, and the overlaps themselves."""
    overlaps = {shown: _overlaps(asked, generate([one.parts(shown) for one in asked])) for shown in ("image", "wrong")}
    return {
        **{
            f"{name}_{threshold}": dataclasses.asdict(
                proportion(sum(one >= threshold for one in overlaps[shown]), len(asked))
            )
            for name, shown in (("accuracy", "image"), ("wrong", "wrong"))
            for threshold in THRESHOLDS
        },
        "overlaps": overlaps["image"],
    }


def _overlaps(asked: list[Pair], texts: Sequence[str]) -> list[float]:
    """The overlap of each text's box with the true one."""
    found = []
    for one, text in zip(asked, texts, strict=True):
        assert one.asked.target is not None
        found.append(overlap(text, one.asked.target.box))
    return found


def overlap(text: str, box: Box) -> float:
    """Intersection over union of a box with the first one of a text; 0 if the text has none. Not rounded, which could reach a
    threshold."""
    found = first_box(text)
    return 0.0 if found is None else found.iou(box)


def choose(
    kind: Kind, asked: list[Pair], assemble: Callable[[list[Any]], TokenSequence], log_likelihood: LogLikelihood
) -> dict[str, Any]:
    """Accuracy among the choices; for matching also the area under the curve."""
    scores = {shown: _scores(asked, shown, assemble, log_likelihood) for shown in ("image", "wrong")}
    right = [one.asked.choices.index(one.asked.answer) for one in asked]
    found: dict[str, Any] = {}
    for name, shown in (("accuracy", "image"), ("blind", "wrong")):
        hits = sum(int(np.argmax(values)) == index for values, index in zip(scores[shown], right, strict=True))
        found[name] = dataclasses.asdict(proportion(hits, len(asked)))
    if kind == "match":
        positive = np.array([index == 0 for index in right])
        for name, shown in (("auc", "image"), ("blind_auc", "wrong")):
            odds = np.array([[yes - no for yes, no in scores[shown]]])  # (1, Q)
            found[name] = dataclasses.asdict(area(odds, positive))
    chance = np.array([100.0 / len(one.asked.choices) for one in asked])
    return found | {"chance": bootstrap([chance]).value, "questions": len(asked)}


def _scores(
    asked: list[Pair], shown: str, assemble: Callable[[list[Any]], TokenSequence], log_likelihood: LogLikelihood
) -> list[Float[np.ndarray, "_C"]]:
    """Log-likelihood of each question's choices."""
    sequences = [assemble(one.parts(shown, Predicted(choice))) for one in asked for choice in one.asked.choices]
    values = np.concatenate(
        [log_likelihood(sequences[start : start + ASKED_AT_ONCE]) for start in range(0, len(sequences), ASKED_AT_ONCE)]
    )
    return np.split(values, np.cumsum([len(one.asked.choices) for one in asked])[:-1])
