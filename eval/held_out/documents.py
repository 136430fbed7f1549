"""The loss on the user's held-out documents, with texts and images as training shows them.

Dimension key: N documents.
"""

import dataclasses
from typing import Any

import numpy as np
from rich.progress import Progress

from generalist.data.document_examples import DocumentExamples
from generalist.eval.held_out.likelihood import LogLikelihood
from generalist.eval.results.scores import ratio
from generalist.tokenizers.sequence import Sequence

SEED = 0
SCORED_AT_ONCE = 64  # documents whose images are in memory together


def evaluate_documents(
    examples: DocumentExamples, log_likelihood: LogLikelihood, *, count: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Nats per predicted token over a stretch of each document, with an interval over documents.

    Two choices are random but decided by the document's index alone, so that they are the same on every machine: the stretch of
    a document that is longer than a row, and whether its texts attend to the image before or after them.

    Args:
        examples: the held-out documents, cut and joined with their images as in training.
        log_likelihood: scores sequences.
        count: maximum number of documents, drawn from all of them.
        progress: gets one bar.

    Raises:
        ValueError: no document has a token to predict.
        DocumentError: more documents have an unreadable image than may be left out.
    """
    order = np.random.default_rng(SEED).permutation(len(examples))[:count]
    # In the file's order, which reads it from front to back.
    chosen = [int(number) for number in sorted(order)]
    bar = progress.add_task("reading held-out documents", total=len(chosen)) if progress else None
    # (N,) each.
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
    """A document's sequence, with something to predict if that is possible.

    A text before the first image, or after the last one, may attend to an image that does not exist; it is then not predicted.
    Training accepts that; here such a document is tried again with texts that attend to the image on their other side.
    """
    ways = [examples, *(dataclasses.replace(examples, next_probability=way) for way in (0.0, 1.0))]
    for way in ways:
        # The same generator each time, so that the stretch stays the same.
        sequence = way.example(number, np.random.default_rng([SEED, number]))
        if sequence.loss_weight.any():
            break
    return sequence


def _has_image(sequence: Sequence) -> bool:
    return any(len(payload) for payload in (sequence.frames, sequence.patches, sequence.images))
