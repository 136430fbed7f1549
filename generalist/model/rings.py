"""Caches of layers with a window: a ring of as many slots as the layer looks back.

    window 4    position 8   position 5   position 6   position 7      position 9 takes the slot of position 5

Every row turns its own ring by its own positions: padding takes no slot. New positions, more of them than slots if need be,
attend to the ring as it was and to one another, and are then entered; a single one is entered first, in place.

Dimension key: B rows, L new positions, S slots of the ring, K keys, R = B · key-value heads, H head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from generalist.model.config import ModelConfig
from generalist.model.constrain import constrain
from generalist.model.masks import Blocks, attention_mask

STEP = 16  # rings have a multiple of this many slots


class Ring(NamedTuple):
    """What new positions see of a ring and of one another, and where they are entered."""

    mask: Bool[Array, "B L K"]
    """Of one new position over the ring with it, K = S; of several over the ring as it was and, behind it, themselves,
    K = S + L."""
    taken: Int[Array, "B S"]
    """Which of the new positions each slot takes; -1: it keeps what it holds."""


def cache_slots(config: ModelConfig, slots: int) -> list[int]:
    """The slots of every layer's cache, for rows of `slots` positions."""
    ring = min(slots, -(-config.window // STEP) * STEP)
    return [ring if kind.startswith("window") else slots for kind in config.kind_of_layers]


def ring_of(
    segment: Int[Array, "B L"],
    position: Int[Array, "B L"],
    before: Int[Array, "B"],
    slots: int,
    *,
    reach: int,
    block: Int[Array, "B L"] | None = None,
    whole_blocks: bool = False,
) -> Ring:
    """What new positions of rows of one segment see.

    Args:
        segment: of the new positions; those of a row that are no padding (segment 0) are next to each other.
        position: of the new positions, counted from `before` on.
        before: number of positions that each row has already.
        slots: S.
        reach: positions that each looks back, itself included; at most S.
        block: of the new positions (`Batch.block`); None: there are none.
        whole_blocks: as in `Blocks`.
    """
    present = (segment > 0).astype(jnp.int32)
    held, newest = _held(before, slots), _held(before + present.sum(axis=1), slots)
    taken = newest - before[:, None] + present.argmax(axis=1, keepdims=True)
    taken = jnp.where(newest >= before[:, None], taken, -1)
    if segment.shape[1] == 1:
        return Ring(attention_mask(present, position, (newest >= 0).astype(jnp.int32), newest, reach=reach), taken)
    keys = jnp.concatenate([(held >= 0).astype(jnp.int32), present], axis=1)
    blocks = None
    if block is not None:
        # A block is read as a whole: none of it is in the ring.
        blocks = Blocks(block, jnp.concatenate([jnp.zeros_like(held), block], axis=1), whole_blocks)
    at = jnp.concatenate([held, position], axis=1)
    return Ring(attention_mask(present, position, keys, at, reach=reach, blocks=blocks), taken)


def _held(count: Int[Array, "B"], slots: int) -> Int[Array, "B S"]:
    """The position that each slot holds after `count` positions; below 0: none."""
    last = count[:, None] - 1
    return last - (last - jnp.arange(slots)[None]) % slots


def turned(
    whole: Float[Array, "R S H"], new: Float[Array, "R L H"], taken: Int[Array, "B S"]
) -> tuple[Float[Array, "R K H"], Float[Array, "R S H"]]:
    """The keys, or the values, that new positions attend to (see `Ring.mask`), and the ring with the new ones in it, in its
    dtype."""
    new = constrain(new.astype(whole.dtype), "cells", None, None)
    heads = len(whole) // len(taken)
    if new.shape[1] > 1:
        index = jnp.repeat(taken, heads, axis=0)[:, :, None]  # heads of a row are next to each other
        chosen = jnp.take_along_axis(new, jnp.maximum(index, 0), axis=1)
        kept = constrain(jnp.where(index < 0, whole, chosen), "cells", None, None)
        return jnp.concatenate([whole, new], axis=1), kept
    slot, given = taken.argmax(axis=1), taken.max(axis=1) >= 0

    def put(row: Float[Array, "... S H"], one: Float[Array, "... 1 H"], at: Int[Array, ""], given: Bool[Array, ""]):
        before = jax.lax.dynamic_slice_in_dim(row, at, 1, axis=-2)
        return jax.lax.dynamic_update_slice_in_dim(row, jnp.where(given, one, before), at, axis=-2)

    # Of a single row all heads take the same slot, which needs no loop over them.
    if len(taken) == 1:
        kept = put(whole, new, slot[0], given[0])
    else:
        kept = jax.vmap(put)(whole, new, jnp.repeat(slot, heads), jnp.repeat(given, heads))
    kept = constrain(kept, "cells", None, None)
    return kept, kept
