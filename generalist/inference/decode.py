"""Decoding from a key-value cache: rows that grow together, read at their last positions.

Dimension key: B rows, S cache slots, A positions read, V vocabulary.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from generalist.data.batch import Batch
from generalist.inference.load import Generalist
from generalist.model.attention import Cache
from generalist.model.blocked_attention import MASKED
from generalist.model.cross_attention import VisualKeys
from generalist.model.visual import ImageCache
from generalist.tokenizers.pieces import Modality


@partial(jax.jit, static_argnames=("graph",), donate_argnames=("caches",))
def extend(
    graph: nnx.GraphDef,
    params: Any,
    caches: list[Cache],
    cache_segment: Int[Array, "B S"],
    cache_position: Int[Array, "B S"],
    start: Int[Array, ""],
    batch: Batch,
    images: ImageCache | None,
    allowed: Bool[Array, "A V"],
    temperature: Float[Array, ""],
    key: Array,
) -> tuple[Int[Array, "B A"], list[Cache]]:
    """Appends a batch at slot `start` and reads allowed ids off its last A positions: the likeliest at temperature 0, else
    drawn from the distribution at that temperature."""
    model = nnx.merge(graph, params)
    hidden, caches = model.hidden_cached(batch, caches, cache_segment, cache_position, start, images)
    logits = model.logits(hidden[:, hidden.shape[1] - allowed.shape[0] :])
    # The likeliest of logits with Gumbel noise is a draw from their softmax.
    noise = temperature * jax.random.gumbel(key, logits.shape)
    return jnp.argmax(confine(logits + noise, allowed), axis=-1).astype(jnp.int32), caches


@partial(jax.jit, static_argnames=("graph", "slots", "dtype"))
def hold_images(
    graph: nnx.GraphDef,
    params: Any,
    batch: Batch,
    held: ImageCache | None,
    used: Int[Array, ""],
    slots: int,
    dtype: Any,
) -> ImageCache:
    """The images of a batch added to those held, at slot `used` of `slots`."""
    keys = nnx.merge(graph, params).visual.keys(batch, dtype)
    rows, new = batch.row_images.shape
    if held is None:
        empty = [
            VisualKeys(*(jnp.zeros((rows, slots, *leaf.shape[2:]), leaf.dtype) for leaf in layer)) for layer in keys
        ]
        held = ImageCache(empty, jnp.zeros((rows, slots), bool))
    counts = (batch.modality == Modality.IMAGE).sum(axis=1)
    present = jnp.arange(new)[None] < counts[:, None]

    def put(whole: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, used, axis=1)

    return ImageCache(jax.tree.map(put, held.keys, keys), put(held.held, present))


def confine(logits: Float[Array, "B A V"], allowed: Bool[Array, "A V"]) -> Float[Array, "B A V"]:
    """Logits with the ids that are not allowed masked: an action is always one that the task has."""
    return jnp.where(allowed[None], logits, MASKED)


def allow(ranges: np.ndarray, size: int) -> np.ndarray:
    """Rows of (low, high) as bool (A, V)."""
    ids = np.arange(size)[None]
    return (ids >= ranges[:, :1]) & (ids < ranges[:, 1:])


class CachedRows:
    """The caches of a batch of rows, filled from the left; every append takes the same slots in all rows.

    Padding (segment 0) takes slots but no positions: rows of different lengths keep their own count.

    Args:
        temperature: 0 chooses the likeliest ids.
        key: what is drawn at a temperature above 0 depends on it and on the slot alone.
        images: images a row has room for.
    """

    def __init__(
        self,
        generalist: Generalist,
        rows: int,
        slots: int,
        *,
        temperature: float = 0.0,
        key: Array | None = None,
        images: int = 0,
    ):
        self._generalist, self._temperature = generalist, temperature
        self._key = jax.random.key(0) if key is None else key
        config = generalist.config.model
        self._caches = [
            Cache.empty(rows, slots, config.kv_heads, config.head_size, generalist.dtype) for _ in range(config.layers)
        ]
        self._segment = np.zeros((rows, slots), np.int32)
        self._position = np.zeros((rows, slots), np.int32)
        self._count = np.zeros((rows,), np.int32)
        self.used = 0
        self._images: ImageCache | None = None
        self._image_slots, self._images_used = images, 0
        self._last_image = np.zeros((rows, 1), np.int32)  # number of the newest image of each row

    def append(self, batch: Batch, allowed: np.ndarray) -> np.ndarray:
        """Feeds positions to all rows; the allowed ids chosen at the last A of them, int32 (B, A).

        Args:
            batch: its positions are counted on from those before.
            allowed: bool (A, V).
        """
        size, valid = batch.tokens.shape[1], batch.segment > 0
        position = (self._count[:, None] + np.cumsum(valid, axis=1) - valid).astype(np.int32)
        slots = slice(self.used, self.used + size)
        self._segment[:, slots], self._position[:, slots] = batch.segment, position
        ids, self._caches = extend(
            self._generalist.graph,
            self._generalist.params,
            self._caches,
            # Copies: a step may still be reading what the next append changes.
            jnp.array(self._segment),
            jnp.array(self._position),
            jnp.int32(self.used),
            self._held(dataclasses.replace(batch, position=position)),
            self._images,
            jnp.asarray(allowed),
            jnp.float32(self._temperature),
            jax.random.fold_in(self._key, self.used),
        )
        self.used += size
        self._count += valid.sum(axis=1).astype(np.int32)
        return np.asarray(ids)

    def _held(self, batch: Batch) -> Batch:
        """Takes the batch's images in; the batch without them, every position counting among all that the row holds."""
        new = batch.row_images.shape[1]
        placed = self._generalist.on_device(batch)
        image = np.where(batch.image > 0, batch.image + self._images_used, self._last_image)
        if new:
            if self._images_used + new > self._image_slots:
                raise ValueError(f"the rows have room for {self._image_slots} images, not {self._images_used + new}")
            self._images = hold_images(
                self._generalist.graph,
                self._generalist.params,
                placed,
                self._images,
                jnp.int32(self._images_used),
                self._image_slots,
                self._generalist.dtype,
            )
            counts = (batch.modality == Modality.IMAGE).sum(axis=1, keepdims=True)
            self._last_image = np.where(counts > 0, self._images_used + counts, self._last_image).astype(np.int32)
            self._images_used += new
        return dataclasses.replace(
            placed, image=jnp.asarray(image, jnp.int32), images=placed.images[:0], row_images=placed.row_images[:, :0]
        )
