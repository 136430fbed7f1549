"""How attention tells positions apart: by rotary angles, or by ALiBi's slopes. Both are computed once per kind of layer and act
on queries and keys one by one, so that every attention kernel takes them.

Dimension key: B batch, L positions, N query heads, M key-value heads, H head size, R half of the rotated dimensions.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from generalist.model.config import ALIBI_SIZE, LayerKind, ModelConfig
from generalist.system.platforms import target_platform

FAR = 1024  # positions; a power of two, so that FAR · frequency is exact in float32
DIGIT = 256  # base of ALiBi's positions: digits below it are exact in bfloat16


class Angles(NamedTuple):
    """Cosine and sine of the rotary angles, float32; the same for all heads and for all layers of a kind."""

    cos: Float[Array, "B L 1 R"]
    sin: Float[Array, "B L 1 R"]

    def query(self, x: Float[Array, "B L N H"]) -> Float[Array, "B L N H"]:
        """Queries at their positions."""
        return rotate(x, self)

    def key(self, x: Float[Array, "B L M H"]) -> Float[Array, "B L M H"]:
        """Keys at their positions."""
        return rotate(x, self)


class Slopes(NamedTuple):
    """ALiBi (Press et al., 2022) as further dimensions of queries and keys, whose product is slope · (key's position − query's),
    before the factor of the scores. Every number is exact in bfloat16: slopes are sums of three parts, positions two digits of
    base 256, the query's own part a sum of two."""

    of_query: Float32[Array, "B L N 8"]
    of_key: Float32[Array, "B L 1 8"]

    def query(self, x: Float[Array, "B L N H"]) -> Float[Array, "B L N _"]:
        """Queries at their positions, with 8 dimensions more."""
        return _beside(x, self.of_query)

    def key(self, x: Float[Array, "B L M H"]) -> Float[Array, "B L M _"]:
        """Keys at their positions, with 8 dimensions more."""
        return _beside(x, self.of_key)


Placement = Angles | Slopes
"""What queries and keys at given positions are changed by."""


def placement(position: Int[Array, "B L"], config: ModelConfig, kind: LayerKind = "full") -> Placement | None:
    """Rotary angles or ALiBi's slopes for layers of a kind; None if positions are learned."""
    if config.learned_positions:
        return None
    return slopes(position, config) if config.alibi else angles(position, config, kind)


def angles(position: Int[Array, "B L"], config: ModelConfig, kind: LayerKind = "full") -> Angles:
    """Rotary angles (Su et al., 2021) for layers of a kind: 0 if it is unrotated."""
    frequency, factor = jnp.asarray(_frequencies(config, kind)), config.rope.attention_factor
    if kind.startswith("window") and not config.rope.scaled_windows:
        factor = 1.0
    if kind.endswith("_unrotated"):
        frequency, factor = jnp.zeros_like(frequency), 1.0
    # position · frequency in float32 is off by 0.1 radian at a million positions. So whole turns of FAR positions are
    # removed first, and only the remainder is multiplied out.
    far, near = (part[:, :, None].astype(jnp.float32) for part in jnp.divmod(position, FAR))  # (B, L, 1) each
    step = jnp.mod(FAR * frequency, 2 * jnp.pi)
    angle = (near * frequency[None, None, :] + far * step[None, None, :])[:, :, None, :]  # (B, L, 1, R)
    return Angles(factor * jnp.cos(angle), factor * jnp.sin(angle))


def _frequencies(config: ModelConfig, kind: LayerKind) -> Float32[Array, "R"]:
    """Radians per position of each pair of dimensions."""
    rope, half = config.rope, config.rotated // 2
    near = kind.startswith("window")
    base = rope.local_base if near else rope.base
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if near and not rope.scaled_windows:
        return frequency
    # The share of each frequency that is kept; the rest is divided by `factor`.
    if rope.scaling == "llama3":
        # By the turns within the original context.
        turns = rope.length * frequency / (2 * jnp.pi)
        kept = (turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
    elif rope.scaling == "yarn":
        # By the place among the frequencies, between those that make so many turns (Peng et al., 2023, section 3.2, with the
        # bounds of its code, which counts them in dimensions of the head but clips them at the pairs).
        first, last = (
            half * math.log(rope.length / (turns * 2 * math.pi)) / math.log(base)
            for turns in (rope.high_frequency, rope.low_frequency)
        )
        first, last = (math.floor(first), math.ceil(last)) if rope.whole_steps else (first, last)
        low, high = max(first, 0), min(last, 2 * half - 1)
        kept = 1 - (jnp.arange(half, dtype=jnp.float32) - low) / max(high - low, 0.001)
    elif rope.scaling == "listed":
        return frequency / jnp.array(rope.factors, jnp.float32)
    else:
        return frequency / rope.factor if rope.scaling == "linear" else frequency
    kept = jnp.clip(kept, 0.0, 1.0)
    return frequency * (kept + (1 - kept) / rope.factor)


def rotate(x: Float[Array, "B L N H"], angles: Angles) -> Float[Array, "B L N H"]:
    """Rotary position embedding in float32 of the first 2 R dimensions; dimension i is paired with i + R, as in GPT-NeoX."""
    # Models that pair neighbouring dimensions instead are permuted when their weights are read.
    cos, sin = angles
    half = cos.shape[-1]
    if target_platform() == "tpu" and 2 * half == x.shape[-1]:
        return rotate_by_product(x, angles)
    first, second, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)


@jax.custom_vjp
def rotate_by_product(x: Float[Array, "B L N H"], angles: Angles) -> Float[Array, "B L N H"]:
    """`rotate` of all dimensions for a TPU, which would write halves of heads to memory, with padding: x · cos + turned x · sin.
    The turned x, its second half negated before the first, is a product with a matrix of 0, 1 and -1."""
    half = x.shape[-1] // 2
    turn = jnp.kron(jnp.array([[0, 1], [-1, 0]], x.dtype), jnp.eye(half, dtype=x.dtype))  # (H, H)
    # Exact: of each sum one term is not zero. Float32 numbers would be cut to bfloat16 without the highest precision.
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    turned = jnp.einsum("blnh,hk->blnk", x, turn, precision=exact, preferred_element_type=jnp.float32)
    cos, sin = (jnp.concatenate([both, both], axis=-1) for both in angles)
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)


def _rotate_forward(x, angles):
    return rotate_by_product(x, angles), angles


def _rotate_backward(angles, gradient):
    # The transpose of a rotation turns back. Angles are made from positions, which have no gradient.
    return rotate_by_product(gradient, Angles(angles.cos, -angles.sin)), None


rotate_by_product.defvjp(_rotate_forward, _rotate_backward)


def slopes(position: Int[Array, "B L"], config: ModelConfig) -> Slopes:
    """ALiBi's further dimensions. Above 65,536 positions those of keys are no longer exact in bfloat16."""
    # The scores are multiplied by their factor afterwards, which must not change the slopes.
    slope = head_slopes(config.heads, config.alibi) / (config.query_scale or config.head_size**-0.5)
    parts = jnp.asarray(np.stack(_parts(slope, 3), axis=-1))  # (N, 3)
    digits = jnp.stack(jnp.divmod(position, DIGIT)[::-1], axis=-1).astype(jnp.float32)  # (B, L, 2): low, high
    own = -jnp.asarray(slope)[None, None, :] * position[:, :, None].astype(jnp.float32)
    shape = (*position.shape, config.heads, 3)
    of_query = [
        *(jnp.broadcast_to(parts * factor, shape) for factor in (1.0, float(DIGIT))),
        jnp.stack(_parts(own, 2), -1),
    ]
    of_key = [jnp.repeat(digits, 3, axis=-1), jnp.ones((*position.shape, ALIBI_SIZE - 6))]
    return Slopes(jnp.concatenate(of_query, axis=-1), jnp.concatenate(of_key, axis=-1)[:, :, None, :])


def head_slopes(heads: int, largest: float) -> Float32[np.ndarray, "N"]:
    """The slopes of the heads: powers of 1/2, the exponents spread evenly up to `largest` over the next power of two of heads; if
    there are fewer, every second one first, as in MPT."""
    whole = 2 ** math.ceil(math.log2(heads))
    slope = np.exp2(-np.arange(1, whole + 1) * largest / whole).astype(np.float32)
    return slope if whole == heads else np.concatenate([slope[1::2], slope[::2]])[:heads]


def _parts(x, count: int) -> list:
    """Numbers that add up to x, each exact in bfloat16 (the last one nearly so)."""
    found = []
    for _ in range(count):
        found.append(x.astype(jnp.bfloat16).astype(jnp.float32))
        x = x - found[-1]
    return found


def _beside(x: Float[Array, "B L N H"], more: Float32[Array, "B L _ 8"]) -> Float[Array, "B L N _"]:
    more = jnp.broadcast_to(more, (*x.shape[:-1], more.shape[-1]))
    return jnp.concatenate([x, more.astype(x.dtype)], axis=-1)
