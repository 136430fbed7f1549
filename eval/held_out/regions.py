"""Regions and questions of photographs: is what is described found, is what is asked answered, and is it the image that tells?

The rule of RefCOCO (Yu et al., 2016): an expression is right if the intersection over union (IoU) of the written box with the
true one is at least 0.5. The share at 0.8 is reported beside it. Every expression counts once, and is asked again with another
image of its split.

Questions have one answer: a written one is right if it is equal. Of GQA the texts are compared as they are, by its own rule
(Hudson & Manning, 2019), and accuracies by type of question stand beside that of all; of other sets both texts are normalised
first, as for VQA accuracy.

Questions about one image depend on each other, so intervals are over images.
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
from generalist.eval.results.scores import grouped_proportion, proportion

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
    fits: Callable[[list[Any], Asked], bool],
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
        fits: whether a row has room for an image with its question, and for the answer.
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
            fitting = [
                fits(document, one) for document, one in zip(documents, asked[start : start + AT_ONCE], strict=True)
            ]
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
    images = _images(asked)
    return {
        **accuracies("accuracy", overlaps["image"], images),
        **accuracies("wrong", overlaps["wrong"], images),
        "overlaps": overlaps["image"],
        "images": images,
        "items": len(asked),
    }


def score_questions(asked: Sequence[Asked], texts: dict[str, list[str]], *, literal: bool) -> dict[str, Any]:
    """Share of right answers with its interval, of all and by type of question, beside those with a wrong image, and the answers
    themselves.

    Args:
        literal: see `GroundedSet.literal_answers`.
    """
    about = [one.about for one in asked if isinstance(one.about, Question)]
    answers = {shown: [[one.answer, text] for one, text in zip(about, texts[shown], strict=True)] for shown in texts}
    images, structures = _images(asked), [one.structure for one in about]
    return {
        "exact": exact(answers["image"], images, literal=literal),
        "wrong": exact(answers["wrong"], images, literal=literal),
        "types": {
            name: {
                shown: exact([answers[key][at] for at in items], [images[at] for at in items], literal=literal)
                for shown, key in (("exact", "image"), ("wrong", "wrong"))
            }
            | {"items": len(items)}
            for name, items in by_type(structures).items()
        },
        "answers": answers["image"],
        "images": images,
        "structures": structures,
        "literal": literal,
        "items": len(asked),
    }


def by_type(structures: Sequence[str]) -> dict[str, list[int]]:
    """The questions of each structural type, and of the two kinds in which GQA's authors divide them; those without a type are
    in none.

    Args:
        structures: type of each question.
    """
    found: dict[str, list[int]] = {}
    for at, structure in enumerate(structures):
        if structure:
            for name in ("open" if structure == "query" else "binary", structure):
                found.setdefault(name, []).append(at)
    return dict(sorted(found.items()))


def exact(answers: Sequence[Sequence[str]], images: Sequence[int] | None, *, literal: bool) -> dict[str, Any]:
    """The share of right and written answers that are equal, in percent.

    Args:
        images: as of `accuracies`.
        literal: see `GroundedSet.literal_answers`.
    """
    return _share([right == text.strip() if literal else _equal(right, text) for right, text in answers], images)


def _equal(right: str, text: str) -> bool:
    known = normalized(right)
    # Nothing is left of some answers of Visual Genome, `A` or `?`: an empty text would be right.
    return known == normalized(text.strip()) if known else right.strip().lower() == text.strip().lower()


def accuracies(name: str, overlaps: Sequence[float], images: Sequence[int] | None) -> dict[str, Any]:
    """The share of overlaps that reach each threshold, in percent.

    Args:
        images: number of the image of each; None: in files of earlier versions, whose intervals take each as independent.
    """
    return {f"{name}_{threshold}": _share([one >= threshold for one in overlaps], images) for threshold in THRESHOLDS}


def _share(right: Sequence[bool], images: Sequence[int] | None) -> dict[str, Any]:
    if images is None:
        return dataclasses.asdict(proportion(sum(right), len(right)))
    return dataclasses.asdict(grouped_proportion(np.array(right, bool), np.array(images, np.int64)))


def _images(asked: Sequence[Asked]) -> list[int]:
    """The image of each, numbered as they come."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(str(one.image.file), len(numbers)) for one in asked]
