"""What a document is made of, and for each part what it attends to and whether it is predicted (Flamingo, sections 2.4, 3.1).

    bos  text  <image> text text chunk_end  <image> text chunk_end

An image opens a chunk, which the next image, `CHUNK_END` or the end of the document closes.

Dimension key: H height, W width, C channels of an image (none for grey ones), n ids.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int32, UInt8

from generalist.tokenizers.marks import CrossMarks


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Text of a document that the model learns to write, not only to read."""

    text: str


@dataclasses.dataclass(frozen=True)
class Controlled:
    """Text of a published model in which control tokens are written out, as its chat template gives it."""

    text: str


class ChunkEnd:
    """Ends a chunk of a document that has no image. Before an image and at the end of a document it is implied."""


CHUNK_END = ChunkEnd()
Part = UInt8[np.ndarray, "_H _W *_C"] | Int32[np.ndarray, "_n"] | str | Predicted | Controlled | ChunkEnd
"""A part of a document: an image, ids, or a text."""


@dataclasses.dataclass(frozen=True)
class Arranged:
    """A part in its place. `CHUNK_END` stands for the token that closes a chunk."""

    part: Part
    predicted: bool
    image: int
    """1 + index of the document's image that the part attends to; 0: none."""


def is_image(part: Part) -> bool:
    """Whether a part is an image; arrays of one axis are ids."""
    return isinstance(part, np.ndarray) and part.ndim > 1


def arrange(parts: Sequence[Part], *, to_next: bool, is_open: bool, implied: bool = True) -> Iterator[Arranged]:
    """The parts in order, with the ends of their chunks, as `Assembler.document` describes them.

    Args:
        implied: an image and the end of the document end a chunk.
    """
    total, marked = sum(map(is_image, parts)), any(isinstance(part, Predicted) for part in parts)
    before = chunk = 0  # images so far; image of the last text
    written = predicted = False  # of the current chunk: whether it has text, and whether its last text is predicted

    def end(always: bool = False) -> Iterator[Arranged]:
        # A chunk that neither attends to an image nor is predicted needs no end, unless the caller asked for one.
        if chunk or predicted or (always and written):
            yield Arranged(CHUNK_END, predicted, chunk)

    for part in parts:
        if part is CHUNK_END or is_image(part):
            if part is CHUNK_END or implied:
                yield from end(always=part is CHUNK_END)
            chunk, written, predicted = 0, False, False
        if part is CHUNK_END:
            continue
        if is_image(part):
            before += 1
            # An image's own positions (patches, a frame) see the image through cross-attention too.
            yield Arranged(part, False, before)
            continue
        # With `to_next`, texts after the last image have none to attend to.
        chunk = before if not to_next else before + 1 if before < total else 0
        # Explicit marks override the rule that text about an image is predicted.
        written, predicted = True, isinstance(part, Predicted) if marked else chunk > 0
        predicted = predicted and not is_open
        yield Arranged(part, predicted, chunk)
    if implied and not is_open:
        yield from end()


def marked(arranged: Iterable[Arranged], marks: CrossMarks) -> Iterator[Arranged]:
    """The parts as a published model with cross-attention marks them. The ids before an image still see the one before it."""
    around, after_image, seen = np.array(marks.around, np.int32), False, 0
    for one in arranged:
        if is_image(one.part):
            if not after_image:
                yield Arranged(around, False, seen)
            yield one
            seen = one.image
            yield Arranged(around, False, seen)
        elif marks.stripped and isinstance(one.part, str):
            yield dataclasses.replace(one, part=one.part.strip(" "))
        else:
            yield one
        after_image = is_image(one.part)
