"""The decoder-only Transformer: embeds a batch of packed sequences, mixes, predicts the next token.

Dimension key: B batch, L positions, S cache slots, D width, V vocabulary, N tensors, M frames, P patches.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from generalist.data.batch import Batch
from generalist.model.attention import Attention, Cache, attention_mask
from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.embedders import FrameEmbedder, PatchEmbedder, TensorEmbedder
from generalist.model.layers import FeedForward, Linear, RMSNorm, stack
from generalist.model.visual import ImageCache, VisualPath
from generalist.tokenizers.pieces import Modality


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.width, rngs=rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)

    def __call__(self, x, mask, position, cache=None, start=None):
        mixed, cache = self.attention(self.attention_norm(x), mask, position, cache, start)
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x)), cache


class Transformer(nnx.Module):
    """One Transformer over one token sequence (Gato, section 2.3), with rotary positions for order in time."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        config = spec.config
        self.config, self.vocabulary_size = config, spec.vocabulary.size

        def table(rows: int, scale: float) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (rows, config.width)) * scale)

        # The table is also the output matrix when tied: rows of length about 1 give logits of order 1 at the start.
        self.token_table = table(self.vocabulary_size, config.width**-0.5)
        self.position_table = table(config.local_positions, 0.1)
        self.tensor_embedder = TensorEmbedder(spec, rngs=rngs) if spec.projection_width else None
        self.patch_embedder = PatchEmbedder(config, rngs=rngs) if spec.patches else None
        self.frame_embedder = FrameEmbedder(config, rngs=rngs) if spec.frames else None
        # Parameters of all blocks stacked on a first axis, so that one compiled block serves every layer.
        self.blocks = stack(lambda rngs: Block(config, rngs=rngs), config.layers, rngs.params())
        self.final_norm = RMSNorm(config.width, rngs=rngs)
        self.output = None if config.tied_output else Linear(config.width, self.vocabulary_size, rngs=rngs)
        # Last, so that the language model's own parameters are drawn alike with and without an encoder.
        self.visual = VisualPath(spec, rngs=rngs) if spec.channels else None

    def embed(self, batch: Batch, dtype: DTypeLike, key: Array | None = None) -> Float[Array, "B L D"]:
        """Token embeddings, replaced where a payload speaks, plus the embedding of the local position."""
        scale = self.config.width**0.5
        x = self.token_table[...].at[batch.tokens].get(mode="clip").astype(dtype) * scale
        payloads = (
            (Modality.TENSOR, len(batch.tensors), lambda: self._need("tensor")(batch.tensors.astype(dtype))),
            (Modality.FRAME, len(batch.frames), lambda: self._need("frame")(batch.frames, dtype)),
            (
                Modality.PATCH,
                len(batch.patches),
                lambda: self._need("patch")(batch.patches, batch.intervals, dtype, key),
            ),
        )
        for modality, count, embedder in payloads:
            if count:  # a batch without this payload pays nothing for it
                embedded = embedder().at[batch.payload_index].get(mode="clip")
                x = jnp.where((batch.modality == modality)[..., None], embedded, x)
        return x + self.position_table[...].at[batch.local_position].get(mode="clip").astype(dtype)

    def _need(self, payload: str):
        embedder = getattr(self, f"{payload}_embedder")
        if embedder is None:
            raise ValueError(f"the batch carries {payload}s but this model was built without a {payload} embedder")
        return embedder

    def hidden(self, batch: Batch, dtype: DTypeLike = jnp.float32, key: Array | None = None) -> Float[Array, "B L D"]:
        """Final hidden states of whole sequences. `key` draws patch positions (training); None takes their means."""
        x = self.embed(batch, dtype, key)
        mask = attention_mask(batch.segment, batch.position, batch.segment, batch.position)
        graph, stacked = nnx.split(self.blocks)

        def layer(x, params):
            return nnx.merge(graph, params)(x, mask, batch.position)[0], None

        step = jax.checkpoint(layer) if self.config.remat else layer
        if self.visual is None:
            x, _ = jax.lax.scan(step, x, stacked)
        else:
            x = self.visual.scan(step, x, stacked, batch)
        return self.final_norm(x)

    def hidden_cached(
        self,
        batch: Batch,
        caches: list[Cache],
        cache_segment: Int[Array, "B S"],
        cache_position: Int[Array, "B S"],
        start: Int[Array, ""],
        images: ImageCache | None = None,
    ) -> tuple[Float[Array, "B L D"], list[Cache]]:
        """Final hidden states of new positions, appended to the caches at slot `start`.

        `cache_segment` and `cache_position` describe the slots with the new positions already entered; `images` holds all
        images so far (None: there are none), with `batch.image` counting among them.
        """
        dtype = caches[0].key.dtype
        x = self.embed(batch, dtype)
        mask = attention_mask(batch.segment, batch.position, cache_segment, cache_position)
        graph, stacked = nnx.split(self.blocks)
        updated = []
        # A loop, not a scan: caches kept apart a layer are updated in place; a stacked one would be copied every step.
        for index, cache in enumerate(caches):
            if self.visual is not None and index % self.config.vision.every == 0:
                x = self.visual.before(index, x, batch.image, images)
            block = nnx.merge(graph, jax.tree.map(lambda leaf, i=index: leaf[i], stacked))
            x, cache = block(x, mask, batch.position, cache, start)
            updated.append(cache)
        return self.final_norm(x), updated

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Next-token logits, in float32."""
        if self.output is not None:
            return self.output(hidden).astype(jnp.float32)
        return (hidden @ self.token_table[...].T.astype(hidden.dtype)).astype(jnp.float32)

    def empty_caches(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> list[Cache]:
        """One empty cache a layer."""
        config = self.config
        return [Cache.empty(batch, slots, config.kv_heads, config.head_size, dtype) for _ in range(config.layers)]


def create(spec: ModelSpec, seed: int) -> Transformer:
    """A freshly initialised model; the same seed gives the same weights."""
    return Transformer(spec, rngs=nnx.Rngs(seed))


def count_parameters(params) -> int:
    """Number of scalars in a tree of arrays or abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
