"""Naming: which of a few names does the model find likeliest for an image it has never seen?

Two splits (see generalist/data/emoji.py): held-out drawings of known things, and things whose names were never seen.
Candidates are the right thing and others of the same split, so that how common a name is says little about the answer; how
little is measured, by asking again with another thing's image (*blind*).
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.progress import Progress

from generalist.data.emoji import Drawing, ImageText, Split, drawings, naming
from generalist.eval.scores import proportion
from generalist.tokenizers.sequence import Sequence as TokenSequence

SEED = 0
ASKED_AT_ONCE = 16  # questions scored between two moves of the progress bar
WRITTEN_AT_ONCE = 100

LogLikelihood = Callable[[list[TokenSequence]], np.ndarray]
"""Sequences → log-likelihood of each one's predicted tokens in nats, (n,)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A drawing and the names to choose among."""

    drawing: Drawing
    candidates: tuple[str, ...]
    blind: Drawing
    """A drawing of a thing that is not among the candidates, where there is one."""

    @property
    def right(self) -> int:
        """Index of the right candidate."""
        return self.candidates.index(self.drawing.thing)


def questions(split: Split, items: int, choices: int) -> list[Question]:
    """The same questions on every machine: things take turns, so that one with many drawings counts no more than another.

    Raises:
        ValueError: the split has fewer things than there are to be choices.
    """
    by_thing: dict[str, list[Drawing]] = defaultdict(list)
    rng = np.random.default_rng(SEED)
    pool = drawings(split)
    for index in rng.permutation(len(pool)):
        by_thing[pool[index].thing].append(pool[index])
    names = sorted(by_thing)
    if not 2 <= choices <= len(names):
        raise ValueError(f"evaluation.naming_choices must be from 2 to {len(names)}, got {choices}")
    turns = [several[turn] for turn in range(len(pool)) for several in by_thing.values() if turn < len(several)]
    return [_question(drawing, by_thing, names, choices, rng) for drawing in turns[:items]]


def _question(
    drawing: Drawing, by_thing: dict[str, list[Drawing]], names: list[str], choices: int, rng: np.random.Generator
) -> Question:
    """The right name among others, in a drawn order; and for the blind image a thing that is not asked about."""
    others = [name for name in names if name != drawing.thing]
    wrong = [others[index] for index in rng.choice(len(others), size=choices - 1, replace=False)]
    candidates = [drawing.thing, *wrong]
    order = rng.permutation(choices)
    outside = [name for name in others if name not in wrong] or wrong
    blind = by_thing[outside[rng.integers(len(outside))]][0]
    return Question(drawing=drawing, candidates=tuple(candidates[index] for index in order), blind=blind)


def evaluate_naming(
    assemble: Callable[[list[Any]], TokenSequence],
    log_likelihood: LogLikelihood,
    split: Split,
    *,
    items: int,
    choices: int = 10,
    generate: Callable[[list[list[Any]]], list[str]] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy of naming, with its interval, its chance level and its blind accuracy; every answer is kept.

    Args:
        assemble: parts of a document → sequence (`Assembler.image_text`).
        log_likelihood: scores sequences.
        split: `drawings` or `names`.
        items: drawings at most.
        choices: names to choose among, the right one included.
        generate: at most 100 documents of image and question → what the model writes; counted where it is the right name exactly.
        progress: gets one bar.

    Raises:
        MissingImages: the packages with the drawings are not installed.
    """
    asked = questions(split, items, choices)
    bar = progress.add_task(f"naming {split}", total=2 * len(asked)) if progress else None
    answers: dict[bool, list[int]] = {False: [], True: []}
    for blind, given in answers.items():
        for start in range(0, len(asked), ASKED_AT_ONCE):
            chunk = asked[start : start + ASKED_AT_ONCE]
            given += _answers(chunk, blind, assemble, log_likelihood)
            if progress and bar is not None:
                progress.advance(bar, len(chunk))
    right = [question.right for question in asked]
    result = {
        "accuracy": _accuracy(answers[False], right),
        "blind_accuracy": _accuracy(answers[True], right),
        "chance": 100.0 / choices,
        "items": len(asked),
        "things": len({question.drawing.thing for question in asked}),
        "choices": choices,
        "answers": [
            {"code": question.drawing.code, "thing": question.drawing.thing, "answer": question.candidates[answer]}
            for question, answer in zip(asked, answers[False], strict=True)
        ],
    }
    return result | (_written(asked, generate) if generate else {})


def _answers(
    asked: Sequence[Question],
    blind: bool,
    assemble: Callable[[list[Any]], TokenSequence],
    log_likelihood: LogLikelihood,
) -> list[int]:
    """Index of the likeliest candidate of each question."""
    documents = []
    for question in asked:
        image = (question.blind if blind else question.drawing).image()
        documents += [naming(question.drawing, image, name).parts() for name in question.candidates]
    scores = log_likelihood([assemble(parts) for parts in documents])
    return np.reshape(scores, (len(asked), -1)).argmax(axis=1).tolist()


def _accuracy(answers: Sequence[int], right: Sequence[int]) -> dict[str, float]:
    """Share of right answers in percent."""
    return dataclasses.asdict(proportion(sum(a == r for a, r in zip(answers, right, strict=True)), len(right)))


def _written(asked: Sequence[Question], generate: Callable[[list[list[Any]]], list[str]]) -> dict[str, Any]:
    """Share of drawings whose thing the model writes exactly, without being given any names."""
    prompts: list[ImageText] = [naming(question.drawing, question.drawing.image()) for question in asked]
    documents = [[prompt.image, prompt.given] for prompt in prompts]
    texts = [
        text
        for start in range(0, len(documents), WRITTEN_AT_ONCE)
        for text in generate(documents[start : start + WRITTEN_AT_ONCE])
    ]
    hits = sum(text.strip() == question.drawing.thing for text, question in zip(texts, asked, strict=True))
    return {"written_exactly": dataclasses.asdict(proportion(hits, len(asked)))}
