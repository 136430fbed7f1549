"""Language: how well the model predicts text that training held out, against knowing only how frequent each token is."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.progress import Progress

from generalist.eval.results.scores import Estimate, ratio
from generalist.tokenizers.sequence import Sequence as TokenSequence

SEED = 0
SCORED_AT_ONCE = 64
BYTES_PER_TOKEN = 4  # a first guess at how much text fills a window; windows that come out too long are cut again

LogLikelihood = Callable[[list[TokenSequence]], np.ndarray]
"""Sequences → log-likelihood of each one's predicted tokens in nats, (n,)."""


def unigram(training: Sequence[str], encode: Callable[[str], np.ndarray], size: int) -> np.ndarray:
    """Log-probability in nats of every token id, float64 (size,), from its count in the training texts.

    One is added to each count, so that a token which training never had costs much but not everything.
    """
    counts = np.ones((size,), np.float64)
    for text in training:
        counts += np.bincount(encode(text), minlength=size)
    return np.log(counts / counts.sum())


def windows(texts: Sequence[str], encode: Callable[[str], np.ndarray], tokens: int, count: int) -> list[str]:
    """Pieces of the texts of at most `tokens` tokens, cut between words; `count` of them, drawn from all.

    Raises:
        ValueError: the texts are empty.
    """
    pieces = [piece for text in texts for piece in _cut(text, encode, tokens)]
    if not pieces:
        raise ValueError("there is no held-out text to score: raise data.prose.megabytes")
    chosen = np.random.default_rng(SEED).permutation(len(pieces))[:count]
    return [pieces[index] for index in sorted(chosen)]


def _cut(text: str, encode: Callable[[str], np.ndarray], tokens: int) -> Iterator[str]:
    """The text in pieces, each as long as a guess allows, and shortened in proportion until it fits."""
    while text := text.lstrip():
        end = tokens * BYTES_PER_TOKEN
        while end > 1 and (size := len(encode(text[:end]))) > tokens:
            end = min(end - 1, end * tokens // size)
        space = text.rfind(" ", end // 2, end)
        end = space if space > 0 and end < len(text) else end
        yield text[:end]
        text = text[end:]


def evaluate_language(
    assemble: Callable[[str], TokenSequence],
    log_likelihood: LogLikelihood,
    encode: Callable[[str], np.ndarray],
    vocabulary_size: int,
    training: Sequence[str],
    heldout: Sequence[str],
    *,
    tokens: int,
    count: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Perplexity a token and bits a byte on held-out text, with intervals, beside those of a unigram model.

    Both models predict the same tokens: every text token of every window, the first included.

    Args:
        assemble: text → sequence with the loss on its tokens (`Assembler.text`, without the end marker).
        log_likelihood: scores sequences.
        encode: text → ids, int (n,).
        vocabulary_size: ids are below it.
        training: the texts that training read.
        heldout: the texts to score.
        tokens: of a window at most.
        count: windows at most.
        progress: gets one bar.
    """
    frequencies = unigram(training, encode, vocabulary_size)
    texts = windows(heldout, encode, tokens, count)
    bar = progress.add_task("reading held-out text", total=len(texts)) if progress else None
    model, baseline, predicted = np.zeros(len(texts)), np.zeros(len(texts)), np.zeros(len(texts))
    for start in range(0, len(texts), SCORED_AT_ONCE):
        sequences = [assemble(text) for text in texts[start : start + SCORED_AT_ONCE]]
        at = slice(start, start + len(sequences))
        model[at] = -np.asarray(log_likelihood(sequences), np.float64)
        targets = [sequence.targets[sequence.loss_weight > 0] for sequence in sequences]
        baseline[at] = [-frequencies[ids].sum() for ids in targets]
        predicted[at] = [len(ids) for ids in targets]
        if progress and bar is not None:
            progress.advance(bar, len(sequences))
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
    """Nats a token → how many equally likely tokens that is."""
    return {name: math.exp(value) for name, value in dataclasses.asdict(nats).items()}


def _bits(nats: Estimate) -> dict[str, float]:
    """Nats a byte → bits a byte."""
    return {name: value / math.log(2) for name, value in dataclasses.asdict(nats).items()}
