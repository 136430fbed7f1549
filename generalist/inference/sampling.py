"""Choosing ids from logits: the likeliest, the median of a number's bins, or a draw.

Dimension key: B rows, A positions read, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence as Sequences
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from generalist.model.blocked_attention import MASKED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Settings of text generation."""

    tokens: int = 32
    """Maximum number of ids."""
    temperature: float = 0.0
    """0 takes the likeliest id; otherwise ids are sampled at this temperature."""
    top_k: int = 0
    """Sample only from the k likeliest ids; 0: from all."""
    top_p: float = 1.0
    """Sample only from the fewest likeliest ids that together have this probability (Holtzman et al., 2020)."""
    beams: int = 1
    """Width of beam search, which ranks texts by mean log-likelihood per id (Wu et al., 2016, with α = 1); 1: no beam search."""
    stop: Sequences[str] = ()
    """Writing ends before the first occurrence of any of these texts."""
    seed: int = 0
    """Seed of sampling; together with the row's number it determines the text."""

    def __post_init__(self) -> None:
        # `not >=` also refuses NaN.
        for name, least in (("tokens", 1), ("temperature", 0), ("top_k", 0), ("beams", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beam search looks for the likeliest text: leave out either beams or temperature")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p are for drawing: set temperature above 0")
        # A single string is a sequence of characters, each of which would stop the text.
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError("stop must be a sequence of texts that are not empty")


class Drawing(NamedTuple):
    """How ids are drawn, as arrays: other settings need no other compiled program. See `Decoding`."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    seed: UInt[Array, ""]

    @classmethod
    def of(cls, decoding: Decoding) -> "Drawing | None":
        """Of settings; None: the likeliest ids are taken."""
        if not decoding.temperature:
            return None
        return cls(
            jnp.float32(decoding.temperature),
            jnp.int32(decoding.top_k),
            jnp.float32(decoding.top_p),
            jnp.uint32(decoding.seed % 2**32),  # as keys take it: a seed may be any Python int
        )


def noise(draws: UInt[Array, "B K"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Gumbel noise of `shape` per row, determined by the row's K numbers alone. The largest of logits with such noise is a sample
    from their softmax."""

    def row(numbers: UInt[Array, "K"]) -> Float[Array, "..."]:
        # From the row's own numbers, so that what it draws does not depend on the other rows of its batch.
        key = jax.random.key(numbers[0])
        for number in numbers[1:]:
            key = jax.random.fold_in(key, number)
        return jax.random.gumbel(key, shape)

    return jax.vmap(row)(draws)  # (B, *shape)


def confine(logits: Float[Array, "B A V"], allowed: Bool[Array, "#B A V"]) -> Float[Array, "B A V"]:
    """Logits with the ids that are not allowed masked: a sampled action is always valid."""
    return jnp.where(allowed, logits, MASKED)


def median(logits: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """The first id at which half of the probability is reached."""
    # argmax of booleans is the first True. Rounding may keep the sum of all below 1, but not below 0.5.
    return jnp.argmax(jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1) >= 0.5, axis=-1)


@jax.jit
def choose(
    logits: Float[Array, "B V"], allowed: Bool[Array, "V"], drawing: Drawing | None, step: Int[Array, ""]
) -> Int[Array, "B"]:
    """The likeliest of the allowed ids, or drawn ones. `step`: number of the id within the text."""
    if drawing is None:
        return jnp.argmax(jnp.where(allowed[None], logits, MASKED), axis=-1).astype(jnp.int32)
    number = jnp.arange(len(logits), dtype=jnp.uint32)
    seed, step = (jnp.full_like(number, one) for one in (drawing.seed, jnp.asarray(step, jnp.uint32)))
    draws = jnp.stack([seed, number, step], axis=1)
    return draw(logits, allowed, drawing.temperature, drawing.top_k, drawing.top_p, draws).astype(jnp.int32)


@jax.jit
def draw(
    logits: Float[Array, "B V"],
    allowed: Bool[Array, "V"],
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    draws: UInt[Array, "B 3"],
) -> Int[Array, "B"]:
    """Ids sampled at a temperature from the `top_k` likeliest (0: all), and of those from the fewest likeliest whose
    probabilities add up to `top_p`.

    Args:
        draws: three numbers per row, which alone determine what is drawn in it.
    """
    scaled = confine(logits[:, None], allowed[None, None])[:, 0] / temperature  # (B, V)
    ordered = jnp.sort(scaled, axis=-1, descending=True)  # (B, V)
    # One compiled program for all settings: both limits become a least logit, looked up in the sorted ones.
    place = jnp.arange(ordered.shape[-1])
    ordered = jnp.where((top_k == 0) | (place < top_k), ordered, -jnp.inf)
    # The probability before an id decides, so that the id that crosses `top_p` still counts.
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    # Masked ids are finite, so that a row of them gives no NaN. Here they must not count, however large `top_k` is.
    least = jnp.min(jnp.where((before < top_p) & (ordered > MASKED / 2 / temperature), ordered, jnp.inf), axis=-1)
    # Ids with exactly the least logit are all kept: there may be more than `top_k` of them.
    noisy = jnp.where(scaled >= least[:, None], scaled + noise(draws, logits.shape[1:]), -jnp.inf)
    return jnp.argmax(noisy, axis=-1)
