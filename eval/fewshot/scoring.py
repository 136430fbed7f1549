"""Few-shot evaluation as in Flamingo (Alayrac et al., 2022, section 4 and appendix B.1): shots before every query, then an answer
that is written (captions, answers to questions) or chosen among all class names by likelihood.

    shots     drawn anew for every query, or the images nearest to the query's (RICES), the nearest last
    zero      two examples of text alone, so that the model sees the form of an answer; none where names are ranked
    ensemble  several orders of the same shots, over which log-likelihoods are averaged; written answers of the different orders
              are ranked by their mean log-likelihood per id

Dimension key: Q queries, S seeds.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from rich.progress import Progress

from generalist.data.images import read_image
from generalist.eval.fewshot.baselines import nearest_by, with_copied, without_model
from generalist.eval.fewshot.benchmark_prompts import ASKED_AT_ONCE, Asked, Asking, choose, write
from generalist.eval.fewshot.captions import caption_scores, scorers
from generalist.eval.fewshot.published import Benchmark, Example
from generalist.eval.fewshot.vqa import normalized, vqa_accuracy
from generalist.eval.results.file import Parts
from generalist.eval.results.scores import area, area_under_curve, bootstrap
from generalist.inference.fingerprint import fingerprint
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import context
from generalist.inference.shots import Images, Retriever

Drawn = dict[int, list[list[list[int]]]]
"""Number of shots → seed → query → the shots' indices among the supports."""

TEXT_ONLY = 2  # examples before a query without shots; a single one does harm (Flamingo, appendix B.1)


def check(generalist: Generalist, benchmark: Benchmark, asking: Asking) -> None:
    """Checks that everything needed is there, before anything is computed.

    Raises:
        ValueError: there are too few examples, the template lacks the question, or the weights have no encoder for RICES.
        ImportError: the extra `captions` is not installed.
    """
    most = max(asking.shots) or TEXT_ONLY
    for group in sorted({query.group for query in benchmark.queries}):
        if (known := len(_of_group(benchmark, group))) < most:
            within = f" of the group {group!r}" if group else ""
            raise ValueError(f"{most} shots need as many examples, but {benchmark.name} has {known}{within}")
    asked = next((one for one in benchmark.queries if one.question), None)
    template = asking.template or benchmark.template
    if asked is not None and "{question}" not in template:
        raise ValueError(f"{benchmark.name} asks questions: write {{question}} into the template {template!r}")
    if asking.retrieve and generalist.encoder is None:
        raise ValueError("retrieval compares images with the frozen encoder, but these weights have none")
    if benchmark.kind == "caption":
        scorers()


def evaluate(
    generalist: Generalist,
    benchmark: Benchmark,
    asking: Asking,
    *,
    kept: Parts | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores by number of shots, with every answer.

    Args:
        generalist: the weights.
        benchmark: the queries, and the supports that shots are taken from.
        asking: how it is asked.
        kept: stores the answers of each number of shots and seed, so that an interrupted evaluation continues.
        progress: gets one bar.

    Returns:
        `cells`, one per number of shots: `score` (percent; CIDEr times 100) with its bootstrap interval over the queries,
        `by_seed`, for captions `bleu` (BLEU-1 to 4, times 100), `answers` (seed → query → `shots`, by their indices among
        `supports`, `answer`, `score`; `log_odds` where the metric is `auc`; `copied`: whether it is the last shot's answer), the
        rate of copying (`copied`, with interval and `by_seed`; missing where there is no last shot), and `baselines`: the same of
        `majority` and `nearest` (`eval/fewshot/baselines.py`), None where they have no answer; `nearest_by`: what images are
        compared by; `left_out`: numbers of shots that do not fit.

    Raises:
        ValueError: as `check`, or no number of shots fits.
        DocumentError: an image can't be read.
    """
    check(generalist, benchmark, asking)
    asked = Asked(generalist, benchmark, asking)
    drawn, left_out = _fitting(asked, _shots(asked))
    # All that an answer depends on besides its shots: kept answers serve only an evaluation that would give the same.
    seen = {"weights": fingerprint(generalist), "benchmark": _digest(benchmark), "template": asked.template}
    settings = seen | {"tokens": asked.tokens, "beams": asking.beams, "permutations": asking.permutations}
    bar = None
    if progress is not None:
        total = sum(len(by_seed) for by_seed in drawn.values()) * len(benchmark.queries)
        bar = progress.add_task(benchmark.name, total=total)

    def move(count: int) -> None:
        if progress is not None and bar is not None:
            progress.advance(bar, count)

    cells = []
    for count, by_seed in drawn.items():
        several = []
        for seed, shots in enumerate(by_seed):
            own = settings | {"count": count, "shots": shots, "seed": seed}
            known = kept is not None and kept.path(f"{count}-shots", own).exists()
            compute = partial(_answers, asked, count, seed, shots, move)
            answers = compute() if kept is None else kept.get(f"{count}-shots", own, compute)
            if known:
                move(len(answers))
            several.append(answers)
        cells.append({"shots": count} | _scored(benchmark, with_copied(asked, several)))
        others = without_model(asked, count, several).items()
        cells[-1]["baselines"] = {name: one if one is None else _scored(benchmark, one) for name, one in others}
    return {
        "benchmark": benchmark.name,
        "kind": benchmark.kind,
        "metric": benchmark.metric,
        "asking": dataclasses.asdict(asking) | {"template": f"{asked.template}{{answer}}", "tokens": asked.tokens},
        "chance": _chance(benchmark),
        "nearest_by": nearest_by(generalist),
        "cells": cells,
        "left_out": left_out,
        "queries": [_plain(one) for one in benchmark.queries],
        "supports": [_plain(one) for one in benchmark.supports],
        "classes": list(benchmark.classes),
    }


def _shots(asked: Asked) -> Drawn:
    """The shots of every query: the nearest ones, or random ones."""
    asking, benchmark = asked.asking, asked.benchmark
    places, drawn = {query.group: _of_group(benchmark, query.group) for query in benchmark.queries}, {}
    if asking.retrieve and max(asking.shots):
        # Once, for the largest number of shots: fewer are the last of these.
        retriever = Retriever(asked.generalist, Images([one.image for one in benchmark.supports]))
        nearest = [_nearest(retriever, benchmark, query, max(asking.shots)) for query in benchmark.queries]
    for count in asking.shots:
        if asking.retrieve and count:
            drawn[count] = [[likest[-count:] for likest in nearest]]
            continue
        wanted = count if count or benchmark.kind == "classify" else TEXT_ONLY
        drawn[count] = [
            [
                # Seeded by query and number, so that a draw does not depend on which others are made.
                np.random.default_rng([seed, count, number]).choice(places[query.group], wanted, replace=False).tolist()
                for number, query in enumerate(benchmark.queries)
            ]
            for seed in range(asking.seeds if wanted else 1)  # without shots, every seed would ask the same
        ]
    return drawn


def _of_group(benchmark: Benchmark, group: str) -> list[int]:
    """The indices of a group's supports."""
    return [number for number, support in enumerate(benchmark.supports) if support.group == group]


def _nearest(retriever: Retriever, benchmark: Benchmark, query: Example, count: int) -> list[int]:
    """The supports of the query's group with the most similar images, the most similar one last."""
    every = retriever.nearest(read_image(query.image), len(benchmark.supports)).tolist()
    return [one for one in every if benchmark.supports[one].group == query.group][-count:]


def _fitting(asked: Asked, drawn: Drawn) -> tuple[Drawn, list[dict[str, Any]]]:
    """The numbers of shots for which every prompt fits the context with its answer; and the others, with how many would fit.

    Raises:
        ValueError: none fits.
    """
    whole, left_out = {}, []
    # All or none: a score over only those queries whose shots fit would be of easier queries.
    for count, by_seed in drawn.items():
        least = min(
            asked.fitting(number, shots, with_images=count > 0)
            for several in by_seed
            for number, shots in enumerate(several)
        )
        if least >= len(by_seed[0][0]):
            whole[count] = by_seed
        else:
            left_out.append({"shots": count, "fitting": least, "context": context(asked.generalist)})
    if not whole:
        most = max(0, *(one["fitting"] for one in left_out))
        raise ValueError(
            f"with {', '.join(map(str, drawn))} shots the prompts and {asked.tokens} ids for an answer are longer than the "
            f"context of {context(asked.generalist)}, in which {most} shots fit: ask with fewer, or shorten the template"
        )
    return whole, left_out


def _answers(
    asked: Asked, count: int, seed: int, shots: list[list[int]], move: Callable[[int], None]
) -> list[dict[str, Any]]:
    """The answer to every query."""
    answers: list[dict[str, Any]] = []
    for start in range(0, len(shots), ASKED_AT_ONCE):
        chunk = range(start, min(start + ASKED_AT_ONCE, len(shots)))
        orders = [list(_orders(shots[one], asked.asking.permutations, [seed, count, one])) for one in chunk]
        prompts = [
            [asked.prompt(one, order, with_images=count > 0) for order in several]
            for one, several in zip(chunk, orders, strict=True)
        ]
        found = choose(asked, prompts) if asked.benchmark.kind == "classify" else write(asked, prompts)
        answers += [{"shots": shots[one]} | answer for one, answer in zip(chunk, found, strict=True)]
        move(len(chunk))
    return answers


def _orders(shots: list[int], count: int, seed: list[int]) -> Iterator[list[int]]:
    """The shots as they are, then in random orders."""
    yield shots
    # The 1 keeps these draws apart from those of the shots, which have the same seed without it.
    rng = np.random.default_rng([1, *seed])
    for _ in range(count - 1 if len(shots) > 1 else 0):
        yield [shots[int(one)] for one in rng.permutation(len(shots))]


def _scored(benchmark: Benchmark, answers: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The score of a number of shots from its seeds' answers."""
    found: dict[str, Any] = {}
    if benchmark.kind == "caption":
        references = [query.answers for query in benchmark.queries]
        # Of all queries together: CIDEr's weights of words come from the references of all of them.
        scores = [caption_scores([one["answer"] for one in several], references) for several in answers]
        each = np.stack([100.0 * one.cider for one in scores])  # (S, Q)
        found["bleu"] = (100.0 * np.mean([one.bleu for one in scores], axis=0)).tolist()
    else:
        pairs = [zip(several, benchmark.queries, strict=True) for several in answers]
        # (S, Q)
        each = np.array([[_score(benchmark, one["answer"], query) for one, query in several] for several in pairs])
    scored = [
        [one | {"score": float(score)} for one, score in zip(several, row, strict=True)]
        for several, row in zip(answers, each, strict=True)
    ]
    if benchmark.metric == "auc":
        positive = np.array([query.answers[0] == benchmark.classes[-1] for query in benchmark.queries])
        odds = np.array([[one["log_odds"] for one in several] for several in answers])  # (S, Q)
        estimate, by_seed = area(odds, positive), area_under_curve(odds, positive)
    else:
        # Queries are resampled, with the mean over seeds of each: seeds of one query are not independent.
        estimate, by_seed = bootstrap([each.mean(axis=0)]), each.mean(axis=1)
    if "copied" in answers[0][0]:
        copies = 100.0 * np.array([[one["copied"] for one in several] for several in answers])  # (S, Q)
        rate = dataclasses.asdict(bootstrap([copies.mean(axis=0)]))
        found["copied"] = {"score": rate, "by_seed": copies.mean(axis=1).tolist()}
    return {"score": dataclasses.asdict(estimate), "by_seed": by_seed.tolist(), "answers": scored} | found


def _score(benchmark: Benchmark, answer: str, query: Example) -> float:
    """The score of one answer in percent."""
    if benchmark.metric == "vqa":
        return 100.0 * vqa_accuracy(answer, query.answers)
    if benchmark.metric == "exact":
        return 100.0 * (normalized(answer) in map(normalized, query.answers))
    return 100.0 * (answer in query.answers)


def _chance(benchmark: Benchmark) -> float | None:
    """The score of choosing at random, in percent; None where answers are written."""
    if benchmark.metric == "auc":
        return 50.0
    return 100.0 / len(benchmark.classes) if benchmark.kind == "classify" else None


def _plain(example: Example) -> dict[str, Any]:
    plain = {"image": str(example.image), "question": example.question, "answers": list(example.answers)}
    return plain | ({"group": example.group} if example.group else {})


def _digest(benchmark: Benchmark) -> str:
    """A hash of everything that is asked or shown except the images' pixels."""
    whole = [[_plain(one) for one in several] for several in (benchmark.queries, benchmark.supports)]
    return hashlib.sha256(json.dumps([whole, benchmark.classes]).encode()).hexdigest()
