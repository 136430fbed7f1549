"""A prompt cut into pieces of a few fixed sizes, which are read one after the other. Their names tell whether a piece was read
before.

    text and images of our own      16 or 64 positions, whatever they are
    an image among the text         all of its positions, 256 in Gemma 3: they see each other in both directions
    a prompt that sees itself       the whole of it, padded to a power of two (PaliGemma)

Dimension key: L positions of a piece, I images of a prompt.
"""

import dataclasses
import hashlib
import itertools
from typing import Any

import numpy as np
from jaxtyping import Shaped

from generalist.data.batch import Batch
from generalist.inference.decode import without_images
from generalist.inference.prompt import context
from generalist.inference.rows import bucket, stack_rows
from generalist.inference.weights import Weights
from generalist.tokenizers import pieces
from generalist.tokenizers.pieces import PAYLOADS, Modality, Sequence, positions_per_row

WORDS = 512
"""Positions of text for which prompts that are read as a whole have room, besides their images."""
FRAMES = 2
"""Images in the sequence, as frames or patches, that a piece may have: more would make every piece with an image slower."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Positions of a prompt that are read at once."""

    batch: Batch
    """(1, L), padded on the right; without the encoder's images."""
    size: int
    """Number of positions that are no padding."""
    stop: int
    """Positions of the prompt up to the end of this piece."""
    images: int
    """The encoder's images up to the end of this piece."""
    shown: int
    """How many of them stand among its positions, if they do in these weights."""
    name: bytes
    """Digest of everything up to the end of this piece, and of how it was cut: equal names have equal keys and values."""


def whole_prompts(weights: Weights) -> bool:
    """Whether every position of a prompt sees all others, so that it is read at once."""
    marks = weights.assembler.marks.image
    return marks is not None and marks.blocks == "prompt"


def piece_sizes(weights: Weights, sizes: tuple[int, ...], images: int) -> tuple[int, ...]:
    """The sizes of pieces of text, or of whole prompts, that these weights need, rising.

    Args:
        sizes: of pieces of text.
        images: maximum number of images per prompt.
    """
    longest = context(weights)
    if not whole_prompts(weights):
        # No longer than the context, of which at least one position is for what is written.
        return tuple(size for size in sizes if size < longest) or (longest - 1,)
    most = min(longest - 1, images * weights.config.model.vision.positions + WORDS)
    return (*itertools.takewhile(lambda size: size < most, (sizes[-1] << more for more in itertools.count())), most)


def cut(weights: Weights, sequence: Sequence, sizes: tuple[int, ...]) -> list[Piece]:
    """A prompt in pieces. All but the last have the largest size, unless they are full of images.

    Args:
        sizes: positions of a piece, rising.

    Raises:
        ValueError: the prompt is to be read as a whole, and has more positions than the largest size.
    """
    if whole_prompts(weights) and len(sequence) > sizes[-1]:
        raise ValueError(f"the prompt takes {len(sequence)} positions, but may take {sizes[-1]} here: shorten it")
    found: list[Piece] = []
    start, name = 0, b""
    while start < len(sequence):
        is_image = weights.projects and sequence.modality[start] == Modality.IMAGE and not whole_prompts(weights)
        stop = _end_of_image(sequence, start) if is_image else _end(weights, sequence, start, sizes[-1])
        part = _part(sequence, start, stop, weights.config.model.frame_tokens)
        length = stop - start if is_image else next(size for size in sizes if size >= stop - start)
        images = int((sequence.modality[:stop] == Modality.IMAGE).sum())
        shown = len(part.images) if weights.projects else 0
        digest = hashlib.sha256(name + length.to_bytes(4, "little"))
        for array in (*(getattr(part, one) for one in pieces.POSITIONAL), part.frames, part.patches, part.images):
            digest.update(np.ascontiguousarray(array).tobytes())
        name = digest.digest()
        batch = _batch(weights, part, length)
        found.append(Piece(batch, stop - start, stop, images, shown, name))
        start = stop
    return found


def _end(weights: Weights, sequence: Sequence, start: int, largest: int) -> int:
    """Where a piece that begins at `start` ends: before one more image than `FRAMES`, before one that is a piece of its own, or
    when it is full."""
    stop = min(start + largest, len(sequence))
    if weights.projects and not whole_prompts(weights):
        stop = next((at for at in range(start, stop) if sequence.modality[at] == Modality.IMAGE), stop)
    for modality, payload in ((Modality.FRAME, "frames"), (Modality.PATCH, "patches")):
        budget = _budget(payload, largest)
        # The number of the payload row that each position needs, counted from the first one of this piece.
        at = start + np.flatnonzero(sequence.modality[start:stop] == modality)
        rows = sequence.payload_index[at] // positions_per_row(modality, weights.config.model.frame_tokens)
        if len(at) and (over := at[rows - rows[0] >= budget]).size:
            stop = int(over[0])
    return stop


def _end_of_image(sequence: Sequence, start: int) -> int:
    """Where the image ends whose first position is at `start`."""
    others = sequence.modality[start + 1 :] != Modality.PROJECTED
    return start + 1 + (int(others.argmax()) if others.any() else len(others))


def _budget(payload: str, largest: int) -> int:
    """Payload rows of a piece that has images in the sequence."""
    return FRAMES if payload == "frames" else bucket(largest)


def _part(sequence: Sequence, start: int, stop: int, frame_tokens: int) -> Sequence:
    """Some positions of a sequence with the payloads that they need."""
    fields: dict[str, Any] = {name: getattr(sequence, name)[start:stop] for name in pieces.POSITIONAL}
    index = fields["payload_index"].copy()
    for modality, payload in PAYLOADS.items():
        mine = fields["modality"] == modality
        each = positions_per_row(modality, frame_tokens)
        low, high = (int(index[mine].min()) // each, int(index[mine].max()) // each + 1) if mine.any() else (0, 0)
        fields[payload] = getattr(sequence, payload)[low:high]
        if modality == Modality.PATCH:
            fields["intervals"] = sequence.intervals[low:high]  # one per patch
        index[mine] -= low * each
    return dataclasses.replace(sequence, **(fields | {"payload_index": index}))


def _batch(weights: Weights, part: Sequence, length: int) -> Batch:
    frame_tokens = weights.config.model.frame_tokens
    batch = stack_rows([part], length, pad=weights.vocabulary.pad, frame_tokens=frame_tokens)

    def padded(array: Shaped[np.ndarray, "R ..."], payload: str) -> Shaped[np.ndarray, "N ..."]:
        # Pieces without images in the sequence have another, cheaper program.
        more = _budget(payload, length) - len(array) if len(array) else 0
        return np.pad(array, [(0, more), *[(0, 0)] * (array.ndim - 1)])

    batch = dataclasses.replace(
        batch,
        frames=padded(batch.frames, "frames"),
        patches=padded(batch.patches, "patches"),
        intervals=padded(batch.intervals, "patches"),
    )
    return without_images(batch)
