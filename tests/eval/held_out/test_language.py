"""Perplexity, with models whose perplexity is known."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generalist.eval.held_out.language import evaluate_language, unigram, windows
from generalist.tokenizers.sequence import Sequence

SIZE = 256
TRAINING = ["a rose is a rose is a rose", "and a rose by any other name"]
HELD_OUT = ["a rose that smells as sweet " * 20, "is a rose"]


def encode(text: str) -> np.ndarray:
    """A token a byte."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def assemble(text: str) -> Sequence:
    """The text after a beginning marker, with the loss on all of it."""
    ids = encode(text)
    none = np.zeros((0,), np.float32)
    zeros = np.zeros((len(ids) + 1,), np.int32)
    return Sequence(
        tokens=np.append(SIZE, ids),
        targets=np.append(ids, SIZE),
        loss_weight=np.append(np.ones(len(ids)), 0).astype(np.float32),
        modality=zeros,
        local_position=zeros,
        payload_index=zeros,
        image=zeros,
        block=zeros,
        tensors=none,
        frames=none,
        patches=none,
        intervals=none,
        images=none,
    )


def evaluate(log_likelihood: Any) -> dict[str, Any]:
    return evaluate_language(assemble, log_likelihood, encode, SIZE, TRAINING, HELD_OUT, tokens=40, count=100)


def test_unigram_by_hand() -> None:
    log_probability = unigram(["aab"], lambda text: np.array([ord(letter) - ord("a") for letter in text]), size=3)
    np.testing.assert_allclose(np.exp(log_probability), [3 / 6, 2 / 6, 1 / 6])


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    result = evaluate(lambda sequences: np.array([-s.loss_weight.sum() * math.log(SIZE) for s in sequences]))
    for name in ("value", "low", "high"):
        assert result["perplexity"][name] == pytest.approx(SIZE)
        assert result["bits_per_byte"][name] == pytest.approx(8.0)
    assert result["unigram_perplexity"]["value"] < 150
    assert result["tokens"] == result["bytes"]


def test_the_baseline_predicts_the_same_tokens() -> None:
    frequencies = unigram(TRAINING, encode, SIZE)
    result = evaluate(lambda sequences: np.array([frequencies[s.targets[s.loss_weight > 0]].sum() for s in sequences]))
    assert result["perplexity"] == pytest.approx(result["unigram_perplexity"])
    assert result["bits_per_byte"] == pytest.approx(result["unigram_bits_per_byte"])


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4), st.integers(8, 30))
def test_windows_fit_and_lose_nothing_but_space(texts: list[str], tokens: int) -> None:
    if not any(text.strip() for text in texts):
        with pytest.raises(ValueError, match="no held-out text"):
            windows(texts, encode, tokens, 1000)
        return
    pieces = windows(texts, encode, tokens, 1000)
    assert all(len(encode(piece)) <= tokens for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join("".join(texts).split())


def test_fewer_windows_are_drawn_from_all_of_the_text() -> None:
    texts = [f"text number {number} stands here" for number in range(50)]
    few = windows(texts, encode, 100, 5)
    assert len(few) == 5 and set(few) <= set(texts)
    assert few == sorted(few, key=texts.index), "in the order of the texts"
    assert few == windows(texts, encode, 100, 5)
