"""The compiled steps of chat lanes: reading a piece of one lane's prompt, and writing the next id of all lanes.

A lane's slots are its positions: what slot `i` holds is at position `i`. What lies behind the lane's last position is hidden by
its segment and overwritten by what comes next, so a lane that stands still may be fed anything.

Dimension key: B lanes, L positions of a piece, S slots, I images of a lane, T cells and F channels of an image's
features, V vocabulary, K likeliest ids.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from generalist.data.batch import ArrayLike, Batch
from generalist.inference.sampling import confine, draw
from generalist.inference.structure import Structure, compiled
from generalist.model.attention import Cache
from generalist.model.constrain import constrain
from generalist.model.cross_attention import VisualKeys
from generalist.model.visual import ImageCache

LIKELIEST = 20
"""Number of likeliest ids that are computed where log-probabilities are asked for: the most that a client may ask for."""


class LaneState(NamedTuple):
    """What the device holds of all lanes. Donated to every step, which returns it changed."""

    caches: list[Cache]
    held: list[VisualKeys] | None
    """Keys of the lanes' images; None if the model has no cross-attention."""
    logits: Float[Array, "B V"]
    """At the last position of each lane."""


class Choosing(NamedTuple):
    """How each lane's next id is chosen, as in `Decoding`: the settings of one lane do not depend on the others."""

    temperature: Float[ArrayLike, "B"]
    """0 takes the likeliest id."""
    top_k: Int[ArrayLike, "B"]
    top_p: Float[ArrayLike, "B"]
    draws: UInt[ArrayLike, "B 3"]
    """Seed, number of the text among those of its request, and number of the id within the text."""


class Chosen(NamedTuple):
    """The ids that were chosen, with their log-probabilities among the ids that text is made of, in nats."""

    ids: Int[Array, "B"]
    log_probability: Float[Array, "B"]
    likeliest: Int[Array, "B K"]
    """The likeliest ids, the first one first; zeros if no lane asks for them."""
    likeliest_log_probability: Float[Array, "B K"]


@compiled(static_argnames=("structure",), donate_argnames=("state",))
def see(
    structure: Structure, params: Any, state: LaneState, lane: Int[Array, ""], slot: Int[Array, ""], image: Batch
) -> LaneState:
    """Holds an image in a lane.

    Args:
        image: a row with one image, as features of the frozen encoder.
    """
    assert state.held is not None
    keys = structure.model(params).visual.keys(image, state.held[0].key.dtype)
    held = jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice(whole, part, (lane, 0, slot, 0, 0)), state.held, keys
    )
    return _in_place(state._replace(held=held))


@compiled(static_argnames=("structure",), donate_argnames=("state",))
def read(
    structure: Structure,
    params: Any,
    state: LaneState,
    lane: Int[Array, ""],
    start: Int[Array, ""],
    piece: Batch,
    size: Int[Array, ""],
    images: Int[Array, ""],
    shown: list[Float[Array, "1 T F"]],
) -> LaneState:
    """Appends a piece of a prompt to a lane.

    Args:
        start: number of positions that the lane has.
        piece: (1, L) positions, padded on the right.
        size: how many of them are no padding.
        images: number of images that the lane holds.
        shown: features of the images that stand among the piece's positions, in their order.
    """
    model = structure.model(params)
    if shown:
        piece = dataclasses.replace(piece, images=jnp.concatenate(shown))
    heads = state.caches[0].key.shape[0] // len(state.logits)
    slots = jnp.arange(state.caches[0].key.shape[1])[None]
    own = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, lane * heads, heads), state.caches)
    seen = None
    if state.held is not None:
        keys = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, lane, 1), state.held)
        seen = ImageCache(keys, _numbers(images[None], keys[0].key.shape[2]))
    filled = (slots < start + size).astype(jnp.int32)
    hidden, own = model.hidden_cached(piece, own, filled, slots * filled, start, seen, dtype=structure.dtype)
    last = jax.lax.dynamic_slice_in_dim(hidden, size - 1, 1, axis=1)
    logits = jax.lax.dynamic_update_slice(state.logits, model.logits(last)[:, 0].astype(jnp.float32), (lane, 0))
    caches = jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, lane * heads, axis=0), state.caches, own
    )
    return _in_place(LaneState(caches, state.held, logits))


@compiled(static_argnames=("structure",), donate_argnames=("state",))
def write(
    structure: Structure,
    params: Any,
    state: LaneState,
    start: Int[Array, "B"],
    active: Bool[Array, "B"],
    position: Batch,
    images: Int[Array, "B"],
    allowed: Bool[Array, "V"],
    choosing: Choosing,
    wanted: Bool[Array, ""],
) -> tuple[Chosen, LaneState]:
    """Chooses the next id of every lane and appends it, in the lanes that are active.

    Args:
        start: number of positions that each lane has.
        position: a position of text in each lane, (B, 1); its token is replaced, and its `image` is the one that it sees.
        images: number of images that each lane holds.
        wanted: whether the likeliest ids are needed.
    """
    model = structure.model(params)
    chosen = _choose(state.logits, allowed, choosing, wanted)
    new = dataclasses.replace(
        position,
        tokens=chosen.ids[:, None],
        position=start[:, None],
        segment=active.astype(jnp.int32)[:, None],
    )
    slots = jnp.arange(state.caches[0].key.shape[1])[None]
    filled = (slots < (start + active)[:, None]).astype(jnp.int32)
    seen = None
    if state.held is not None:
        seen = ImageCache(state.held, _numbers(images, state.held[0].key.shape[2]))
    hidden, caches = model.hidden_cached(new, state.caches, filled, slots * filled, start, seen, dtype=structure.dtype)
    logits = jnp.where(active[:, None], model.logits(hidden)[:, 0].astype(jnp.float32), state.logits)
    return chosen, _in_place(LaneState(caches, state.held, logits))


@compiled(static_argnames=("structure",), donate_argnames=("state",))
def copy_lane(structure: Structure, state: LaneState, source: Int[Array, ""], target: Int[Array, ""]) -> LaneState:
    """The lanes with one of them copied over another."""
    del structure  # it names the mesh
    lanes = len(state.logits)

    def copied(leaf: Array) -> Array:
        size = len(leaf) // lanes  # a cache has several rows per lane, one for each head
        part = jax.lax.dynamic_slice_in_dim(leaf, source * size, size)
        return jax.lax.dynamic_update_slice_in_dim(leaf, part, target * size, axis=0)

    return _in_place(jax.tree.map(copied, state))


def _in_place(state: LaneState) -> LaneState:
    """The lanes as `empty_state` places them on a mesh: every step gives them back where the next one expects them."""
    whole = [None] * 5
    held = jax.tree.map(lambda leaf: constrain(leaf, *whole), state.held)
    caches = jax.tree.map(lambda leaf: constrain(leaf, "cells", None, None), state.caches)
    return LaneState(caches, held, constrain(state.logits, None, None))


def _numbers(count: Int[Array, "B"], slots: int) -> Int[Array, "B I"]:
    """The numbers of the held images; 0 is an empty slot, which no position sees."""
    number = jnp.arange(1, slots + 1)[None]
    return jnp.where(number <= count[:, None], number, 0)


def _choose(
    logits: Float[Array, "B V"], allowed: Bool[Array, "V"], choosing: Choosing, wanted: Bool[Array, ""]
) -> Chosen:
    confined = confine(logits[:, None], allowed[None, None])[:, 0]
    best = jnp.argmax(confined, axis=-1).astype(jnp.int32)
    drawing = choosing.temperature > 0
    # Each lane as a batch of its own, since `draw` has one temperature for all of its rows.
    own = jax.vmap(
        lambda row, temperature, k, p, numbers: draw(row[None], allowed, temperature, k, p, numbers[None])[0]
    )
    drawn = jax.lax.cond(
        drawing.any(),
        lambda: own(
            logits, jnp.where(drawing, choosing.temperature, 1.0), choosing.top_k, choosing.top_p, choosing.draws
        ).astype(jnp.int32),
        lambda: best,
    )
    ids = jnp.where(drawing, drawn, best)
    log_probability = jax.nn.log_softmax(confined, axis=-1)
    count = min(LIKELIEST, logits.shape[1])
    values, likeliest = jax.lax.cond(
        wanted,
        lambda: tuple(jax.lax.top_k(log_probability, count)),
        lambda: (jnp.zeros((len(logits), count)), jnp.zeros((len(logits), count), jnp.int32)),
    )
    own_value = jnp.take_along_axis(log_probability, ids[:, None], axis=1)[:, 0]
    return Chosen(ids, own_value, likeliest, values)
