"""Regions and questions of photographs: is what is described found, is what is asked answered, and is it the image that tells?

The rule of RefCOCO (Yu et al., 2016): an expression is right if the intersection over union (IoU) of the written box with the
true one is at least 0.5. The share at 0.8 is reported beside it. Every expression counts once, and is asked again with another
image of its split.

Questions have one answer: a written one is right if it is equal. GQA's own scorer compares the texts as they are; here both are
normalised first, as for VQA accuracy.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.progress import Progress

from generalist.data.files import DocumentError
from generalist.data.grounded import GroundedSet, Kind, Photograph, Question, Region
from generalist.data.grounded_examples import pointing_text, question_text
from generalist.eval.fewshot.vqa import normalized
from generalist.eval.held_out.scenes import THRESHOLDS, Generate, overlap
from generalist.eval.results.scores import proportion

SEED = 0
AT_ONCE = 64
"""Regions or questions whose images are in memory."""

Read = Callable[[Photograph], UInt8[np.ndarray, "H W 3"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A region or a question with its image, and an image that it is not about."""

    about: Region | Question
    image: Photograph
    wrong: Photograph

    @property
    def text(self) -> str:
        """What the model is asked."""
        return pointing_text(self.about.phrase) if isinstance(self.about, Region) else question_text(self.about.text)


def asked_of(grounded: GroundedSet, split: str, kind: Kind, items: int) -> list[Asked]:
    """The regions or the questions of a split, or some of them, the same on every machine.

    Args:
        items: maximum number; 0: all.

    Raises:
        DocumentError: a file is damaged, or the split has a single image.
    """
    if (count := grounded.count(split)) < 2:
        raise DocumentError(f"{grounded.name} has {count} image in the split {split}: an evaluation needs two or more")
    images = [grounded.photograph(split, index) for index in range(count)]
    found = [
        Asked(about=about, image=images[index], wrong=images[(index + 1) % count])
        for index in range(count)
        for about in getattr(grounded.image(split, index), kind)
    ]
    if not items or items >= len(found):
        return found
    taken = np.sort(np.random.default_rng(SEED).permutation(len(found))[:items])
    return [found[int(one)] for one in taken]


def written(
    asked: Sequence[Asked],
    read: Read,
    fits: Callable[[list[Any]], bool],
    generate: Generate,
    *,
    progress: Progress | None = None,
    what: str = "",
) -> dict[str, list[str]]:
    """What the model writes to each, with the right image (`image`) and with a wrong one (`wrong`). What does not fit is not
    asked, its answer is empty, and a note tells how many these are.

    Args:
        asked: regions or questions.
        read: reads an image, as training shows it.
        fits: whether a row has room for an image with its question and an answer.
        generate: writes answers.
        progress: gets one bar.
        what: is evaluated, for the bar.

    Raises:
        DocumentError: an image can't be read.
    """
    bar = progress.add_task(what, total=2 * len(asked)) if progress else None
    found: dict[str, list[str]] = {"image": [], "wrong": []}
    left_out = dict.fromkeys(found, 0)
    for shown, texts in found.items():
        for start in range(0, len(asked), AT_ONCE):
            documents = [[read(getattr(one, shown)), one.text] for one in asked[start : start + AT_ONCE]]
            # Each on its own: of documents that are read together, the longest decides how much room all of them have.
            fitting = [fits(one) for one in documents]
            answers = iter(generate(list(itertools.compress(documents, fitting))))
            texts += [next(answers) if has_room else "" for has_room in fitting]
            left_out[shown] += fitting.count(False)
            if progress and bar is not None:
                progress.advance(bar, len(documents))
    if progress and left_out["image"]:
        progress.console.print(
            f"note: {left_out['image']:,} of {len(asked):,} questions of {what} count as wrong: a row (data.length) has no room "
            "for the image, the question and an answer",
            highlight=False,
        )
    return found


def score_regions(asked: Sequence[Asked], texts: dict[str, list[str]]) -> dict[str, Any]:
    """Accuracies of boxes with their intervals, beside those with a wrong image, and the overlaps themselves."""
    boxes = [one.about.box for one in asked if isinstance(one.about, Region)]
    overlaps = {shown: [overlap(text, box) for text, box in zip(texts[shown], boxes, strict=True)] for shown in texts}
    return {
        **accuracies("accuracy", overlaps["image"]),
        **accuracies("wrong", overlaps["wrong"]),
        "overlaps": overlaps["image"],
        "items": len(asked),
    }


def score_questions(asked: Sequence[Asked], texts: dict[str, list[str]]) -> dict[str, Any]:
    """Share of right answers with its interval, beside that with a wrong image, and the answers themselves."""
    right = [one.about.answer for one in asked if isinstance(one.about, Question)]
    pairs = {shown: list(zip(right, texts[shown], strict=True)) for shown in texts}
    return {
        "exact": exact(pairs["image"]),
        "wrong": exact(pairs["wrong"]),
        "answers": [list(pair) for pair in pairs["image"]],
        "items": len(asked),
    }


def exact(answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The share of right and written answers that are equal, both normalised, in percent."""
    return dataclasses.asdict(proportion(sum(_equal(right, text) for right, text in answers), len(answers)))


def _equal(right: str, text: str) -> bool:
    known = normalized(right)
    # Nothing is left of some answers of Visual Genome, `A` or `?`: an empty text would be right.
    return known == normalized(text.strip()) if known else right.strip().lower() == text.strip().lower()


def accuracies(name: str, overlaps: Sequence[float]) -> dict[str, Any]:
    """The share of overlaps that reach each threshold, in percent."""
    return {
        f"{name}_{threshold}": dataclasses.asdict(proportion(sum(one >= threshold for one in overlaps), len(overlaps)))
        for threshold in THRESHOLDS
    }
