"""New words for new things: does the model name an image of a class that was only shown in the prompt, by a name that only the
prompt has? (*Frozen*'s open-ended tasks, Tsimpoukelli et al., 2021, section 4.2)

Classes and names are those that training held out. Of every class, as many images as there are shots are shown, in random
order; then an image more, and the names are ranked by their likelihood. Three things to compare with:

    shuffled   the same prompt with its images exchanged at random: names and order alone
    nearest    no model: the name of the shown image that is nearest by the frozen encoder's mean features
    RICES      of eight images a class, as many as there are shots and classes that are likest the query, the likest last
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.progress import Progress

from generalist.data.emoji import drawings, variant
from generalist.data.new_words import Instance, classes, draw_instances, made_up_names
from generalist.eval.results.file import Parts
from generalist.eval.results.scores import proportion
from generalist.inference.fingerprint import fingerprint
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import check_room, rank
from generalist.inference.rows import filled
from generalist.vision.features import FeatureStore

SEED = 0
VARIANTS = 10
ASKED_AT_ONCE = 16
NAMES = 100  # that classes may have
POOL = 8  # images a class that RICES looks among
WAYS, SHOTS = (2, 5), (0, 1, 2, 4, 8)
EXAMPLES = 3  # questions a cell that are kept whole, to look at

Shown = Literal["shots", "shuffled", "rices"]
ANSWERERS = ("model", "shuffled", "rices", "nearest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One query with the images that may stand before it."""

    names: tuple[str, ...]
    shots: tuple[tuple[int, Instance], ...]
    """Class and image, in the order in which they are shown."""
    pool: tuple[tuple[int, Instance], ...]
    """All that RICES may take."""
    query: Instance
    right: int

    def shown(self, way: Shown, features: "Features", rng: np.random.Generator) -> list[tuple[int, Instance]]:
        """What stands before the query."""
        if way == "shots" or not self.shots:
            return list(self.shots)
        if way == "shuffled":
            order = rng.permutation(len(self.shots))
            return [(number, self.shots[int(at)][1]) for (number, _), at in zip(self.shots, order, strict=True)]
        likeness = features.likeness(self.query, [instance for _, instance in self.pool])
        return [self.pool[int(one)] for one in np.argsort(-likeness, kind="stable")[: len(self.shots)][::-1]]


def short_names(generalist: Generalist) -> tuple[str, ...]:
    """The held-out names of the fewest pieces of text, so that many shots fit into a prompt."""
    encode = generalist.tokenizers.text.encode
    return tuple(sorted(made_up_names("heldout"), key=lambda name: (len(encode(name)), name))[:NAMES])


def questions(ways: int, shots: int, count: int, names: Sequence[str]) -> list[Question]:
    """The same ones on every machine.

    Args:
        names: what classes may be called.
    """
    rng = np.random.default_rng([SEED, ways, shots])
    pool = classes("names")
    things, asked = list(pool), []
    for _ in range(count):
        chosen = [things[int(one)] for one in rng.choice(len(things), ways, replace=False)]
        right = int(rng.integers(ways))
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
    """Mean features of the held-out drawings' variants, of length 1."""

    def __init__(self, store: FeatureStore):
        self._store, self._known = store, {}

    def of(self, instance: Instance) -> np.ndarray:
        """float32 (F,)."""
        drawing, change = instance
        if (drawing.code, change) not in self._known:
            mean = self._store(variant(drawing, change)[None])[0].astype(np.float32).mean(axis=0)
            self._known[drawing.code, change] = mean / np.linalg.norm(mean)
        return self._known[drawing.code, change]

    def likeness(self, query: Instance, others: Sequence[Instance]) -> np.ndarray:
        """Cosines, (n,)."""
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
    """Accuracy in percent with its interval, a cell a number of `ways` and `shots`: of the `model`, with `shuffled` images, with
    `rices`, and of the `nearest` neighbour; what needs shots is None without. Beside it the number of the `right` name and of
    those that were taken (`answers`) for every question, and a few questions whole (`examples`).

    Args:
        kept: where answers stay until the whole is finished.

    Raises:
        MissingImages: the packages with the drawings are not installed.
        ValueError: the weights have no frozen encoder, or their context has no room for so many shots.
    """
    if generalist.encoder is None:
        raise ValueError("the nearest neighbour and RICES need the frozen encoder, and these weights have none")
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), generalist.encoder)
        held = drawings("names")
        images = (variant(drawing, number) for drawing in held for number in range(VARIANTS))
        store.ensure(images, len(held) * VARIANTS, console)
        seeing = dataclasses.replace(generalist, tokenizers=dataclasses.replace(generalist.tokenizers, visual=store))
        features = Features(store)
        names = short_names(generalist)
        cells = [(way, shot) for way in ways for shot in shots]
        for way, shot in cells:  # before anything is computed
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
                name = "model" if shown == "shots" else shown  # `shots` is their number
                answers[name] = compute() if kept is None else kept.get("new-words", own, compute)
                move(count if known else 0)
            if shot:
                answers["nearest"] = [_nearest(one, features) for one in asked]
            results["cells"].append(_cell(way, shot, asked, answers))
    return results


def _cell(ways: int, shots: int, asked: Sequence[Question], answers: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """A number of ways and shots, with what was answered."""
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
    known = {"ways": ways, "shots": shots, "chance": 100.0 / ways}
    return known | scores | {"right": right, "answers": dict(answers), "examples": examples}


def _nearest(question: Question, features: Features) -> int:
    """The class of the shot nearest to the query."""
    likeness = features.likeness(question.query, [instance for _, instance in question.shots])
    return question.shots[int(likeness.argmax())][0]


def longest(generalist: Generalist, ways: int, shots: int, names: Sequence[str]) -> int:
    """Positions that a prompt takes at most, with the name that answers it."""
    image = np.zeros((16, 16, 3), np.uint8)
    name = max(names, key=lambda one: len(generalist.tokenizers.text.encode(one)))
    parts: list[Any] = [image, name] * (ways * shots + 1)
    return len(generalist.assembler.document(parts, is_open=True))


def _answers(
    generalist: Generalist, asked: list[Question], shown: Shown, features: Features, move: Callable[[int], None]
) -> list[int]:
    """Which name the model takes, for every question."""
    rng, taken = np.random.default_rng(SEED), []
    for start in range(0, len(asked), ASKED_AT_ONCE):
        chunk = asked[start : start + ASKED_AT_ONCE]
        prompts = []
        for one in chunk:
            parts: list[Any] = []
            for number, instance in one.shown(shown, features, rng):
                parts += [variant(*instance), one.names[number]]
            prompts.append([*parts, variant(*one.query)])
        choices = filled([list(one.names) for one in chunk], ASKED_AT_ONCE)
        taken += rank(generalist, filled(prompts, ASKED_AT_ONCE), choices).argmax(axis=1)[: len(chunk)].tolist()
        move(len(chunk))
    return taken


def _accuracy(answers: Sequence[int], right: Sequence[int]) -> dict[str, float]:
    """In percent, with its interval."""
    hits = sum(answer == one for answer, one in zip(answers, right, strict=True))
    return dataclasses.asdict(proportion(hits, len(right)))
