"""Referring expressions: is the described object found, and is it the image that tells?

The rule of RefCOCO (Yu et al., 2016): an expression is right if the intersection over union (IoU) of the written box with the
true one is at least 0.5. The share at 0.8 is reported beside it. Every expression counts once, and is asked again with another
image of its split.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.progress import Progress

from generalist.data.files import DocumentError
from generalist.data.formats.places import Place
from generalist.data.grounded import GroundedSet, Region
from generalist.data.grounded_examples import pointing_text
from generalist.eval.held_out.scenes import THRESHOLDS, Generate
from generalist.eval.results.scores import proportion
from generalist.tokenizers.locations import Box, read_objects

SEED = 0
AT_ONCE = 64
"""Expressions whose images are in memory."""

Read = Callable[[Place], UInt8[np.ndarray, "H W 3"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expression:
    """A region with its image, and an image that it is not in."""

    region: Region
    image: Place
    wrong: Place


def expressions(grounded: GroundedSet, split: str, items: int) -> list[Expression]:
    """The expressions of a split, or some of them, the same on every machine.

    Args:
        items: maximum number; 0: all.

    Raises:
        DocumentError: a file is damaged, or the split has a single image.
    """
    if (count := grounded.count(split)) < 2:
        raise DocumentError(f"{grounded.name} has {count} image in the split {split}: an evaluation needs two or more")
    files = [grounded.file(split, index) for index in range(count)]
    found = [
        Expression(region=region, image=files[index], wrong=files[(index + 1) % count])
        for index in range(count)
        for region in grounded.image(split, index).regions
    ]
    if not items or items >= len(found):
        return found
    taken = np.sort(np.random.default_rng(SEED).permutation(len(found))[:items])
    return [found[int(one)] for one in taken]


def evaluate_regions(
    asked: Sequence[Expression], read: Read, generate: Generate, *, progress: Progress | None = None, what: str = ""
) -> dict[str, Any]:
    """Accuracies of a split with their intervals, beside those with a wrong image, and the overlaps themselves.

    Args:
        asked: the expressions.
        read: reads an image, as training shows it.
        generate: writes boxes.
        progress: gets one bar.
        what: is evaluated, for the bar.

    Raises:
        DocumentError: an image can't be read.
    """
    bar = progress.add_task(what, total=2 * len(asked)) if progress else None
    overlaps: dict[str, list[float]] = {"image": [], "wrong": []}
    for shown, found in overlaps.items():
        for start in range(0, len(asked), AT_ONCE):
            chunk = asked[start : start + AT_ONCE]
            texts = generate([[read(getattr(one, shown)), pointing_text(one.region.phrase)] for one in chunk])
            found += [overlap(text, one.region.box) for text, one in zip(texts, chunk, strict=True)]
            if progress and bar is not None:
                progress.advance(bar, len(chunk))
    return {
        **accuracies("accuracy", overlaps["image"]),
        **accuracies("wrong", overlaps["wrong"]),
        "overlaps": overlaps["image"],
        "expressions": len(asked),
    }


def overlap(text: str, box: Box) -> float:
    """Intersection over union of a box with the first one of a text; 0 if the text has none."""
    found = read_objects(text)
    return round(found[0].box.iou(box), 4) if found else 0.0


def accuracies(name: str, overlaps: Sequence[float]) -> dict[str, Any]:
    """The share of overlaps that reach each threshold, in percent."""
    return {
        f"{name}_{threshold}": dataclasses.asdict(proportion(sum(one >= threshold for one in overlaps), len(overlaps)))
        for threshold in THRESHOLDS
    }
