"""The loss on a user's own documents that training held out, texts and images as training shows them.

Dimension key: N documents.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.progress import Progress

from generalist.data.document_examples import DocumentExamples
from generalist.eval.results.scores import ratio
from generalist.tokenizers.sequence import Sequence

SEED = 0
SCORED_AT_ONCE = 64

LogLikelihood = Callable[[list[Sequence]], np.ndarray]
"""Sequences → log-likelihood of each one's predicted tokens in nats, (n,)."""


def evaluate_documents(
    examples: DocumentExamples, log_likelihood: LogLikelihood, *, count: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Nats per predicted token over a stretch of each document, with an interval over documents.

    Of a document that is longer than a row the stretch is drawn, and so is whether texts belong to the image before or after
    them, by the document's number alone: the same on every machine.

    Args:
        examples: the held-out documents, cut and joined with their images as in training.
        log_likelihood: scores sequences.
        count: documents at most, drawn from all of them.
        progress: gets one bar.

    Raises:
        ValueError: no document has a token to predict.
        DocumentError: more documents than may be left out have an image that can't be read.
    """
    order = np.random.default_rng(SEED).permutation(len(examples))[:count]
    chosen = [int(number) for number in sorted(order)]
    bar = progress.add_task("reading held-out documents", total=len(chosen)) if progress else None
    nats, tokens, shown = np.zeros(len(chosen)), np.zeros(len(chosen)), np.zeros(len(chosen), bool)
    for start in range(0, len(chosen), SCORED_AT_ONCE):
        numbers = chosen[start : start + SCORED_AT_ONCE]
        sequences = [_example(examples, number) for number in numbers]
        at = slice(start, start + len(sequences))
        nats[at] = -np.asarray(log_likelihood(sequences), np.float64)
        tokens[at] = [float(sequence.loss_weight.sum()) for sequence in sequences]
        shown[at] = [_has_image(sequence) for sequence in sequences]
        if progress and bar is not None:
            progress.advance(bar, len(sequences))
    predicted = tokens > 0  # a stretch of images alone has nothing to predict
    if not predicted.any():
        raise ValueError(
            f"no document of {examples.documents.path} has a token to predict: data.documents.heldout needs texts"
        )
    return {
        "loss": dataclasses.asdict(ratio(nats[predicted], tokens[predicted])),
        "documents": int(predicted.sum()),
        "with_images": int((shown & predicted).sum()),
        "tokens": int(tokens.sum()),
        "row": examples.length,
    }


def _example(examples: DocumentExamples, number: int) -> Sequence:
    """A document's sequence. Training shows a text that belongs to an image which does not come without predicting it; here the
    text then belongs to the image on its other side, since every document is to count."""
    ways = [examples, *(dataclasses.replace(examples, next_probability=way) for way in (0.0, 1.0))]
    for way in ways:
        sequence = way.example(number, np.random.default_rng([SEED, number]))
        if sequence.loss_weight.any():
            break
    return sequence


def _has_image(sequence: Sequence) -> bool:
    return any(len(payload) for payload in (sequence.frames, sequence.patches, sequence.images))
