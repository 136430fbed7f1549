"""Writing text greedily after documents of images and text."""

from collections.abc import Sequence as Sequences
from typing import Any

import numpy as np

from generalist.inference.decode import CachedRows
from generalist.inference.load import Generalist
from generalist.inference.rows import bucket, shift_right, stack_rows


def generate(generalist: Generalist, documents: Sequences[list[Any]], tokens: int = 32) -> list[str]:
    """What the model writes after each document (images uint8 and strings) until it ends its text, or `tokens` ids.

    All documents are one batch: give a hundred or so at a time.
    """
    vocabulary, text = generalist.vocabulary, generalist.tokenizers.text
    sequences = [generalist.assembler.image_text(parts) for parts in documents]
    length = bucket(max(len(sequence.tokens) for sequence in sequences), 8)
    frame_tokens = generalist.config.model.frame_tokens
    batch = shift_right(stack_rows(sequences, length, pad=vocabulary.pad, frame_tokens=frame_tokens))
    allowed = np.zeros((1, vocabulary.size), bool)
    allowed[0, : text.size] = allowed[0, vocabulary.eos] = True
    rows = CachedRows(generalist, len(sequences), length + tokens, images=batch.row_images.shape[1])
    written = [rows.append(batch, allowed)]
    for _ in range(tokens - 1):
        if np.all(np.concatenate(written, axis=1) == vocabulary.eos, axis=1).all():
            break
        step = [generalist.assembler.text(ids, bos=False, eos=False) for ids in written[-1]]
        written.append(rows.append(stack_rows(step, 1, pad=vocabulary.pad), allowed))
    return [text.decode(until(ids, vocabulary.eos)) for ids in np.concatenate(written, axis=1)]


def until(ids: np.ndarray, end: int) -> np.ndarray:
    """The ids before the first end marker."""
    stops = np.flatnonzero(ids == end)
    return ids[: stops[0]] if len(stops) else ids
