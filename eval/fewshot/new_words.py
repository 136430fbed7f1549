"""New words for new things: does the model name an image of a class that only the prompt shows, by a name that only the prompt
contains? (*Frozen*'s open-ended tasks, Tsimpoukelli et al., 2021, section 4.2)

Classes and names are held out from training. The prompt shows as many images of every class as there are shots, in random order,
and then the query; the names are ranked by their likelihood. Three comparisons:

    shuffled   the same prompt with its images permuted at random: what names and order alone give
    nearest    no model: the name of the shown image that is nearest by the frozen encoder's mean features
    RICES      as many shots, but the images most similar to the query among eight per class, the most similar last

A majority vote over the shots would be chance: every class has as many.

Dimension key: H height, W width, F feature channels, n images.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Float32
from rich.console import Console
from rich.progress import Progress

from generalist.data.emoji import SIZE, drawings, variant
from generalist.data.new_words import Instance, classes, draw_instances, made_up_names
from generalist.eval.results.file import Parts
from generalist.eval.results.scores import proportion
from generalist.inference.fingerprint import fingerprint
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import check_room, rank
from generalist.inference.rows import filled
from generalist.vision.features import FeatureStore

SEED = 0
VARIANTS = 10  # of each drawing
ASKED_AT_ONCE = 16  # prompts read in one call
NAMES = 100  # names to draw from
POOL = 8  # images per class among which RICES chooses
WAYS, SHOTS = (2, 5), (0, 1, 2, 4, 8)
EXAMPLES = 3  # questions per cell that the results file keeps whole, for the report

Shown = Literal["shots", "shuffled", "rices"]
ANSWERERS = ("model", "shuffled", "rices", "nearest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One query with the images that may precede it."""

    names: tuple[str, ...]
    """Name of each class in this question."""
    shots: tuple[tuple[int, Instance], ...]
    """Class and image, in the order in which they are shown."""
    pool: tuple[tuple[int, Instance], ...]
    """Class and image of everything that RICES may choose."""
    query: Instance
    right: int
    """Class of the query."""

    def shown(self, way: Shown, features: "Features", rng: np.random.Generator) -> list[tuple[int, Instance]]:
        """Classes and images that precede the query.

        Args:
            way: the shots, the shots with permuted images, or those that RICES chooses.
            features: for RICES.
            rng: for the permutation.
        """
        if way == "shots" or not self.shots:
            return list(self.shots)
        if way == "shuffled":
            # The classes, and so the names, stay in place; only the images move.
            order = rng.permutation(len(self.shots))
            return [(number, self.shots[int(at)][1]) for (number, _), at in zip(self.shots, order, strict=True)]
        likeness = features.likeness(self.query, [instance for _, instance in self.pool])
        # A stable sort, so that ties are broken the same way on every machine.
        return [self.pool[int(one)] for one in np.argsort(-likeness, kind="stable")[: len(self.shots)][::-1]]


def short_names(generalist: Generalist) -> tuple[str, ...]:
    """The held-out names with the fewest pieces of text, so that many shots fit into a prompt."""
    encode = generalist.tokenizers.text.encode
    return tuple(sorted(made_up_names("heldout"), key=lambda name: (len(encode(name)), name))[:NAMES])


def questions(ways: int, shots: int, count: int, names: Sequence[str]) -> list[Question]:
    """Questions of a number of ways and shots, the same on every machine.

    Args:
        ways: classes per question.
        shots: images per class.
        count: number of questions.
        names: names to draw from.
    """
    rng = np.random.default_rng([SEED, ways, shots])
    pool = classes("names")
    things, asked = list(pool), []
    for _ in range(count):
        chosen = [things[int(one)] for one in rng.choice(len(things), ways, replace=False)]
        right = int(rng.integers(ways))
        # One image more per class, the first: if the class is the right one, that image is the query.
        instances = [draw_instances(pool[thing], max(shots, POOL) + 1, VARIANTS, rng) for thing in chosen]
        shown = [(number, one) for number in range(ways) for one in instances[number][1 : 1 + shots]]
        asked.append(
            Question(
                names=tuple(names[int(one)] for one in rng.choice(len(names), ways, replace=False)),
                shots=tuple(shown[int(at)] for at in rng.permutation(len(shown))),
                pool=tuple((number, one) for number in range(ways) for one in instances[number][1:]),
                query=instances[right][0],
                right=right,
            )
        )
    return asked


class Features:
    """Mean features of the held-out drawings' variants, scaled to length 1."""

    def __init__(self, store: FeatureStore):
        self._store, self._known = store, {}

    def of(self, instance: Instance) -> Float32[np.ndarray, "F"]:
        """The mean features of one image."""
        drawing, change = instance
        # An image occurs in many questions.
        if (drawing.code, change) not in self._known:
            # float16 (cells, F) → float32 (F,)
            mean = self._store(variant(drawing, change)[None])[0].astype(np.float32).mean(axis=0)
            self._known[drawing.code, change] = mean / np.linalg.norm(mean)
        return self._known[drawing.code, change]

    def likeness(self, query: Instance, others: Sequence[Instance]) -> Float[np.ndarray, "n"]:
        """Cosine similarities of other images to the query."""
        return np.stack([self.of(one) for one in others]) @ self.of(query)


def evaluate_new_words(
    generalist: Generalist,
    *,
    count: int = 1000,
    ways: Sequence[int] = WAYS,
    shots: Sequence[int] = SHOTS,
    console: Console,
    kept: Parts | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy in percent with its interval for every number of ways and shots.

    Args:
        generalist: the weights.
        count: questions per cell.
        ways: numbers of classes.
        shots: numbers of images per class.
        console: shows the progress of computing features.
        kept: stores the answers of each cell, so that an interrupted evaluation continues.
        progress: gets one bar.

    Returns:
        `cells`, one per number of `ways` and `shots`: the accuracy of the `model`, with `shuffled` images, with `rices`, and of
        the `nearest` neighbour (None where there are no shots to compare); how often the model's answer is the name of the last
        shot (`copied`); for every question the index of the `right` name, of that of the `last` shot and of the chosen ones
        (`answers`); and a few complete questions (`examples`).

    Raises:
        MissingImages: the packages with the drawings are not installed.
        ValueError: the weights have no frozen encoder, or their context has no room for that many shots.
    """
    if generalist.encoder is None:
        raise ValueError("the nearest neighbour and RICES need the frozen encoder, but these weights have none")
    # The features serve this evaluation alone, so they do not go into the run's store.
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), generalist.encoder)
        held = drawings("names")
        images = (variant(drawing, number) for drawing in held for number in range(VARIANTS))
        store.ensure(images, len(held) * VARIANTS, console)
        # The model reads stored features, too: an image occurs in many prompts, and would be encoded in each.
        seeing = dataclasses.replace(generalist, tokenizers=dataclasses.replace(generalist.tokenizers, visual=store))
        features = Features(store)
        names = short_names(generalist)
        cells = [(way, shot) for way in ways for shot in shots]
        for way, shot in cells:  # before any answer is computed
            check_room(generalist, longest(generalist, way, shot, names))
        total = count * sum(len(get_args(Shown)) if shot else 1 for _, shot in cells)
        bar = progress.add_task("new words", total=total) if progress else None

        def move(by: int) -> None:
            if progress is not None and bar is not None:
                progress.advance(bar, by)

        settings = {"weights": fingerprint(generalist), "questions": count, "seed": SEED}
        results: dict[str, Any] = {"questions": count, "seed": SEED, "cells": []}
        for way, shot in cells:
            asked, answers = questions(way, shot, count, names), {}
            for shown in get_args(Shown) if shot else ("shots",):
                compute = partial(_answers, seeing, asked, shown, features, move)
                own = settings | {"ways": way, "shots": shot, "shown": shown}
                known = kept is not None and kept.path("new-words", own).exists()
                name = "model" if shown == "shots" else shown  # in a cell, `shots` is their number
                answers[name] = compute() if kept is None else kept.get("new-words", own, compute)
                move(count if known else 0)
            if shot:
                answers["nearest"] = [_nearest(one, features) for one in asked]
            results["cells"].append(_cell(way, shot, asked, answers))
    return results


def _cell(ways: int, shots: int, asked: Sequence[Question], answers: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The results of a number of ways and shots."""
    right = [one.right for one in asked]
    scores = {name: _accuracy(answers[name], right) if name in answers else None for name in ANSWERERS}
    examples = [
        {
            "names": list(one.names),
            "shots": [[number, drawing.code, change] for number, (drawing, change) in one.shots],
            "query": [one.query[0].code, one.query[1]],
            "right": one.right,
            "answer": answers["model"][number],
        }
        for number, one in enumerate(asked[:EXAMPLES])
    ]
    known: dict[str, Any] = {"ways": ways, "shots": shots, "chance": 100.0 / ways, "copied": None, "last": None}
    if shots:
        known["last"] = last = [one.shots[-1][0] for one in asked]
        known["copied"] = _accuracy(answers["model"], last)
    return known | scores | {"right": right, "answers": dict(answers), "examples": examples}


def _nearest(question: Question, features: Features) -> int:
    """The class of the shot that is nearest to the query."""
    likeness = features.likeness(question.query, [instance for _, instance in question.shots])
    return question.shots[int(likeness.argmax())][0]


def longest(generalist: Generalist, ways: int, shots: int, names: Sequence[str]) -> int:
    """Maximum number of positions of a prompt with its answer."""
    # Of the drawings' size, which decides the number of positions if images also enter as patches.
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    name = max(names, key=lambda one: len(generalist.tokenizers.text.encode(one)))
    parts: list[Any] = [image, name] * (ways * shots + 1)
    return len(generalist.assembler.document(parts, is_open=True))


def _answers(
    generalist: Generalist, asked: list[Question], shown: Shown, features: Features, move: Callable[[int], None]
) -> list[int]:
    """The index of the name that the model ranks first, for every question."""
    rng, taken = np.random.default_rng(SEED), []
    for start in range(0, len(asked), ASKED_AT_ONCE):
        chunk = asked[start : start + ASKED_AT_ONCE]
        prompts = []
        for one in chunk:
            parts: list[Any] = []
            for number, instance in one.shown(shown, features, rng):
                parts += [variant(*instance), one.names[number]]
            prompts.append([*parts, variant(*one.query)])
        # Filled up to one shape, so that the last chunk compiles nothing.
        choices = filled([list(one.names) for one in chunk], ASKED_AT_ONCE)
        taken += rank(generalist, filled(prompts, ASKED_AT_ONCE), choices).argmax(axis=1)[: len(chunk)].tolist()
        move(len(chunk))
    return taken


def _accuracy(answers: Sequence[int], right: Sequence[int]) -> dict[str, float]:
    """Accuracy in percent, with its interval."""
    hits = sum(answer == one for answer, one in zip(answers, right, strict=True))
    return dataclasses.asdict(proportion(hits, len(right)))
