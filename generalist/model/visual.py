"""The path of images into the Transformer: encoder features → resampler → a gated cross-attention every few blocks.

Dimension key: B rows, L positions, D width, J images per batch, I images per row, S grid cells, F channels, K visual tokens,
V visual width, G gated layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from generalist.data.batch import Batch
from generalist.model.config import ModelSpec
from generalist.model.cross_attention import GatedCrossAttention, VisualKeys, first_image, image_mask
from generalist.model.layers import stack, unstacked
from generalist.model.resampler import PerceiverResampler
from generalist.tokenizers.pieces import Modality


class ImageCache(NamedTuple):
    """Images held while decoding: their keys in every gated layer, and the number of each in its row (0: empty slot)."""

    keys: list[VisualKeys]
    number: Int[Array, "B I"]


class VisualPath(nnx.Module):
    """The layers added to a language model so that it sees images (Flamingo, section 2)."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        config, vision = spec.config, spec.config.vision
        self.config, self.every, self.first = vision, vision.every, vision.first
        if not vision.resampled and spec.channels != vision.width:
            raise ValueError(
                f"model.vision.width ({vision.width}) must be the {spec.channels} channels of the encoder's features, which are "
                "not resampled (model.vision.resampled = False)"
            )
        self.resampler = _resampler(spec, rngs) if vision.resampled else None

        heads, head_size = vision.cross_attention

        def gated(rngs: nnx.Rngs) -> GatedCrossAttention:
            return GatedCrossAttention(
                config.width,
                vision.width,
                heads=heads,
                head_size=head_size,
                hidden=vision.gated_hidden or vision.hidden_factor * config.width,
                activation=vision.gated_activation,
                norm=vision.gated_norm,
                epsilon=vision.gated_epsilon,
                qk_norm=vision.gated_qk_norm,
                gate=vision.gate,
                rngs=rngs,
            )

        self.gated = stack(gated, config.gated_layers, rngs.params())

    def tokens(self, batch: Batch, dtype: DTypeLike) -> Float[Array, "B I K V"]:
        """The visual tokens of each row's images, from encoder features (J, S, F)."""
        if batch.images.ndim != 3:
            raise ValueError(
                f"the model takes an encoder's features (J, S, F), not images of shape {batch.images.shape}"
            )
        visual = batch.images.astype(dtype)
        if self.resampler is not None:
            # (J, S, F) → (J, 1, S, F): an image is a video of one frame.
            visual = self.resampler(visual[:, None])
        elif visual.shape[1] != self.config.latents:
            raise ValueError(
                f"an image has {visual.shape[1]} features, but model.vision.latents is {self.config.latents}: without a "
                "resampler they must be equal"
            )
        return batch.gather(visual, batch.row_images)  # (J, K, V) → (B, I, K, V)

    def scan(
        self,
        layer: Callable,
        x: Float[Array, "B L D"],
        blocks: Any,
        seen: tuple[Float[Array, "B I K V"] | None, Bool[Array, "B L I"] | None],
        remat: Callable,
        unroll: int,
        begin: int = 0,
    ) -> Float[Array, "B L D"]:
        """Runs blocks (stacked parameters, stepped by `layer`) with a gated cross-attention before every few of them, whose
        activations are kept or recomputed as `remat` decides; `unroll` blocks in one round of the loop, in whole groups if they
        are more than a group has.

        Args:
            blocks: all, or those from the layer `begin` on.
            seen: the result of `visible`.
        """
        (visual, mask), (graph, gated) = seen, nnx.split(self.gated)

        @remat
        def look(x, gate_params):
            # Inside, so that `remat` decides about the images' keys too.
            module = nnx.merge(graph, gate_params)
            return module(x, None if visual is None else module.keys(visual), mask)

        def group(x, params):
            gate_params, block_params = params
            return jax.lax.scan(layer, look(x, gate_params), block_params, unroll=min(unroll, self.every))[0], None

        # In front of the first gated layer among them: those before all, or the rest of a group that has begun below.
        lead = min((self.first - begin) % self.every, jax.tree.leaves(blocks)[0].shape[0])
        if lead:
            before = jax.tree.map(lambda leaf: leaf[:lead], blocks)
            x, _ = jax.lax.scan(layer, x, before, unroll=min(unroll, lead))
            blocks = jax.tree.map(lambda leaf: leaf[lead:], blocks)
        count = jax.tree.leaves(blocks)[0].shape[0]
        if not count:
            return x
        gated = jax.tree.map(lambda leaf: leaf[(begin + lead - self.first) // self.every :], gated)
        # A scan within a scan: groups of blocks behind one cross-attention; the rest, if any, follow below.
        whole = count // self.every
        grouped = jax.tree.map(
            lambda leaf: leaf[: whole * self.every].reshape(whole, self.every, *leaf.shape[1:]), blocks
        )
        gates = jax.tree.map(lambda leaf: leaf[:whole], gated)
        x, _ = jax.lax.scan(group, x, (gates, grouped), unroll=max(1, min(unroll // self.every, whole)))
        if count % self.every:  # the last group is shorter
            rest = jax.tree.map(lambda leaf: leaf[whole * self.every :], blocks)
            x, _ = group(x, (jax.tree.map(lambda leaf: leaf[whole], gated), rest))
        return x

    def visible(
        self, batch: Batch, dtype: DTypeLike
    ) -> tuple[Float[Array, "B I K V"] | None, Bool[Array, "B L I"] | None]:
        """The visual tokens of whole rows, and which images each position sees; None without images, which then cost nothing."""
        if not len(batch.images):
            return None, None
        visual = self.tokens(batch, dtype)
        first = first_image(batch.modality == Modality.IMAGE, batch.position)
        return visual, image_mask(batch.image, first, jnp.arange(1, visual.shape[1] + 1)[None], self.config.attend_to)

    def cached_mask(self, image: Int[Array, "B L"], images: ImageCache) -> Bool[Array, "B L I"]:
        """Which of the held images new positions see."""
        # Images are numbered from 1 in a row, which is one segment here: its first image is always 1.
        return image_mask(image, jnp.ones_like(image), images.number, self.config.attend_to)

    def keys(self, batch: Batch, dtype: DTypeLike) -> list[VisualKeys]:
        """Keys of a batch's images in every gated layer, for an `ImageCache`."""
        visual = self.tokens(batch, dtype)
        return [layer.keys(visual) for layer in unstacked(self.gated)]

    def before(
        self,
        block: int,
        x: Float[Array, "B L D"],
        keys: list[VisualKeys] | None,
        mask: Bool[Array, "B L I"] | None,
    ) -> Float[Array, "B L D"]:
        """The gated cross-attention that stands before a block, if one does."""
        layer = self.layer_before(block)
        if layer is None:
            return x
        # The feed-forward acts on positions without images too.
        number = (block - self.first) // self.every
        return layer(x, None if keys is None else keys[number], mask)

    def layer_before(self, block: int) -> GatedCrossAttention | None:
        """The gated cross-attention that stands before a block, if one does."""
        layer, rest = divmod(block - self.first, self.every)
        return None if layer < 0 or rest else unstacked(self.gated)[layer]

    def sources(self, batch: Batch, dtype: DTypeLike) -> Float[Array, "I K S"] | None:
        """How much of the cells of each image of a row its visual tokens hold; None without images."""
        if not len(batch.images):
            return None
        features = batch.images[jnp.asarray(batch.row_images)[0]].astype(dtype)  # (I, S, F)
        if self.resampler is None:
            return jnp.broadcast_to(jnp.eye(features.shape[1]), (len(features), features.shape[1], features.shape[1]))
        return self.resampler.sources(features[:, None])


def _resampler(spec: ModelSpec, rngs: nnx.Rngs) -> PerceiverResampler:
    vision = spec.config.vision
    return PerceiverResampler(
        spec.channels,
        vision.width,
        layers=vision.layers,
        latents=vision.latents,
        heads=vision.heads,
        head_size=vision.head_size,
        hidden=vision.resampler_hidden or vision.hidden_factor * vision.width,
        activation=vision.resampler_activation,
        qk_norm=vision.resampler_qk_norm,
        rngs=rngs,
    )
