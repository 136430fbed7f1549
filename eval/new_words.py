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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.progress import Progress

from generalist.data.emoji import drawings, variant
from generalist.data.fewshot import Instance, classes, draw_instances, made_up_names
from generalist.eval.scores import proportion
from generalist.inference.load import Generalist
from generalist.inference.prompt import check_room, rank
from generalist.vision.features import FeatureStore

SEED = 0
VARIANTS = 10
ASKED_AT_ONCE = 16
NAMES = 100  # that classes may have
POOL = 8  # images a class that RICES looks among
WAYS, SHOTS = (2, 5), (0, 1, 2, 4, 8)

Shown = Literal["shots", "shuffled", "rices"]


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
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy in percent with its interval, a cell a number of `ways` and `shots`: of the `model`, with `shuffled` images, with
    `rices`, and of the `nearest` neighbour; what needs shots is None without.

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
        bar = (
            progress.add_task("new words", total=count * sum(len(get_args(Shown)) if shot else 1 for _, shot in cells))
            if progress
            else None
        )
        results: dict[str, Any] = {"questions": count, "seed": SEED, "cells": []}
        for way, shot in cells:
            asked = questions(way, shot, count, names)
            cell: dict[str, Any] = {"ways": way, "shots": shot, "chance": 100.0 / way}
            nearest = [
                one.shots[int(features.likeness(one.query, [instance for _, instance in one.shots]).argmax())][0]
                if one.shots
                else 0
                for one in asked
            ]
            cell["nearest"] = _accuracy(nearest, asked) if shot else None
            for shown in get_args(Shown):
                name = "model" if shown == "shots" else shown  # `shots` is their number
                if shown != "shots" and not shot:
                    cell[name] = None
                else:
                    cell[name] = _accuracy(_answers(seeing, asked, shown, features, progress, bar), asked)
            results["cells"].append(cell)
    return results


def longest(generalist: Generalist, ways: int, shots: int, names: Sequence[str]) -> int:
    """Positions that a prompt takes at most, with the name that answers it."""
    image = np.zeros((16, 16, 3), np.uint8)
    name = max(names, key=lambda one: len(generalist.tokenizers.text.encode(one)))
    parts: list[Any] = [image, name] * (ways * shots + 1)
    return len(generalist.assembler.document(parts, is_open=True))


def _answers(
    generalist: Generalist, asked: list[Question], shown: Shown, features: Features, progress: Progress | None, bar: Any
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
        filled = prompts + [prompts[0]] * (ASKED_AT_ONCE - len(chunk))  # one shape, one compilation
        choices = [list(one.names) for one in chunk] + [list(chunk[0].names)] * (ASKED_AT_ONCE - len(chunk))
        taken += rank(generalist, filled, choices).argmax(axis=1)[: len(chunk)].tolist()
        if progress is not None and bar is not None:
            progress.advance(bar, len(chunk))
    return taken


def _accuracy(answers: Sequence[int], asked: Sequence[Question]) -> dict[str, float]:
    """In percent."""
    hits = sum(answer == one.right for answer, one in zip(answers, asked, strict=True))
    return dataclasses.asdict(proportion(hits, len(asked)))
