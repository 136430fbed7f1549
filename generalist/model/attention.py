"""Self-attention within segments: masks, rotary positions, grouped queries and a key-value cache.

Dimension key: B batch, L query positions, S key positions, N query heads, M key-value heads, H head size, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from generalist.model.attend import Packed, attend, attend_packed, attend_slid
from generalist.model.config import ModelConfig
from generalist.model.layers import Linear, RMSNorm
from generalist.system.platforms import target_platform

FAR = 1024  # positions; a power of two, so that FAR · frequency is exact in float32


def attention_mask(
    query_segment: Int[Array, "B L"],
    query_position: Int[Array, "B L"],
    key_segment: Int[Array, "B S"],
    key_position: Int[Array, "B S"],
) -> Bool[Array, "B L S"]:
    """Causal within a segment; segment 0 is padding, which no position sees.

    Two packed examples (segments 1 and 2) and one padding position; rows are queries, columns are keys:

        segment   1 1 1 2 2 0
                1 x . . . . .
                1 x x . . . .
                1 x x x . . .
                2 . . . x . .
                2 . . . x x .
                0 . . . . . .
    """
    # Broadcast to (B, L, S): each query against each key.
    same = query_segment[:, :, None] == key_segment[:, None, :]
    causal = query_position[:, :, None] >= key_position[:, None, :]
    return same & causal & (key_segment[:, None, :] > 0)


def local_mask(
    mask: Bool[Array, "B L S"], query_position: Int[Array, "B L"], key_position: Int[Array, "B S"], window: int
) -> Bool[Array, "B L S"]:
    """The mask restricted to the last `window` positions, the query's own included."""
    return mask & (query_position[:, :, None] - key_position[:, None, :] < window)


class Angles(NamedTuple):
    """Cosine and sine of the rotary angles, float32; the same for all heads and for all layers of a kind."""

    cos: Float[Array, "B L 1 H/2"]
    sin: Float[Array, "B L 1 H/2"]


def angles(position: Int[Array, "B L"], config: ModelConfig, *, local: bool = False) -> Angles | None:
    """Rotary angles (Su et al., 2021) for layers without a window, or with one (`local`); None if positions are learned."""
    if config.learned_positions:
        return None
    rope, half = config.rope, config.head_size // 2
    base = rope.local_base if local else rope.base
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)  # (H / 2,), radians per position
    if rope.scaling == "linear" and not local:
        frequency = frequency / rope.factor
    if rope.scaling == "llama3" and not local:
        # By the turns within the original context: many, the frequency stays; few, it is divided by `factor`; between, blended.
        turns = rope.length * frequency / (2 * jnp.pi)
        kept = jnp.clip((turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0.0, 1.0)
        frequency = frequency * (kept + (1 - kept) / rope.factor)
    # position · frequency in float32 is off by 0.1 radian at a million positions. So whole turns of FAR positions are
    # removed first, and only the remainder is multiplied out.
    far, near = (part[:, :, None].astype(jnp.float32) for part in jnp.divmod(position, FAR))  # (B, L, 1) each
    step = jnp.mod(FAR * frequency, 2 * jnp.pi)
    angle = (near * frequency[None, None, :] + far * step[None, None, :])[:, :, None, :]  # (B, L, 1, H / 2)
    return Angles(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B L N H"], angles: Angles) -> Float[Array, "B L N H"]:
    """Rotary position embedding in float32; dimension i is paired with i + H/2, as in GPT-NeoX."""
    # Models that pair neighbouring dimensions instead are permuted when their weights are read.
    if target_platform() == "tpu":
        return rotate_by_product(x, angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = angles
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@jax.custom_vjp
def rotate_by_product(x: Float[Array, "B L N H"], angles: Angles) -> Float[Array, "B L N H"]:
    """`rotate` for a TPU, which would write halves of heads to memory, with padding: x · cos + turned x · sin. The turned x, its
    second half negated before the first, is a product with a matrix of 0, 1 and -1."""
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


class Cache(NamedTuple):
    """Keys and values of one layer in S slots. Keys are rotated when they are written; see `Slide`."""

    key: Float[Array, "B S M H"]
    value: Float[Array, "B S M H"]

    @classmethod
    def empty(cls, batch: int, slots: int, kv_heads: int, head_size: int, dtype: DTypeLike) -> "Cache":
        """A cache of zeros, with `batch` rows of `slots` positions."""
        shape = (batch, slots, kv_heads, head_size)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class Slide(NamedTuple):
    """Positions that have moved back since their keys were rotated, as in a sliding window. A key stays as it was written; the
    queries that meet it are rotated further by the same distance."""

    by: Int[Array, "B"]
    """Positions moved, per row."""
    slots: Bool[Array, "S"]
    """The slots that have moved. New positions are written into such slots."""


class Masked(NamedTuple):
    """Visibility of the keys, given by a mask."""

    mask: Bool[Array, "B L S"]
    slid: Bool[Array, "S"] | None = None
    """Slots of a cache that have slid; None: no slot has."""


class Attention(nnx.Module):
    """Multi-head self-attention with rotary positions and normalised queries and keys (more stable, as in Chameleon)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.heads, self.kv_heads, self.head_size = config.heads, config.kv_heads, config.head_size
        self.scale, self.softcap = config.query_scale or config.head_size**-0.5, config.attention_softcap
        self.window = config.window
        inner, kv_inner = self.heads * self.head_size, self.kv_heads * self.head_size
        # One 2-D kernel for all three: a third of the calls, and no slow multi-dimensional layout on a CPU.
        self.qkv = Linear(config.width, inner + 2 * kv_inner, rngs=rngs, bias=config.qkv_bias)
        # Residual branches start smaller with depth (GPT-2), so that the stream's variance does not grow with the layers.
        self.out = Linear(inner, config.width, rngs=rngs, scale=(2 * config.layers) ** -0.5, bias=config.bias)

        def head_norm() -> RMSNorm | None:
            return RMSNorm(self.head_size, rngs=rngs, epsilon=config.norm_epsilon) if config.qk_norm else None

        self.query_norm, self.key_norm = head_norm(), head_norm()

    def __call__(
        self,
        x: Float[Array, "B L D"],
        seen: Packed | Masked,
        angles: Angles | None,
        written: Angles | None,
        cache: Cache | None = None,
        start: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        """Attends within whole packed rows; or, with a cache, writes the keys and values of new positions at slot `start` and
        attends to the whole cache where a mask shows it.

        Args:
            seen: which keys each position sees.
            angles: rotary angles of the positions.
            written: rotary angles at which the keys are written, which include the distance that slots have slid; without a
                cache the same as `angles`.
            cache: keys and values so far; None for whole rows.
            start: slot of the first new position.
        """
        batch, length, _ = x.shape
        inner, kv_inner = self.heads * self.head_size, self.kv_heads * self.head_size
        query, key, value = jnp.split(self.qkv(x), [inner, inner + kv_inner], axis=-1)
        query = query.reshape(batch, length, self.heads, self.head_size)
        key = key.reshape(batch, length, self.kv_heads, self.head_size)
        value = value.reshape(batch, length, self.kv_heads, self.head_size)
        # Before the rotation, as in Qwen 3 and Gemma 3: the gain differs between the two dimensions that a rotation mixes.
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        slid = query  # with learned positions nothing is rotated, and both queries are the same
        if angles is not None and written is not None:
            query, slid, key = rotate(query, angles), rotate(query, written), rotate(key, written)
        if cache is not None and start is not None:
            # Written before attending: new positions see themselves and one another through the cache.
            cache = Cache(
                jax.lax.dynamic_update_slice_in_dim(cache.key, key, start, axis=1),
                jax.lax.dynamic_update_slice_in_dim(cache.value, value, start, axis=1),
            )
            key, value = cache
        if isinstance(seen, Packed):
            mixed = attend_packed(query, key, value, seen, window=self.window, scale=self.scale, softcap=self.softcap)
        elif seen.slid is None:
            mixed = attend(query, key, value, seen.mask, scale=self.scale, softcap=self.softcap)
        else:
            queries = (slid, query)
            mixed = attend_slid(queries, key, value, seen.mask, seen.slid, scale=self.scale, softcap=self.softcap)
        return self.out(mixed.reshape(batch, length, inner)), cache
