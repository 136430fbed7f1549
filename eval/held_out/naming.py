"""Naming: which of a few names does the model find likeliest for an image it has never seen?

Two splits (see generalist/data/emoji.py): held-out drawings of known things, and things whose names were never seen. Candidates
are the right thing and others of the same split, so that the frequency of a name reveals little about the answer. How little is
measured by asking again with another thing's image (*wrong*) and without any (*none*). In the same three ways the drawing's full
name is scored as a caption: by how many nats does the right image make it likelier?

Dimension key: Q questions, C candidates, n items of a score.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from rich.progress import Progress

from generalist.data.emoji import Drawing, ImageText, Split, caption, drawings, naming
from generalist.eval.held_out.likelihood import LogLikelihood
from generalist.eval.results.scores import bootstrap, proportion
from generalist.tokenizers.sequence import Sequence as TokenSequence

SEED = 0
ASKED_AT_ONCE = 16  # questions scored between two updates of the progress bar
WRITTEN_AT_ONCE = 100

Shown = Literal["image", "wrong", "none"]
"""The image that is shown with a question: the drawing, another thing's, or none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A drawing and the names to choose among."""

    drawing: Drawing
    candidates: tuple[str, ...]
    blind: Drawing
    """A drawing of a thing that is not among the candidates, if there is one."""

    @property
    def right(self) -> int:
        """Index of the right candidate."""
        return self.candidates.index(self.drawing.thing)

    def documents(self, shown: Shown) -> list[list[Any]]:
        """The question with each of its candidates as the answer, and last the full name as a caption."""
        image = (self.blind if shown == "wrong" else self.drawing).image()
        asked = [naming(self.drawing, image, name) for name in self.candidates] + [caption(self.drawing, image)]
        # The image is the first of a document's parts.
        return [one.parts()[shown == "none" :] for one in asked]


def questions(split: Split, items: int, choices: int) -> list[Question]:
    """Questions about a split's drawings, the same on every machine.

    Args:
        split: `drawings` or `names`.
        items: maximum number of questions.
        choices: names to choose among, including the right one.

    Raises:
        ValueError: the split has fewer things than `choices`.
    """
    by_thing: dict[str, list[Drawing]] = defaultdict(list)
    rng = np.random.default_rng(SEED)
    pool = drawings(split)
    for index in rng.permutation(len(pool)):
        by_thing[pool[index].thing].append(pool[index])
    names = sorted(by_thing)
    if not 2 <= choices <= len(names):
        raise ValueError(f"data.emoji.naming_choices must be from 2 to {len(names)}, got {choices}")
    # Things take turns, so that one with many drawings (skin tones) counts no more than another, unless all are asked about.
    turns = [several[turn] for turn in range(len(pool)) for several in by_thing.values() if turn < len(several)]
    return [_question(drawing, by_thing, names, choices, rng) for drawing in turns[:items]]


def _question(
    drawing: Drawing, by_thing: dict[str, list[Drawing]], names: list[str], choices: int, rng: np.random.Generator
) -> Question:
    """The right name among others in random order, and for the wrong image a thing that is not among them."""
    others = [name for name in names if name != drawing.thing]
    wrong = [others[index] for index in rng.choice(len(others), size=choices - 1, replace=False)]
    candidates = [drawing.thing, *wrong]
    order = rng.permutation(choices)
    # Outside the candidates, or the wrong image would be a reason to choose one of them.
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
    """Accuracy of naming with the image, with a wrong one and with none, with intervals and the chance level; how much likelier
    the image makes a caption; and every answer.

    Args:
        assemble: parts of a document → sequence (`Assembler.document`).
        log_likelihood: scores sequences.
        split: `drawings` or `names`.
        items: maximum number of drawings.
        choices: names to choose among, including the right one.
        generate: at most 100 documents of image and question → the texts that the model writes; the share of exactly right names
            is reported. None: not measured.
        progress: gets one bar.

    Raises:
        MissingImages: the packages with the drawings are not installed.
    """
    asked = questions(split, items, choices)
    bar = progress.add_task(f"naming {split}", total=3 * len(asked)) if progress else None
    scores: dict[Shown, np.ndarray] = {}  # (Q, C + 1) each: the candidates, then the caption
    for shown in get_args(Shown):
        chunks = []
        for start in range(0, len(asked), ASKED_AT_ONCE):
            chunk = asked[start : start + ASKED_AT_ONCE]
            sequences = [assemble(parts) for question in chunk for parts in question.documents(shown)]
            chunks.append(np.reshape(log_likelihood(sequences), (len(chunk), choices + 1)))
            if progress and bar is not None:
                progress.advance(bar, len(chunk))
        scores[shown] = np.concatenate(chunks)
    # Sums of log-probabilities, not means per token: a long name is no likelier for being long.
    answers = {shown: table[:, :-1].argmax(axis=1).tolist() for shown, table in scores.items()}
    captions = {shown: table[:, -1].astype(np.float64) for shown, table in scores.items()}  # (Q,)
    right = [question.right for question in asked]
    result = {
        "accuracy": _accuracy(answers["image"], right),
        "blind_accuracy": _accuracy(answers["wrong"], right),
        "imageless_accuracy": _accuracy(answers["none"], right),
        "caption_nats": _mean(-captions["image"]),
        # Differences within each question, so that the interval is free of how likely the names are.
        "caption_gain_over_wrong": _mean(captions["image"] - captions["wrong"]),
        "caption_gain_over_none": _mean(captions["image"] - captions["none"]),
        "chance": 100.0 / choices,
        "items": len(asked),
        "things": len({question.drawing.thing for question in asked}),
        "choices": choices,
        "answers": [
            {"code": question.drawing.code, "thing": question.drawing.thing, "answer": question.candidates[answer]}
            for question, answer in zip(asked, answers["image"], strict=True)
        ],
    }
    return result | (_written(asked, generate) if generate else {})


def _mean(values: Float[np.ndarray, "Q"]) -> dict[str, float]:
    """Mean over the questions, with its interval."""
    return dataclasses.asdict(bootstrap([values]))


def _accuracy(answers: Sequence[int], right: Sequence[int]) -> dict[str, float]:
    """Share of right answers in percent, with its interval."""
    return dataclasses.asdict(proportion(sum(a == r for a, r in zip(answers, right, strict=True)), len(right)))


def _written(asked: Sequence[Question], generate: Callable[[list[list[Any]]], list[str]]) -> dict[str, Any]:
    """Share of drawings whose thing the model writes exactly, without a choice of names."""
    prompts: list[ImageText] = [naming(question.drawing, question.drawing.image()) for question in asked]
    documents = [[prompt.image, prompt.given] for prompt in prompts]
    texts = [
        text
        for start in range(0, len(documents), WRITTEN_AT_ONCE)
        for text in generate(documents[start : start + WRITTEN_AT_ONCE])
    ]
    hits = sum(text.strip() == question.drawing.thing for text, question in zip(texts, asked, strict=True))
    return {"written_exactly": dataclasses.asdict(proportion(hits, len(asked)))}
