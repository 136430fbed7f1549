"""The Perceiver resampler: turns the feature grids of an image or video into a few visual tokens.

Flamingo (Alayrac et al., 2022), section 2.1 and appendix A.1.1.

Dimension key: N images or videos, T frames, S grid cells, F encoder width, K latents, D width, H heads, E head size.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from generalist.model.attend import by_blocks
from generalist.model.blocked_attention import MASKED, shown_attention
from generalist.model.config import Activation
from generalist.model.layers import LayerNorm, Linear, NormedFeedForward, stack, unstacked


class PerceiverAttention(nnx.Module):
    """Latents attend to the features and to themselves: queries of the latents, keys and values of [features; latents]."""

    def __init__(self, width: int, heads: int, head_size: int, *, qk_norm: bool = False, rngs: nnx.Rngs):
        self.heads, self.head_size = heads, head_size
        self.feature_norm, self.latent_norm = LayerNorm(width, rngs=rngs), LayerNorm(width, rngs=rngs)
        self.query = Linear(width, heads * head_size, rngs=rngs)
        self.key_value = Linear(width, 2 * heads * head_size, rngs=rngs)
        self.out = Linear(heads * head_size, width, rngs=rngs)
        self.query_norm = LayerNorm(head_size, rngs=rngs) if qk_norm else None
        self.key_norm = LayerNorm(head_size, rngs=rngs) if qk_norm else None

    def __call__(
        self, features: Float[Array, "N S D"], latents: Float[Array, "N K D"], visible: Bool[Array, "N S"]
    ) -> Float[Array, "N K D"]:
        query, key, value, seen = self._operands(features, latents, visible)
        if by_blocks(*query.shape[:3]):
            mask = jnp.broadcast_to(seen[:, None], (*query.shape[:2], seen.shape[1]))
            mixed = shown_attention(query, key, value, mask, scale=self.head_size**-0.5)
        else:
            mixed = jnp.einsum("nhks,nshe->nkhe", self._weights(query, key, seen).astype(value.dtype), value)
        return self.out(mixed.reshape(*latents.shape[:2], -1))

    def weights(
        self, features: Float[Array, "N S D"], latents: Float[Array, "N K D"], visible: Bool[Array, "N S"]
    ) -> Float[Array, "N H K S+K"]:
        """The attention weights of the latents to the features and, after these, to the latents, in float32."""
        query, key, _, seen = self._operands(features, latents, visible)
        return self._weights(query, key, seen)

    def _operands(
        self, features: Float[Array, "N S D"], latents: Float[Array, "N K D"], visible: Bool[Array, "N S"]
    ) -> tuple[Float[Array, "N K H E"], Float[Array, "N S+K H E"], Float[Array, "N S+K H E"], Bool[Array, "N S+K"]]:
        """Queries, keys, values and which keys are seen."""
        count, size, _ = latents.shape
        latents = self.latent_norm(latents)
        both = jnp.concatenate([self.feature_norm(features), latents], axis=1)
        query = self.query(latents).reshape(count, size, self.heads, self.head_size)
        # (N, S + K, H, E) each
        key, value = jnp.split(self.key_value(both).reshape(count, -1, 2 * self.heads, self.head_size), 2, axis=2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        # Latents always see one another, also if no frame is visible: a softmax over nothing would be NaN.
        return query, key, value, jnp.concatenate([visible, jnp.ones((count, size), bool)], axis=1)

    def _weights(
        self, query: Float[Array, "N K H E"], key: Float[Array, "N S H E"], seen: Bool[Array, "N S"]
    ) -> Float[Array, "N H K S"]:
        scores = jnp.einsum("nkhe,nshe->nhks", query, key).astype(jnp.float32) * self.head_size**-0.5
        return jax.nn.softmax(jnp.where(seen[:, None, None, :], scores, MASKED), axis=-1)


class ResamplerLayer(nnx.Module):
    """Attention, then feed-forward, each added to the latents."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_size: int,
        hidden: int,
        *,
        activation: Activation = "squared_relu",
        qk_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        self.attention = PerceiverAttention(width, heads, head_size, qk_norm=qk_norm, rngs=rngs)
        self.feed_forward = NormedFeedForward(width, hidden, activation=activation, rngs=rngs)

    def __call__(
        self, features: Float[Array, "N S D"], latents: Float[Array, "N K D"], visible: Bool[Array, "N S"]
    ) -> Float[Array, "N K D"]:
        latents = latents + self.attention(features, latents, visible)
        return latents + self.feed_forward(latents)


class PerceiverResampler(nnx.Module):
    """Turns grids of features into K visual tokens each.

    Args:
        width_in: F, the encoder's channels; projected to `width` if they differ.
        hidden: width of the feed-forwards' hidden layer; None: 4 · `width`.
        frames: number of learned time embeddings; a video of another length interpolates them linearly (appendix A.1.1).
        activation: of the feed-forwards.
        qk_norm: normalise each head's queries and keys.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        layers: int,
        latents: int,
        heads: int,
        head_size: int,
        frames: int = 1,
        hidden: int | None = None,
        activation: Activation = "squared_relu",
        qk_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        self.projection = Linear(width_in, width, rngs=rngs) if width_in != width else None
        # Learned queries: their number fixes that of the visual tokens, whatever the size of the image.
        self.latents = nnx.Param(jax.random.normal(rngs.params(), (latents, width)))
        self.time_table = nnx.Param(jax.random.normal(rngs.params(), (frames, width)))

        def layer(rngs: nnx.Rngs) -> ResamplerLayer:
            return ResamplerLayer(
                width, heads, head_size, hidden or 4 * width, activation=activation, qk_norm=qk_norm, rngs=rngs
            )

        self.layers = stack(layer, layers, rngs.params())
        self.norm = LayerNorm(width, rngs=rngs)

    def __call__(
        self, features: Float[Array, "N T S F"], frames: Bool[Array, "N T"] | None = None
    ) -> Float[Array, "N K D"]:
        """Visual tokens of videos (images have T = 1). `frames`: which frames of a video exist; None: all."""
        x, latents, visible = self._inputs(features, frames)
        # One compiled layer for all, as in the Transformer.
        graph, stacked = nnx.split(self.layers)
        latents, _ = jax.lax.scan(
            lambda carry, params: (nnx.merge(graph, params)(x, carry, visible), None), latents, stacked
        )
        return self.norm(latents)

    def sources(self, features: Float[Array, "N 1 S F"]) -> Float[Array, "N K S"]:
        """How much of each image's cells each visual token holds, by attention rollout (Abnar & Zuidema, 2020, section 3): in
        each layer half comes from the latent before and half from what it attends to, as a mean over heads. Sums to 1 over the
        cells, since the latents are learned and hold nothing of an image at first."""
        x, latents, visible = self._inputs(features, None)
        cells = features.shape[2]
        held = jnp.zeros((*latents.shape[:2], cells), jnp.float32)
        for layer in unstacked(self.layers):
            weights = layer.attention.weights(x, latents, visible).mean(axis=1)  # (N, K, S + K)
            held = (held + weights[..., :cells] + weights[..., cells:] @ held) / 2
            latents = layer(x, latents, visible)
        return held / held.sum(axis=-1, keepdims=True)

    def _inputs(
        self, features: Float[Array, "N T S F"], frames: Bool[Array, "N T"] | None
    ) -> tuple[Float[Array, "N T*S D"], Float[Array, "N K D"], Bool[Array, "N T*S"]]:
        """The features and the latents that enter the first layer, and which features there are."""
        count, length, cells, _ = features.shape
        x = features if self.projection is None else self.projection(features)
        x = x + time_embeddings(self.time_table[...], length).astype(x.dtype)[None, :, None]
        present = jnp.ones((count, length), bool) if frames is None else frames
        visible = jnp.repeat(present, cells, axis=1)  # (N, T · S), in the order of the features below
        # Space and time become one axis: the cells have no order but what the encoder and `time_table` put into them.
        x = x.reshape(count, length * cells, -1)
        latents = jnp.broadcast_to(self.latents[...].astype(x.dtype)[None], (count, *self.latents.shape))
        return x, latents, visible


def time_embeddings(table: Float[Array, "M D"], length: int) -> Float[Array, "T D"]:
    """Embeddings of `length` frames spread evenly over the table's rows by linear interpolation; the table itself if the lengths
    are equal. Flamingo trains with 8 frames at 1 per second and reads 30 frames at 3 per second (appendix A.1.1)."""
    rows = table.shape[0]
    if length == rows:
        return table
    # The first and the last frame keep their embeddings, whatever the number of frames.
    place = jnp.linspace(0.0, rows - 1.0, length) if length > 1 else jnp.zeros((1,))
    low = jnp.floor(place).astype(jnp.int32)
    share = (place - low)[:, None]
    return table[low] * (1 - share) + table[jnp.minimum(low + 1, rows - 1)] * share
