"""Decoding from a key-value cache: the compiled steps.

Dimension key: B rows, L new positions, S cache slots, A positions that are read, V vocabulary, I image slots.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from generalist.data.batch import Batch
from generalist.inference.placing import cells_place
from generalist.inference.sampling import confine, median, noise
from generalist.inference.structure import Structure, compiled
from generalist.inference.weights import Weights
from generalist.model.attention import Cache, Slide
from generalist.model.cross_attention import VisualKeys
from generalist.model.rings import cache_slots
from generalist.model.visual import ImageCache


@compiled(static_argnames=("structure", "sample", "numbers", "parallel"), donate_argnames=("caches",))
def extend(
    structure: Structure,
    params: Any,
    caches: list[Cache],
    cache_segment: Int[Array, "B S"],
    cache_position: Int[Array, "B S"],
    start: Int[Array, ""] | Int[Array, "B"],
    batch: Batch,
    images: ImageCache | None,
    allowed: Bool[Array, "#B A V"],
    *,
    slide: Slide | None = None,
    sample: bool = False,
    temperature: Float[Array, ""] | float = 0.0,
    draws: UInt[Array, "B 2"] | None = None,
    numbers: tuple[int, int] = (0, 0),
    parallel: bool = False,
) -> tuple[Int[Array, "B A"], Float[Array, "B A V"], list[Cache]]:
    """Appends a batch at slot `start` and predicts allowed ids at its last A positions: the likeliest, the median of a continuous
    number, or sampled at a temperature. Also returns the logits there, of all ids, and the caches.

    Args:
        slide: distance that slots have moved since they were written; None: none has.
        sample: sample instead of taking the likeliest.
        draws: two numbers per row, which alone determine its samples.
        numbers: first of the ids of continuous bins, and one past the last. Where these are allowed and nothing is sampled, the
            median is taken: experts often saturate an action's bounds, so each bound is one likely bin while the probability
            in between is spread over many, and the likeliest bin would jump from one bound to the other.
        parallel: predict the A dimensions of an action, all at the last position.
    """
    model = structure.model(params)
    hidden, caches = model.hidden_cached(
        batch, caches, cache_segment, cache_position, start, images, slide, structure.dtype
    )  # (B, L, D)
    read = allowed.shape[1]
    # Only of the positions that are read: the logits of a long prompt would be its largest array.
    if parallel:
        logits = model.action_logits(hidden[:, -1])[:, :read]  # (B, A, V); other layouts may have more dimensions
    else:
        logits = model.logits(hidden[:, hidden.shape[1] - read :])
    chosen = logits
    if sample:
        assert draws is not None, "sampling needs the numbers that determine the draws"
        # The noise is scaled instead of the logits: their argmax is the same, and a temperature near 0 divides nothing by it.
        chosen = logits + temperature * noise(draws, logits.shape[1:])
    best = jnp.argmax(confine(chosen, allowed), axis=-1)
    if numbers[0] < numbers[1] and not sample:
        is_number = jnp.any(allowed[..., slice(*numbers)], axis=-1)
        best = jnp.where(is_number, median(confine(logits, allowed)), best)
    return best.astype(jnp.int32), logits, caches


@compiled(static_argnames=("structure",), donate_argnames=("held",))
def hold_images(
    structure: Structure,
    params: Any,
    batch: Batch,
    held: list[VisualKeys],
    slot: Int[Array, ""] | Int[Array, "B"],
) -> list[VisualKeys]:
    """The held keys with those of a batch's images written from `slot` on, in all rows or in each. The argument `held` is
    donated."""
    keys = structure.model(params).visual.keys(batch, held[0].key.dtype)
    if slot.ndim == 0:
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, slot, axis=2), held, keys
        )
    of_row = jax.vmap(lambda whole, part, at: jax.lax.dynamic_update_slice_in_dim(whole, part, at, axis=1))
    return jax.tree.map(lambda whole, part: of_row(whole, part, slot), held, keys)


def empty_images(generalist: Weights, rows: int, slots: int) -> list[VisualKeys]:
    """Empty keys for `slots` images per row, in every gated layer."""
    config = generalist.config.model
    heads, size = config.vision.cross_attention
    shape = (rows, heads, slots, config.vision.latents, size)
    empty = (VisualKeys(*(jnp.zeros(shape, generalist.dtype) for _ in range(2))) for _ in range(config.gated_layers))
    return list(empty)


def empty_caches(generalist: Weights, rows: int, slots: int, *, rings: bool = False) -> list[Cache]:
    """One empty cache per layer, on a mesh in parts.

    Args:
        rings: layers with a window keep no more positions than they look back (`generalist.model.rings`). For rows that only
            grow, each with positions of its own from 0 on.
    """
    config, mesh = generalist.config.model, generalist.placing.mesh
    caches = []
    for size in cache_slots(config, slots) if rings else [slots] * config.layers:
        shape = (rows * config.kv_heads, size, config.key_size)
        place = None if mesh is None else cells_place(shape, mesh)
        caches.append(Cache(*(jnp.zeros(shape, generalist.cache_dtype, device=place) for _ in range(2))))
    return caches


def in_place(generalist: Weights, caches: list[Cache]) -> list[Cache]:
    """Caches of other rows, placed as `empty_caches` places them."""
    mesh = generalist.placing.mesh
    return caches if mesh is None else jax.device_put(caches, cells_place(caches[0].key.shape, mesh))


def allow(ranges: Int[np.ndarray, "A 2"], size: int) -> Bool[np.ndarray, "A V"]:
    """Ranges of ids, the second number exclusive, as masks over V = `size` ids."""
    ids = np.arange(size)[None]
    return (ids >= ranges[:, :1]) & (ids < ranges[:, 1:])


def without_places(batch: Batch) -> Batch:
    """The batch without the table of its rows' images, which projected ones do not need: one shape, whatever rows hold."""
    return dataclasses.replace(batch, row_images=batch.row_images[:, :0])


def without_images(batch: Batch) -> Batch:
    """The batch without its images, which are already held."""
    return dataclasses.replace(batch, images=batch.images[:0], row_images=batch.row_images[:, :0])
