"""Rows that are read and written together: their key-value caches, which grow from the left.

Dimension key: B rows, L new positions, A positions that are read, V vocabulary, T ids that are written, E ends.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from generalist.data.batch import Batch
from generalist.inference.decode import (
    empty_caches,
    empty_images,
    extend,
    hold_images,
    in_place,
    without_images,
    without_places,
)
from generalist.inference.in_turn import write_in_turn
from generalist.inference.rows import FLAT, positions_in_parts
from generalist.inference.sampling import Drawing
from generalist.inference.weights import Weights
from generalist.model.attention import Cache
from generalist.model.rings import cache_slots
from generalist.model.visual import ImageCache
from generalist.system.memory import release_freed
from generalist.system.platforms import target_platform
from generalist.tokenizers.pieces import Modality

LONGEST = 512  # positions of a text that are fed at once
LARGE = 2**25  # bytes of caches before which freed memory is given back
IMAGES = 8  # features of a batch's images come in multiples of this


@partial(jax.jit, static_argnames=("more",))
def _rows_of(tree: Any, rows: Int[Array, "R"], more: int) -> Any:
    """Some rows of every array, with `more` zero slots on their third axis."""
    return jax.tree.map(
        lambda leaf: jnp.pad(leaf[rows], [(0, 0), (0, 0), (0, more), *[(0, 0)] * (leaf.ndim - 3)]), tree
    )


@partial(jax.jit, static_argnames=("batch", "slots"))
def _caches_of(caches: list[Cache], rows: Int[Array, "R"], batch: int, slots: tuple[int, ...]) -> list[Cache]:
    """The caches of some of `batch` rows, with empty slots behind what they hold.

    Args:
        slots: of each layer's cache.
    """

    def of_rows(leaf: Float[Array, "_ _ H"], size: int) -> Float[Array, "_ _ H"]:
        by_row = leaf.reshape(batch, -1, *leaf.shape[1:])
        taken = _rows_of(by_row, rows, size - leaf.shape[1])
        return taken.reshape(-1, *taken.shape[2:])

    # A ring that grows has not turned yet: it had a slot for every position.
    return [Cache(*(of_rows(leaf, size) for leaf in cache)) for cache, size in zip(caches, slots, strict=True)]


class CachedRows:
    """The caches of a batch of rows, filled from the left; every append takes the same slots in all rows.

    Padding (segment 0) takes slots but no positions: rows of different lengths keep their own count.

    Args:
        images: number of images that each row has room for.
    """

    def __init__(self, generalist: Weights, rows: int, slots: int, *, images: int = 0):
        self._generalist = generalist
        config = generalist.config.model
        numbers = 2 * rows * slots * config.layers * config.kv_heads * config.key_size
        if numbers * generalist.cache_dtype.itemsize > LARGE:
            # The caches of an earlier prompt may have left gaps that these do not fit, and both would stay in memory.
            release_freed()
        self._caches = empty_caches(generalist, rows, slots, rings=True)
        # On the host: they change with every append, and what a slot holds must be known without waiting for the device.
        self._segment = np.zeros((rows, slots), np.int32)
        self._position = np.zeros((rows, slots), np.int32)
        self._count = np.zeros((rows,), np.int32)
        self.used = 0
        # Projected images are positions like others, and nothing of them is held.
        self._images = empty_images(generalist, rows, images) if images and not generalist.projects else None
        self._number = np.zeros((rows, images), np.int32)
        self._images_used = 0
        self._last_image = np.zeros((rows, 1), np.int32)  # number of the newest image of each row

    def append(
        self, batch: Batch, allowed: Bool[np.ndarray, "A V"]
    ) -> tuple[Int[np.ndarray, "B A"], Float[Array, "B A V"]]:
        """Feeds positions to all rows. Returns the likeliest of the allowed ids at the last A of them, and the logits there.

        Long texts are fed in equal parts, whose hidden states and attention's scores take that much less memory: scores grow with
        the new positions times the slots. A text with blocks (PaliGemma's prompts) is fed whole: its positions see later ones.

        Args:
            batch: the new positions; `batch.position` is replaced by a count that continues the rows.
        """
        rows, length = batch.tokens.shape
        # On a CPU, which computes no faster with more, of all rows together; but every part fetches all weights.
        most = LONGEST if target_platform() != "cpu" else LONGEST // min(rows, 16)
        size = max(one for one in range(1, most + 1) if length % one == 0)
        whole = np.any(batch.block) or any(len(getattr(batch, one)) for one in FLAT)
        if length > most and size >= len(allowed) and not whole:
            *first, last = positions_in_parts(batch, size)
            for part in first:
                self._append(part, allowed[-1:])
            return self._append(last, allowed)
        return self._append(batch, allowed)

    def _append(
        self, batch: Batch, allowed: Bool[np.ndarray, "A V"]
    ) -> tuple[Int[np.ndarray, "B A"], Float[Array, "B A V"]]:
        """`append` in one call of the compiled step."""
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
            self._held_images(),
            allowed[None],
        )
        self.used += size
        self._count += valid.sum(axis=1).astype(np.int32)
        return np.asarray(ids), logits

    def write(
        self,
        position: Batch,
        ids: Int[np.ndarray, "B"],
        over: Bool[np.ndarray, "B"],
        count: int,
        allowed: Bool[Array, "V"],
        ends: Int[np.ndarray, "E"],
        step: int,
        drawing: Drawing | None,
        *,
        most: int,
    ) -> Int[np.ndarray, "B T"]:
        """Feeds the last id of each row, chooses the next, and so on; returns `count` ids per row, or fewer if all rows are over.
        The last of them is not fed yet. Arguments as in `write_in_turn`.

        Args:
            position: a position of text in each row, (B, 1).
        """
        slots = slice(self.used, self.used + count)
        self._segment[:, slots], self._position[:, slots] = 1, self._count[:, None] + np.arange(count)
        chosen, number, self._caches = write_in_turn(
            *self._generalist.decoder,
            self._caches,
            self._segment.copy(),
            self._position.copy(),
            np.int32(self.used),
            dataclasses.replace(position, position=self._count[:, None].copy(), image=self._last_image.copy()),
            self._held_images(),
            allowed,
            ids,
            over,
            ends,
            np.int32(step),
            np.int32(count),
            drawing,
            most,
        )
        fed = int(number)
        self._segment[:, self.used + fed : self.used + count] = 0
        self.used, self._count = self.used + fed, self._count + np.int32(fed)
        return np.asarray(chosen)[:, :fed]

    def _held_images(self) -> ImageCache | None:
        return None if self._images is None else ImageCache(self._images, jax.device_put(self._number.copy()))

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

        sizes = tuple(cache_slots(self._generalist.config.model, self._segment.shape[1] + slots))
        taken._caches = in_place(self._generalist, _caches_of(self._caches, rows, len(self._count), sizes))
        taken._segment, taken._position = padded(self._segment, slots), padded(self._position, slots)
        taken._count, taken._last_image = self._count[rows], self._last_image[rows]
        taken._number = padded(self._number, images)
        held = self._images
        if held is None and images and not self._generalist.projects:
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
        if self._generalist.projects:
            return without_places(placed)
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
