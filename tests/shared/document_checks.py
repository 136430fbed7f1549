"""What the tests of all formats of documents check in the same way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from generalist.data.files import DocumentError
from generalist.data.formats.detect_documents import open_document_set
from generalist.data.formats.documents import DocumentOpening, DocumentSet
from generalist.data.images import read_image

SETS = Path(__file__).parent.parent / "fixtures/formats/documents"
"""See make.py there: of image i the red is 10 i."""

Content = list[list[str | int]]
"""Of each document the texts, and for images their number."""


def opened(path: Path, **settings: object) -> DocumentSet:
    """A set, whatever its format."""
    return open_document_set(path, DocumentOpening(**settings))  # type: ignore[arg-type]


def content(found: DocumentSet) -> Content:
    """What is in a set, images read."""
    return [
        [part if isinstance(part, str) else int(read_image(part)[0, 0, 0]) // 10 for part in found.parts(index)]
        for index in range(len(found))
    ]


def mutated(original: bytes, rng: np.random.Generator) -> bytes:
    """A file with a few bytes changed, or cut off."""
    if rng.random() < 0.3:
        return original[: rng.integers(len(original))]
    changed = bytearray(original)
    for _ in range(rng.integers(1, 4)):
        changed[rng.integers(len(changed))] = rng.integers(256)
    return bytes(changed)


def check_mutations(file: Path, *, count: int, same: Callable[[object, object], bool]) -> int:
    """Whether a damaged file is refused by name, or its documents are, or they are as they were.

    Args:
        same: whether a document of the damaged file may be instead of one of the sound file, where nothing can tell.

    Returns:
        How many mutations were noticed.
    """
    original, rng, noticed = file.read_bytes(), np.random.default_rng(0), 0
    sound = content(opened(file))
    for _ in range(count):
        file.write_bytes(mutated(original, rng))
        try:
            found = opened(file)
        except DocumentError as error:
            assert file.name in str(error)
            noticed += 1
            continue
        for index in range(len(found)):
            assert file.name in found.where(index)
            try:
                parts = found.parts(index)
            except DocumentError as error:
                assert file.name in str(error)
                noticed += 1
                continue
            try:
                assert same([part if isinstance(part, str) else read_image(part).shape for part in parts], sound)
            except DocumentError:  # of an image whose own file is named, or which is no longer one
                noticed += 1
    file.write_bytes(original)
    return noticed
