"""Language: how well the model predicts held-out text, compared with a model that knows only the frequency of each token.

Dimension key: n tokens of a text, V ids of the text vocabulary, W windows.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int
from rich.progress import Progress

from generalist.eval.held_out.likelihood import LogLikelihood
from generalist.eval.results.scores import Estimate, ratio
from generalist.tokenizers.sequence import Sequence as TokenSequence

SEED = 0
SCORED_AT_ONCE = 64  # windows between two updates of the progress bar
BYTES_PER_TOKEN = 4  # a first guess at how much text fills a window; windows that turn out too long are shortened

Encode = Callable[[str], Int[np.ndarray, "n"]]
"""Text → ids."""


def unigram(training: Sequence[str], encode: Encode, size: int) -> Float64[np.ndarray, "V"]:
    """Log-probability in nats of every token id, from its count in the training texts.

    Args:
        training: the training texts.
        encode: text → ids.
        size: number of ids, V.
    """
    # One is added to each count (Laplace), or a token that training never had would make the likelihood zero.
    counts = np.ones((size,), np.float64)
    for text in training:
        counts += np.bincount(encode(text), minlength=size)
    return np.log(counts / counts.sum())


def windows(texts: Sequence[str], encode: Encode, tokens: int, count: int) -> list[str]:
    """Up to `count` pieces of the texts, drawn from all, each of at most `tokens` tokens and cut between words.

    Raises:
        ValueError: the texts are empty.
    """
    # Cut as text, not as ids: bits per byte need the text of exactly the tokens that are scored.
    pieces = [piece for text in texts for piece in _cut(text, encode, tokens)]
    if not pieces:
        raise ValueError("there is no held-out text to score: raise data.prose.megabytes")
    chosen = np.random.default_rng(SEED).permutation(len(pieces))[:count]
    return [pieces[index] for index in sorted(chosen)]


def _cut(text: str, encode: Encode, tokens: int) -> Iterator[str]:
    """The text in pieces, each as long as a guess allows, then shortened in proportion until it fits."""
    while text := text.lstrip():
        end = tokens * BYTES_PER_TOKEN
        while end > 1 and (size := len(encode(text[:end]))) > tokens:
            end = min(end - 1, end * tokens // size)  # at least one letter less, so that this ends
        # Only in the second half: a piece without a space must not become tiny.
        space = text.rfind(" ", end // 2, end)
        end = space if space > 0 and end < len(text) else end
        yield text[:end]
        text = text[end:]


def evaluate_language(
    assemble: Callable[[str], TokenSequence],
    log_likelihood: LogLikelihood,
    encode: Encode,
    vocabulary_size: int,
    training: Sequence[str],
    heldout: Sequence[str],
    *,
    tokens: int,
    count: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Perplexity per token and bits per byte on held-out text, with intervals, for the model and a unigram model.

    Both predict the same tokens: every text token of every window, including the first.

    Args:
        assemble: text → sequence with the loss on its tokens (`Assembler.text`, without the end marker).
        log_likelihood: scores sequences.
        encode: text → ids.
        vocabulary_size: number of ids.
        training: the training texts.
        heldout: the texts to score.
        tokens: maximum number of tokens per window.
        count: maximum number of windows.
        progress: gets one bar.
    """
    frequencies = unigram(training, encode, vocabulary_size)
    texts = windows(heldout, encode, tokens, count)
    bar = progress.add_task("reading held-out text", total=len(texts)) if progress else None
    # (W,) each.
    model, baseline, predicted = np.zeros(len(texts)), np.zeros(len(texts)), np.zeros(len(texts))
    for start in range(0, len(texts), SCORED_AT_ONCE):
        sequences = [assemble(text) for text in texts[start : start + SCORED_AT_ONCE]]
        at = slice(start, start + len(sequences))
        model[at] = -np.asarray(log_likelihood(sequences), np.float64)
        # What the sequence predicts, not the text encoded again: both models are scored on the very same ids.
        targets = [sequence.targets[sequence.loss_weight > 0] for sequence in sequences]
        baseline[at] = [-frequencies[ids].sum() for ids in targets]
        predicted[at] = [len(ids) for ids in targets]
        if progress and bar is not None:
            progress.advance(bar, len(sequences))
    # Bytes make models with different tokenizers comparable; perplexity per token does not.
    size = np.array([len(text.encode()) for text in texts], np.float64)
    return {
        "perplexity": _perplexity(ratio(model, predicted)),
        "unigram_perplexity": _perplexity(ratio(baseline, predicted)),
        "bits_per_byte": _bits(ratio(model, size)),
        "unigram_bits_per_byte": _bits(ratio(baseline, size)),
        "windows": len(texts),
        "window_tokens": tokens,
        "tokens": int(predicted.sum()),
        "bytes": int(size.sum()),
    }


def _perplexity(nats: Estimate) -> dict[str, float]:
    """Nats per token → the number of equally likely tokens with that entropy."""
    # The interval's ends as well: the exponential keeps their order.
    return {name: math.exp(value) for name, value in dataclasses.asdict(nats).items()}


def _bits(nats: Estimate) -> dict[str, float]:
    """Nats per byte → bits per byte."""
    return {name: value / math.log(2) for name, value in dataclasses.asdict(nats).items()}
