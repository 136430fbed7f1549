"""Encoder features as positions of the sequence (LLaVA, Liu et al., 2023; PaliGemma; Gemma 3).

Dimension key: B rows, L positions, J images, S grid cells, F channels, K positions per image, D width.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from generalist.data.batch import Batch
from generalist.model.activations import PLAIN
from generalist.model.config import ModelSpec
from generalist.model.layers import Linear, RMSNorm, smooth_rows
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.shown import ROW_END


class ImageProjector(nnx.Module):
    """A grid of features, averaged to fewer cells and normalised if it is set so, through a linear map or two with an activation
    between them. What comes out replaces the token embeddings, and is not scaled as these are."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        vision, width = spec.config.vision, spec.config.width
        self.positions, self.activation = vision.positions, PLAIN[vision.projector_activation]
        self.norm = (
            RMSNorm(spec.channels, rngs=rngs, epsilon=vision.projector_epsilon) if vision.projector_norm else None
        )
        hidden, bias = vision.projector_hidden, vision.projector_bias
        self.up = Linear(spec.channels, hidden, rngs=rngs, bias=bias) if hidden else None
        self.out = Linear(hidden or spec.channels, width, rngs=rngs, bias=bias)
        places = None
        if vision.projector_places:
            side = math.isqrt(vision.positions)
            # As large as the features, which are of order 1: nothing else tells rows from columns.
            places = nnx.Param(jnp.stack([smooth_rows(rngs.params(), side, width, 0.5) for _ in ("row", "column")]))
        self.places = places
        self.row_end = nnx.Param(jax.random.normal(rngs.params(), (width,)) * width**-0.5) if vision.row_ends else None

    def __call__(self, features: Float[Array, "J S F"]) -> Float[Array, "J K D"]:
        """The embeddings of each image's positions, in raster order."""
        x = pooled(features, self.positions)
        x = x if self.norm is None else self.norm(x)
        x = self.out(x if self.up is None else self.activation(self.up(x)))
        if self.places is None:
            return x
        rows, columns = self.places[...].astype(x.dtype)
        return x + (rows[:, None] + columns[None]).reshape(1, *x.shape[1:])

    def embed(self, batch: Batch, x: Float[Array, "B L D"], dtype: DTypeLike) -> Float[Array, "B L D"]:
        """`x` with the positions of images replaced.

        Raises:
            ValueError: the images are pixels, or their grid cannot be averaged to this number of positions.
        """
        if not len(batch.images):  # a batch without images pays nothing for them
            return x
        if batch.images.ndim != 3:
            raise ValueError(
                f"the model takes an encoder's features (J, S, F), not images of shape {batch.images.shape}"
            )
        projected = self(jnp.asarray(batch.images).astype(dtype))
        projected = projected.reshape(-1, projected.shape[-1])  # (J, K, D) → (J · K, D)
        is_image, index = image_positions(batch, self.positions)
        x = jnp.where(is_image[..., None], batch.gather(projected, index), x)
        if self.row_end is None:
            return x
        ends = (jnp.asarray(batch.modality) == Modality.PROJECTED) & (jnp.asarray(batch.payload_index) == ROW_END)
        return jnp.where(ends[..., None], self.row_end[...].astype(x.dtype)[None, None], x)


def image_positions(batch: Batch, count: int) -> tuple[Bool[Array, "B L"], Int[Array, "B L"]]:
    """The positions of images, and the row of each among its shard's projected embeddings, `count` per image; 0 elsewhere."""
    modality = jnp.asarray(batch.modality)
    is_first = modality == Modality.IMAGE
    at = jnp.arange(modality.shape[1])[None]
    # An image's positions are contiguous; the first one knows which image it is.
    first = jax.lax.cummax(jnp.where(is_first, at, 0), axis=1)
    image = jnp.take_along_axis(jnp.asarray(batch.payload_index), first, axis=1)
    is_other = modality == Modality.PROJECTED
    # In order unless they say which cell they are: those of an image that was cut into tiles, whose rows have ends of their own.
    said = jnp.where(is_other, jnp.asarray(batch.payload_index), 0)
    cell = jnp.where(said > 0, said - 1, jnp.where(said < 0, 0, at - first))
    is_image = is_first | is_other
    return is_image, jnp.where(is_image, image * count + cell, 0)


def check_pooled(cells: int, count: int) -> None:
    """Raises `ValueError` if a grid of `cells` cannot be averaged to `count` positions."""
    grid, side = math.isqrt(cells), math.isqrt(count)
    size = grid // side if side else 0
    if cells != count and (grid * grid != cells or side * side != count or not size or grid // size != side):
        fitting = [cells] + [(grid // one) ** 2 for one in range(2, grid + 1) if grid * grid == cells]
        known = ", ".join(map(str, dict.fromkeys(fitting)))
        raise ValueError(
            f"model.vision.positions = {count}: the encoder's {cells} cells cannot be averaged to it; set it to one of {known}"
        )


def pooled(features: Float[Array, "J S F"], count: int) -> Float[Array, "J K F"]:
    """A square grid averaged to `count` cells, each the mean of a square; cells beyond the last whole square are left out.

    Raises:
        ValueError: the grid cannot be divided so.
    """
    images, cells, channels = features.shape
    check_pooled(cells, count)
    if cells == count:
        return features
    grid, side = math.isqrt(cells), math.isqrt(count)
    size = grid // side
    square = features.reshape(images, grid, grid, channels)[:, : side * size, : side * size]
    square = square.reshape(images, side, size, side, size, channels)
    return square.mean(axis=(2, 4)).reshape(images, count, channels)
