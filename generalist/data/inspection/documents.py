"""Inspection of documents: what they are made of, and which can't be read."""

from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console

from generalist.data.documents import Documents
from generalist.data.files import DocumentError
from generalist.data.images import read_image
from generalist.data.inspection.episodes import BROKEN, histogram
from generalist.data.inspection.problems import Problem, counted, listed
from generalist.data.spread import spread
from generalist.system.progress import counting

SAMPLE = 256
"""Documents that are read, spread over all."""


def inspect(
    name: str, documents: Documents, console: Console, *, whole: bool = False
) -> tuple[dict[str, Any], list[Problem]]:
    """All about documents, as JSON values, and their problems.

    Args:
        whole: reads every document with its images, and not only a sample.
    """
    numbers = np.arange(len(documents)) if whole else spread(len(documents), SAMPLE)
    kinds: Counter[str] = Counter()
    characters, sides, images = [], [], []
    # Those that opening the set has found already.
    broken = {number: _named(documents, number, why) for number, why in documents.left_out.items()}
    with counting(console, transient=True) as progress:
        for number in progress.track(numbers.tolist(), description="reading documents"):
            try:
                parts = documents[number]
                # Decoded, since a file that is there may still be no image.
                shown = [read_image(part) for part in parts if not isinstance(part, str)]
            except DocumentError as error:
                broken[number] = _named(documents, number, str(error))
                continue
            # A document counts only once it could be read as a whole.
            texts = [part for part in parts if isinstance(part, str)]
            kinds[_kind(len(shown), len(texts))] += 1
            characters.append(sum(map(len, texts)))
            images.append(len(shown))
            # (H, W)
            sides += [image.shape[:2] for image in shown]
    about = {
        "name": name,
        "place": str(documents.path),
        "format": documents.set.format,
        "documents": len(documents),
        "read": len(numbers),
        "kinds": dict(sorted(kinds.items())),
        "characters": histogram(np.array(characters, np.int64)),
        "images": histogram(np.array(images, np.int64)),
        # Of every image in the sample, so that a size of the model's images can be chosen.
        "heights": histogram(np.array([height for height, _ in sides], np.int64)),
        "widths": histogram(np.array([width for _, width in sides], np.int64)),
        "broken": [{"record": number, "reason": why} for number, why in sorted(broken.items())[:BROKEN]],
        "broken_count": len(broken),
    }
    return about, [*_problems(name, len(documents), broken), *_unread(name, documents)]


def _kind(images: int, texts: int) -> str:
    """What a document is, by the number of its parts."""
    if not images:
        return "text"
    if not texts:
        return "images"
    return "pair" if images == texts == 1 else "interleaved"


def _named(documents: Documents, number: int, why: str) -> str:
    return documents.named(number, why)


def _problems(name: str, total: int, broken: dict[int, str]) -> list[Problem]:
    if not broken:
        return []
    reasons = listed([broken[number] for number in sorted(broken)], 10)
    what = f"{counted(len(broken), 'document')} of {total:,} can't be read"
    remedy = "mend them, or take them out; up to the share data.documents.unreadable is left out of training"
    return [Problem(kind="broken", part=name, where=reasons, what=what, remedy=remedy)]


def _unread(name: str, documents: Documents) -> list[Problem]:
    return [
        Problem(
            kind="unread",
            part=name,
            where="documents",
            what=note,
            remedy="if something of it should be learnt, name its split, column or key (docs/documents.md)",
        )
        for note in documents.set.notes()
    ]
