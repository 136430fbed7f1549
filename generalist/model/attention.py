"""Self-attention within segments: positions, grouped queries and a key-value cache.

Dimension key: B batch, L query positions, Q some of them, S key positions, N heads, M key-value heads, H head size, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from generalist.data.batch import ArrayLike
from generalist.model.attend import Packed, attend, attend_cached, attend_packed
from generalist.model.blocked_attention import MASKED
from generalist.model.config import ModelConfig
from generalist.model.constrain import constrain
from generalist.model.layers import NORMS, LayerNorm, Linear, RMSNorm, stored_product
from generalist.model.mesh_layout import Layout, mesh_layout
from generalist.model.positions import Angles, Placement
from generalist.model.rings import Ring, turned
from generalist.model.row_attention import Heads, Places, by_groups, row_attention, row_attention_takes
from generalist.system.platforms import target_platform


class Cache(NamedTuple):
    """Keys and values of one layer in S slots. Keys are placed (`Placement`) when they are written; see `Slide`. In 16 bits a
    cache takes half the memory, and attention to it is computed in 16 bits too, with sums in float32."""

    # One matrix per row and head, which products take as it is. Rows and heads share an axis (R = B · M): with an axis of one row
    # XLA would write new keys twice in a loop, once for the product and once to be kept, and copy the whole cache for that.
    key: Float[Array, "R S H"]
    value: Float[Array, "R S H"]

    @classmethod
    def empty(cls, batch: int, slots: int, kv_heads: int, head_size: int, dtype: DTypeLike) -> "Cache":
        """A cache of zeros, with `batch` rows of `slots` positions."""
        shape = (batch * kv_heads, slots, head_size)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def written_at(
    whole: Float[Array, "R S H"], new: Float[Array, "R L H"], start: Int[Array, ""] | Int[Array, "B"]
) -> Float[Array, "R S H"]:
    """The slots of all rows and heads, in the dtype of `whole`, with the new ones written from `start` on, in all rows or in
    each."""
    new = constrain(new.astype(whole.dtype), "cells", None, None)
    if start.ndim == 0:
        return constrain(jax.lax.dynamic_update_slice_in_dim(whole, new, start, axis=1), "cells", None, None)
    starts = jnp.repeat(start, len(whole) // len(start))  # heads of a row are next to each other
    written = jax.vmap(lambda row, part, at: jax.lax.dynamic_update_slice_in_dim(row, part, at, axis=0))
    return constrain(written(whole, new, starts), "cells", None, None)


class Slide(NamedTuple):
    """Positions that have moved back since their keys were rotated, as in a sliding window. A key stays as it was written; the
    queries that meet it are rotated further by the same distance."""

    by: Int[ArrayLike, "B"]
    """Positions moved, per row."""
    slots: Bool[ArrayLike, "S"] | None
    """The slots that have moved; None: all. New positions are written into such slots."""


class Masked(NamedTuple):
    """Visibility of the keys, given by a mask."""

    mask: Bool[Array, "B L S"]
    slid: Bool[Array, "S"] | None = None
    """Slots of a cache that have slid; None: no slot has."""


class Attention(nnx.Module):
    """Multi-head self-attention, if set with normalised queries and keys (more stable, as in Chameleon)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.heads, self.kv_heads, self.head_size = config.heads, config.kv_heads, config.head_size
        self.scale, self.softcap = config.query_scale or config.head_size**-0.5, config.attention_softcap
        self.window, self.bound = config.window, config.qkv_bound
        self.whole_blocks = config.blocks == "whole"
        self.wider = config.key_size - config.head_size  # dimensions that a placement adds
        inner, kv_inner = self.heads * self.head_size, self.kv_heads * self.head_size
        # One 2-D kernel for all three: a third of the calls, and no slow multi-dimensional layout on a CPU.
        self.qkv = Linear(config.width, inner + 2 * kv_inner, rngs=rngs, bias=config.qkv_bias)
        out_bias = config.bias if config.out_bias is None else config.out_bias
        # Residual branches start smaller with depth (GPT-2), so that the stream's variance does not grow with the layers.
        self.out = Linear(inner, config.width, rngs=rngs, scale=(2 * config.layers) ** -0.5, bias=out_bias)
        self.joint = config.qk_norm_joint

        def norm(size: int) -> RMSNorm | LayerNorm | None:
            size = size if self.joint else self.head_size
            return NORMS[config.qk_norm_kind](size, rngs=rngs, epsilon=config.norm_epsilon) if config.qk_norm else None

        self.query_norm, self.key_norm = norm(inner), norm(kv_inner)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        seen: Packed | Masked | Ring,
        placed: Placement | None,
        written: Placement | None,
        cache: Cache | None = None,
        start: Int[Array, ""] | Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        """Attends within whole packed rows; or, with a cache, writes the keys and values of new positions at slot `start`, or
        where a ring has its oldest, and attends to the whole cache where a mask shows it.

        Args:
            seen: which keys each position sees.
            placed: the positions; None: attention does not know them.
            written: the positions at which the keys are written, which include the distance that slots have slid; without a
                cache the same as `placed`.
            cache: keys and values so far; None for whole rows.
            start: slot of the first new position, the same in all rows or one per row.
        """
        batch, length, _ = x.shape
        if isinstance(seen, Packed) and isinstance(placed, Angles) and cache is None:
            layout = mesh_layout(batch, length, self.kv_heads)
            if self._takes_rows(seen, placed, length, layout):
                return self.out(self._attended_rows(x, seen, placed, layout)), None
        query, slid, key, value = self._projected(x, placed, written)
        if cache is not None and start is not None:
            # Written before attending: new positions see themselves and one another through the cache.
            key, value = (new.swapaxes(1, 2).reshape(-1, length, new.shape[-1]) for new in (key, value))
            if isinstance(seen, Ring):
                (key, keys), (value, values) = (
                    turned(*both, seen.taken) for both in zip(cache, (key, value), strict=True)
                )
                cache = Cache(keys, values)
            else:
                cache = Cache(written_at(cache.key, key, start), written_at(cache.value, value, start))
        if isinstance(seen, Packed):
            mixed = attend_packed(
                query,
                key,
                value,
                seen,
                window=self.window,
                scale=self.scale,
                softcap=self.softcap,
                whole_blocks=self.whole_blocks,
            )
        elif isinstance(seen, Ring):
            mixed = attend_cached(query, key, value, seen.mask, None, scale=self.scale, softcap=self.softcap)
        elif cache is None:  # whole rows that a mask shows, as of a tower
            mixed = attend(query, key, value, seen.mask, scale=self.scale, softcap=self.softcap)
        else:
            slide = None if seen.slid is None else (slid, seen.slid)
            mixed = attend_cached(query, *cache, seen.mask, slide, scale=self.scale, softcap=self.softcap)
        return self.out(mixed[..., : self.head_size].reshape(batch, length, self.heads * self.head_size)), cache

    def _takes_rows(self, seen: Packed, placed: Angles, length: int, layout: Layout) -> bool:
        """Whether the kernel of whole rows (`generalist.model.row_attention`) computes this attention."""
        if target_platform() != "tpu" or not isinstance(self.qkv.kernel[...], jax.Array):
            return False
        # What it does not know; the projection beside it could, but no preset that is trained on a TPU asks for it.
        more = (self.qkv.bias, self.qkv.adapter, self.query_norm, seen.block)
        plain = not any(one is not None for one in more) and not (self.window or self.softcap or self.bound)
        whole = 2 * placed.cos.shape[-1] == self.head_size and self.kv_heads == self.heads
        return plain and whole and row_attention_takes(length, self.heads, self.head_size, layout)

    def _attended_rows(
        self, x: Float[Array, "B L D"], seen: Packed, placed: Angles, layout: Layout
    ) -> Float[Array, "B L _"]:
        """The values that whole packed rows mix, by the kernel that takes queries, keys and values as they are projected."""
        heads = Heads(self.head_size, self.scale)
        projected = stored_product(x, by_groups(self.qkv.kernel[...], heads))
        places = Places(seen.segment, placed.cos[:, :, 0], placed.sin[:, :, 0])
        # The name that the remat policy "products" keeps, as for other kernels.
        return checkpoint_name(row_attention(projected, places, heads, layout), "attention")

    def weights(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L L"],
        placed: Placement | None,
        places: Int[Array, "Q"],
    ) -> Float[Array, "B N Q L"]:
        """The attention weights of some positions of whole rows, by head, in float32: what `__call__` mixes the values with. They
        are 0 where the mask shows nothing.

        Args:
            places: of the positions in their rows.
        """
        query, _, key, _ = self._projected(x, placed, placed)
        key = jnp.repeat(key, self.heads // self.kv_heads, axis=2)  # queries of a group share a key
        scores = jnp.einsum("bqnh,bsnh->bnqs", query[:, places], key, preferred_element_type=jnp.float32) * self.scale
        scores = self.softcap * jnp.tanh(scores / self.softcap) if self.softcap else scores
        return jax.nn.softmax(jnp.where(mask[:, None, places], scores, MASKED), axis=-1)

    def _projected(
        self, x: Float[Array, "B L D"], placed: Placement | None, written: Placement | None
    ) -> tuple[Float[Array, "B L N H"], Float[Array, "B L N H"], Float[Array, "B L M H"], Float[Array, "B L M H"]]:
        """Queries, those that meet slots that have slid, keys and values; arguments as in `__call__`."""
        batch, length, _ = x.shape
        inner, kv_inner = self.heads * self.head_size, self.kv_heads * self.head_size
        projected = self.qkv(x)
        projected = jnp.clip(projected, -self.bound, self.bound) if self.bound else projected
        query, key, value = jnp.split(projected, [inner, inner + kv_inner], axis=-1)
        if self.joint:
            query, key = self._normed(query, key)
        query = query.reshape(batch, length, self.heads, self.head_size)
        key = key.reshape(batch, length, self.kv_heads, self.head_size)
        value = value.reshape(batch, length, self.kv_heads, self.head_size)
        # Before the rotation, as in Qwen 3 and Gemma 3: the gain differs between the two dimensions that a rotation mixes.
        if not self.joint:
            query, key = self._normed(query, key)
        slid = query  # with learned positions nothing is placed, and both queries are the same
        if placed is not None and written is not None:
            query, slid, key = placed.query(query), written.query(query), written.key(key)
        if self.wider:  # most kernels take values of the size of the keys
            value = jnp.pad(value, ((0, 0), (0, 0), (0, 0), (0, self.wider)))
        return query, slid, key, value

    def _normed(self, query: Float[Array, "..."], key: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
        if self.query_norm is None or self.key_norm is None:
            return query, key
        return self.query_norm(query), self.key_norm(key)
