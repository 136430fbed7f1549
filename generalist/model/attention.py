"""Self-attention confined to a segment: masks, rotary positions, grouped queries and a key-value cache.

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

FAR = 1024  # positions; a power of two, so that so many times a frequency is exact


def attention_mask(
    query_segment: Int[Array, "B L"],
    query_position: Int[Array, "B L"],
    key_segment: Int[Array, "B S"],
    key_position: Int[Array, "B S"],
) -> Bool[Array, "B L S"]:
    """Causal inside a segment; segment 0 is padding, which nobody sees.

    Two packed examples (segments 1 and 2) and one padding position; rows are queries, columns are keys:

        segment   1 1 1 2 2 0
                1 x . . . . .
                1 x x . . . .
                1 x x x . . .
                2 . . . x . .
                2 . . . x x .
                0 . . . . . .
    """
    same = query_segment[:, :, None] == key_segment[:, None, :]
    causal = query_position[:, :, None] >= key_position[:, None, :]
    return same & causal & (key_segment[:, None, :] > 0)


def local_mask(
    mask: Bool[Array, "B L S"], query_position: Int[Array, "B L"], key_position: Int[Array, "B S"], window: int
) -> Bool[Array, "B L S"]:
    """The mask confined to the last `window` positions, the query's own included."""
    return mask & (query_position[:, :, None] - key_position[:, None, :] < window)


class Angles(NamedTuple):
    """Cosine and sine of the rotary angles, float32; the same for all heads and for all layers of a kind."""

    cos: Float[Array, "B L 1 H/2"]
    sin: Float[Array, "B L 1 H/2"]


def angles(position: Int[Array, "B L"], config: ModelConfig, *, local: bool = False) -> Angles | None:
    """Rotary angles (Su et al., 2021) of layers without a window, or with one (`local`); None where positions are learnt."""
    if config.learned_positions:
        return None
    rope, half = config.rope, config.head_size // 2
    base = rope.local_base if local else rope.base
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if rope.scaling == "linear" and not local:
        frequency = frequency / rope.factor
    if rope.scaling == "llama3" and not local:
        # How many turns the first context holds decides: many, the frequency stays; few, it is divided; between, blended.
        turns = rope.length * frequency / (2 * jnp.pi)
        kept = jnp.clip((turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0.0, 1.0)
        frequency = frequency * (kept + (1 - kept) / rope.factor)
    # Whole turns are left out of all but the last positions: a product of a million would be off by a tenth of a radian.
    far, near = (part[:, :, None].astype(jnp.float32) for part in jnp.divmod(position, FAR))
    step = jnp.mod(FAR * frequency, 2 * jnp.pi)
    angle = (near * frequency[None, None, :] + far * step[None, None, :])[:, :, None, :]
    return Angles(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B L N H"], angles: Angles) -> Float[Array, "B L N H"]:
    """Rotary position embedding, halves paired as in GPT-NeoX; in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = angles
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Cache(NamedTuple):
    """Keys and values of one layer in `S` slots. Keys are rotated as they are written; see `Slide`."""

    key: Float[Array, "B S M H"]
    value: Float[Array, "B S M H"]

    @classmethod
    def empty(cls, batch: int, slots: int, kv_heads: int, head_size: int, dtype: DTypeLike) -> "Cache":
        shape = (batch, slots, kv_heads, head_size)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class Slide(NamedTuple):
    """Positions that have moved back since their keys were rotated, as those of a sliding window do: a key stays as it was
    written, and the queries that meet it are rotated as much further."""

    by: Int[Array, "B"]
    """How far, in each row."""
    slots: Bool[Array, "S"]
    """Of which slots. New positions are written into such ones."""


class Masked(NamedTuple):
    """What positions see of the keys, by a mask."""

    mask: Bool[Array, "B L S"]
    slid: Bool[Array, "S"] | None = None
    """Slots of a cache that have slid; None: there are none."""


class Attention(nnx.Module):
    """Multi-head self-attention with rotary positions and, as Chameleon found it steadier, normalised queries and keys."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.heads, self.kv_heads, self.head_size = config.heads, config.kv_heads, config.head_size
        self.scale, self.softcap = config.query_scale or config.head_size**-0.5, config.attention_softcap
        self.window = config.window
        inner, kv_inner = self.heads * self.head_size, self.kv_heads * self.head_size
        # One 2-D kernel for all three: a third of the calls, and no slow many-dimensional layout on a CPU.
        self.qkv = Linear(config.width, inner + 2 * kv_inner, rngs=rngs, bias=config.qkv_bias)
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
        """Whole packed rows; or, with a cache, new positions: their keys and values are written at slot `start`, and the whole
        cache is attended to where a mask shows it.

        Args:
            angles: of the positions.
            written: of the positions as their keys are written, with what slots have slid by; else `angles` again.
        """
        batch, length, _ = x.shape
        inner, kv_inner = self.heads * self.head_size, self.kv_heads * self.head_size
        query, key, value = jnp.split(self.qkv(x), [inner, inner + kv_inner], axis=-1)
        query = query.reshape(batch, length, self.heads, self.head_size)
        key = key.reshape(batch, length, self.kv_heads, self.head_size)
        value = value.reshape(batch, length, self.kv_heads, self.head_size)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        slid = query
        if angles is not None and written is not None:
            query, slid, key = rotate(query, angles), rotate(query, written), rotate(key, written)
        if cache is not None and start is not None:
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
