"""What the shots alone give away: answers to a benchmark's queries without a model, and how often a model copies the last shot.

    majority  the most frequent answer of the shots, the first of equally frequent ones
    nearest   the answer of the shot whose image is nearest to the query's, by the frozen encoder's mean features or, without an
              encoder, by pixels; none without images: for shots of text alone, and for a language model
    copied    how often the model's answer is that of the last shot

Dimension key: F numbers that describe an image.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from generalist.data.images import read_image
from generalist.eval.fewshot.benchmark_prompts import Asked
from generalist.eval.fewshot.vqa import normalized
from generalist.inference.generalist import Generalist
from generalist.inference.shots import Images, mean_features

SIDE = 32  # of the images that are compared by their pixels

Answers = list[list[dict[str, Any]]]
"""Seed → query → `shots` and `answer`, and what else is known of it."""


def nearest_by(generalist: Generalist) -> str | None:
    """What images are compared by; None for a language model, which sees none."""
    if not generalist.sees:
        return None
    return "pixels" if generalist.encoder is None else "the frozen encoder"


def described(generalist: Generalist, images: Iterable[Path]) -> dict[Path, Float32[np.ndarray, "F"]]:
    """Each image as a vector, of which near ones are alike: mean features of length 1, or pixels from 0 to 1."""
    distinct = list(dict.fromkeys(images))
    if generalist.encoder is not None:
        return dict(zip(distinct, mean_features(generalist, Images(distinct)), strict=True)) if distinct else {}
    return {path: _pixels(path) for path in distinct}


def _pixels(path: Path) -> Float32[np.ndarray, "F"]:
    small = Image.fromarray(read_image(path)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).ravel() / 255


def without_model(asked: Asked, count: int, answers: Answers) -> dict[str, Answers | None]:
    """The answers of `majority` and `nearest` to the queries after the same shots as the model's; None where there are none.

    Args:
        asked: the benchmark.
        count: number of shots; 0: shots of text alone, or none.
        answers: the model's, with their shots.
    """
    if not answers[0][0]["shots"]:
        return {"majority": None, "nearest": None}
    majority = [[_vote(asked, one["shots"]) for one in several] for several in answers]
    if not count or nearest_by(asked.generalist) is None:
        return {"majority": majority, "nearest": None}
    return {"majority": majority, "nearest": _nearest(asked, answers)}


def _vote(asked: Asked, shots: Sequence[int]) -> dict[str, Any]:
    shown = [asked.benchmark.supports[one].shown for one in shots]
    return _answer(asked, Counter(shown).most_common(1)[0][0], shown)


def _nearest(asked: Asked, answers: Answers) -> Answers:
    supports, queries = asked.benchmark.supports, asked.benchmark.queries
    if asked.asking.retrieve:  # sorted already, the nearest last
        chosen = [[one["shots"][-1] for one in several] for several in answers]
    else:
        shown = (supports[shot].image for several in answers for one in several for shot in one["shots"])
        known = described(asked.generalist, [*(query.image for query in queries), *shown])

        def nearest(number: int, shots: Sequence[int]) -> int:
            apart = [float(np.sum((known[queries[number].image] - known[supports[one].image]) ** 2)) for one in shots]
            return shots[int(np.argmin(apart))]

        chosen = [[nearest(number, one["shots"]) for number, one in enumerate(several)] for several in answers]
    return [
        [{"nearest": one} | _answer(asked, supports[one].shown, [supports[one].shown]) for one in several]
        for several in chosen
    ]


def _answer(asked: Asked, answer: str, votes: Sequence[str]) -> dict[str, Any]:
    if asked.benchmark.metric != "auc":
        return {"answer": answer}
    # Any number that ranks the queries serves: here the share of votes for the positive class.
    return {"answer": answer, "log_odds": votes.count(asked.benchmark.classes[-1]) / len(votes)}


def with_copied(asked: Asked, answers: Answers) -> Answers:
    """The answers, each with `copied`: whether it is the last shot's, compared as answers to questions are. Unchanged without
    shots, and where several orders of them are averaged, in which there is no last one."""
    if not answers[0][0]["shots"] or asked.asking.permutations > 1:
        return answers

    def copied(one: dict[str, Any]) -> bool:
        return normalized(one["answer"]) == normalized(asked.benchmark.supports[one["shots"][-1]].shown)

    return [[one | {"copied": copied(one)} for one in several] for several in answers]
