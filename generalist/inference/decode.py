"""Decoding from a key-value cache: the compiled steps, and rows that grow together from the left.

Dimension key: B rows, L new positions, S cache slots, A positions that are read, V vocabulary, I image slots.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from generalist.data.batch import Batch
from generalist.inference.sampling import confine, median, noise
from generalist.inference.weights import Structure, Weights
from generalist.model.attention import Cache, Slide
from generalist.model.cross_attention import VisualKeys
from generalist.model.visual import ImageCache
from generalist.tokenizers.pieces import Modality

IMAGES = 8  # features of a batch's images come in multiples of this


@partial(jax.jit, static_argnames=("structure", "sample", "numbers", "parallel"), donate_argnames=("caches",))
def extend(
    structure: Structure,
    params: Any,
    caches: list[Cache],
    cache_segment: Int[Array, "B S"],
    cache_position: Int[Array, "B S"],
    start: Int[Array, ""],
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
        batch, caches, cache_segment, cache_position, start, images, slide
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


@partial(jax.jit, static_argnames=("structure",), donate_argnames=("held",))
def hold_images(
    structure: Structure, params: Any, batch: Batch, held: list[VisualKeys], slot: Int[Array, ""]
) -> list[VisualKeys]:
    """The held keys with those of a batch's images written from `slot` on. The argument `held` is donated."""
    keys = structure.model(params).visual.keys(batch, held[0].key.dtype)
    return jax.tree.map(lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, slot, axis=1), held, keys)


def empty_images(generalist: Weights, rows: int, slots: int) -> list[VisualKeys]:
    """Empty keys for `slots` images per row, in every gated layer."""
    config = generalist.config.model
    heads, size = config.vision.cross_attention
    shape = (rows, slots, config.vision.latents, heads, size)
    layers = -(-config.layers // config.vision.every)
    return [VisualKeys(*(jnp.zeros(shape, generalist.dtype) for _ in range(2))) for _ in range(layers)]


def empty_caches(generalist: Weights, rows: int, slots: int) -> list[Cache]:
    """One empty cache per layer."""
    config = generalist.config.model
    return [Cache.empty(rows, slots, config.kv_heads, config.head_size, generalist.dtype) for _ in range(config.layers)]


def allow(ranges: Int[np.ndarray, "A 2"], size: int) -> Bool[np.ndarray, "A V"]:
    """Ranges of ids, the second number exclusive, as masks over V = `size` ids."""
    ids = np.arange(size)[None]
    return (ids >= ranges[:, :1]) & (ids < ranges[:, 1:])


def without_images(batch: Batch) -> Batch:
    """The batch without its images, which are already held."""
    return dataclasses.replace(batch, images=batch.images[:0], row_images=batch.row_images[:, :0])


@partial(jax.jit, static_argnames=("more",))
def _rows_of(tree: Any, rows: Int[Array, "R"], more: int) -> Any:
    """Some rows of every array, with `more` zero slots on their second axis."""
    return jax.tree.map(lambda leaf: jnp.pad(leaf[rows], [(0, 0), (0, more), *[(0, 0)] * (leaf.ndim - 2)]), tree)


class CachedRows:
    """The caches of a batch of rows, filled from the left; every append takes the same slots in all rows.

    Padding (segment 0) takes slots but no positions: rows of different lengths keep their own count.

    Args:
        images: number of images that each row has room for.
    """

    def __init__(self, generalist: Weights, rows: int, slots: int, *, images: int = 0):
        self._generalist = generalist
        self._caches = empty_caches(generalist, rows, slots)
        # On the host: they change with every append, and what a slot holds must be known without waiting for the device.
        self._segment = np.zeros((rows, slots), np.int32)
        self._position = np.zeros((rows, slots), np.int32)
        self._count = np.zeros((rows,), np.int32)
        self.used = 0
        self._images = empty_images(generalist, rows, images) if images else None
        self._number = np.zeros((rows, images), np.int32)
        self._images_used = 0
        self._last_image = np.zeros((rows, 1), np.int32)  # number of the newest image of each row

    def append(
        self, batch: Batch, allowed: Bool[np.ndarray, "A V"]
    ) -> tuple[Int[np.ndarray, "B A"], Float[Array, "B A V"]]:
        """Feeds positions to all rows. Returns the likeliest of the allowed ids at the last A of them, and the logits there.

        Args:
            batch: the new positions; `batch.position` is replaced by a count that continues the rows.
        """
        size, valid = batch.tokens.shape[1], batch.segment > 0  # (B, L)
        # The number of valid positions before each one, in its row.
        position = (self._count[:, None] + np.cumsum(valid, axis=1) - valid).astype(np.int32)
        slots = slice(self.used, self.used + size)
        self._segment[:, slots], self._position[:, slots] = batch.segment, position
        placed = self._held(dataclasses.replace(batch, position=position))
        ids, logits, self._caches = extend(
            *self._generalist.decoder,
            self._caches,
            # Copies: JAX may still be reading these arrays when the next append changes them.
            self._segment.copy(),
            self._position.copy(),
            np.int32(self.used),
            placed,
            None if self._images is None else ImageCache(self._images, jax.device_put(self._number.copy())),
            allowed[None],
        )
        self.used += size
        self._count += valid.sum(axis=1).astype(np.int32)
        return np.asarray(ids), logits

    def take(self, rows: Int[np.ndarray, "R"], slots: int = 0, images: int = 0) -> "CachedRows":
        """Copies of some rows, which may repeat, with room for more; the original is unchanged.

        Args:
            rows: indices of the rows.
            slots: additional slots.
            images: additional images per row.
        """
        # Without __init__, which would allocate caches that are replaced at once.
        taken = object.__new__(CachedRows)
        taken._generalist, taken.used, taken._images_used = self._generalist, self.used, self._images_used

        def padded(leaf: Int[np.ndarray, "B N"], more: int) -> Int[np.ndarray, "R M"]:
            return np.pad(leaf[rows], [(0, 0), (0, more)])

        taken._caches = _rows_of(self._caches, rows, slots)
        taken._segment, taken._position = padded(self._segment, slots), padded(self._position, slots)
        taken._count, taken._last_image = self._count[rows], self._last_image[rows]
        taken._number = padded(self._number, images)
        held = self._images
        if held is None and images:
            held = empty_images(self._generalist, len(self._count), 0)
        taken._images = None if held is None else _rows_of(held, rows, images)
        return taken

    def _held(self, batch: Batch) -> Batch:
        """Holds the batch's images. Returns the batch without them, its image numbers counted over all images of the row."""
        new = batch.row_images.shape[1]
        placed = self._generalist.on_device(batch)
        count = len(placed.images)
        if count:  # few shapes, few compilations
            more = [(0, -count % IMAGES), *[(0, 0)] * (placed.images.ndim - 1)]
            placed = dataclasses.replace(placed, images=jnp.pad(placed.images, more))
        # Text before the batch's first image attends to the newest image of its row.
        image = np.where(batch.image > 0, batch.image + self._images_used, self._last_image)
        if new:
            first, room = self._images_used, self._number.shape[1]
            if self._images is None or first + new > room:
                raise ValueError(f"the rows have room for {room} images, got {first + new}: raise images")
            self._images = hold_images(*self._generalist.decoder, placed, self._images, np.int32(first))
            # Rows with fewer images than the others have empty slots, of number 0, which no position attends to.
            counts = (batch.modality == Modality.IMAGE).sum(axis=1, keepdims=True)
            number = np.arange(first + 1, first + new + 1)[None]
            self._number[:, first : first + new] = np.where(number <= first + counts, number, 0)
            self._last_image = np.where(counts > 0, first + counts, self._last_image).astype(np.int32)
            self._images_used += new  # all rows use the same slots, as for positions
        return without_images(dataclasses.replace(placed, image=image.astype(np.int32)))
