"""The decoder-only Transformer: embeds a batch of packed sequences, mixes, predicts the next token.

Dimension key: B batch, L positions, S cache slots, D width, V vocabulary, N tensors, M frames, P patches, K positions that
parallel actions are read from, A dimensions of an action.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from generalist.data.batch import Batch
from generalist.data.rows import rows_at
from generalist.model.action_head import ActionHead
from generalist.model.attend import Packed
from generalist.model.attention import Attention, Cache, Masked, Slide
from generalist.model.blocked_attention import MASKED
from generalist.model.config import LayerKind, ModelConfig, ModelSpec
from generalist.model.constrain import constrain
from generalist.model.embedders import FrameEmbedder, PatchEmbedder, TensorEmbedder
from generalist.model.layers import FeedForward, make_norm, smooth_rows, stack, stored_product, unstacked
from generalist.model.masks import Blocks, attention_mask
from generalist.model.positions import Placement, placement
from generalist.model.projector import ImageProjector
from generalist.model.remat import layers_unrolled, recomputed
from generalist.model.rings import Ring, ring_of
from generalist.model.visual import ImageCache, VisualPath
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.vocabulary import Vocabulary


class Block(nnx.Module):
    """Attention and feed-forward, each added to the residual stream, with norms before them, after them or both."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        def norm(wanted: bool):
            return make_norm(config, rngs=rngs) if wanted else _unchanged

        self.parallel = config.parallel_residual
        self.attention_norm = norm(config.pre_norms)
        self.attention = Attention(config, rngs=rngs)
        self.feed_forward_norm = norm(config.pre_norms)
        self.feed_forward = FeedForward(config, rngs=rngs)
        # These act on the sub-layer's output, before the residual addition.
        self.attention_post_norm = norm(config.post_norms)
        self.feed_forward_post_norm = norm(config.post_norms)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        seen: Packed | Masked | Ring,
        placed: Placement | None,
        written: Placement | None,
        cache: Cache | None = None,
        start: Int[Array, ""] | Int[Array, "B"] | None = None,
        kept: Float[Array, "2 B"] | None = None,
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        """One layer; arguments as in `Attention`.

        Args:
            kept: factors of each row's attention and feed-forward (stochastic depth); None: 1.
        """
        attended, cache = self.attention(self.attention_norm(x), seen, placed, written, cache, start)
        attended = self.attention_post_norm(attended)
        attended = attended if kept is None else attended * kept[0, :, None, None]
        # In parallel both read the same input (GPT-J, GPT-NeoX).
        fed = self.feed_forward(self.feed_forward_norm(x if self.parallel else x + attended))
        fed = self.feed_forward_post_norm(fed)
        x = x + attended + (fed if kept is None else fed * kept[1, :, None, None])
        return constrain(x, "batch", "length", None), cache


def _unchanged(x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    return x


class Sight(NamedTuple):
    """What layers of one kind see: the visible positions, and how they are told apart (see `Attention`)."""

    seen: Packed | Masked | Ring
    placed: Placement | None
    written: Placement | None


class TokenTable(nnx.Module):
    """One row per token id. Text rows, which a pretrained model provides, are separate from those of all other tokens, which it
    lacks: the former can stay frozen while the latter are learned."""

    def __init__(self, vocabulary: Vocabulary, width: int, *, rngs: nnx.Rngs):
        # As output matrix, rows of length about 1 give initial logits of order 1.
        def rows(count: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (count, width)) * width**-0.5)

        self.text, self.other = rows(vocabulary.text), rows(vocabulary.size - vocabulary.text)
        places = vocabulary.range("locations")
        if places:
            begin = places.start - vocabulary.text
            near = smooth_rows(rngs.params(), len(places), width, width**-0.5)
            self.other[...] = self.other[...].at[begin : begin + len(places)].set(near)

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.text.shape[0] + self.other.shape[0]

    def __call__(self, tokens: Int[Array, "B L"], dtype: DTypeLike) -> Float[Array, "B L D"]:
        text, count = self.text[...], self.text.shape[0]
        # An index below 0 would wrap around; rows of text tokens are looked up as row 0 here and discarded below.
        other = rows_at(self.other[...], jnp.maximum(tokens - count, 0)).astype(dtype)
        if not count:  # a vocabulary without text
            return other
        return jnp.where((tokens < count)[..., None], rows_at(text, tokens).astype(dtype), other)

    @property
    def tables(self) -> list[Float[Array, "_ D"]]:
        """The rows by kind, in the order of the ids, without kinds that the vocabulary lacks."""
        return [rows[...] for rows in (self.text, self.other) if rows.shape[0]]

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Products with all rows, in float32: a softmax over the vocabulary in 16 bits would be too coarse."""
        products = [stored_product(hidden, table.T).astype(jnp.float32) for table in self.tables]
        return jnp.concatenate(products, axis=-1)


class Transformer(nnx.Module):
    """One Transformer over one token sequence (Gato, section 2.3), with rotary positions for order in time."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        config = spec.config
        self.config = config
        self.tokens = TokenTable(spec.vocabulary, config.width, rngs=rngs)
        # With a pretrained trunk, nothing is added to its embeddings before training: it starts with its own outputs.
        local = jax.random.normal(rngs.params(), (config.local_positions, config.width)) * 0.1
        self.position_table = nnx.Param(local if config.trunk == "none" else jnp.zeros_like(local))
        self.tensor_embedder = TensorEmbedder(spec, rngs=rngs) if spec.projection_width else None
        self.patch_embedder = PatchEmbedder(config, rngs=rngs) if spec.patches else None
        self.frame_embedder = FrameEmbedder(config, rngs=rngs) if spec.frames else None
        # Parameters of all blocks stacked on a first axis, so that one compiled block serves every layer.
        self.blocks = stack(lambda rngs: Block(config, rngs=rngs), config.layers, rngs.params())
        # The first of them, where training keeps those frozen (`generalist.model.tuning`).
        self.lower: Any = nnx.data(None)
        self.final_norm = make_norm(config, rngs=rngs)
        self.output = None if config.tied_output else TokenTable(spec.vocabulary, config.width, rngs=rngs)
        times = config.learned_positions
        self.time_table = nnx.Param(jax.random.normal(rngs.params(), (times, config.width)) * 0.02) if times else None
        # Last, so that all other parameters are initialised the same with and without these parts.
        self.visual = VisualPath(spec, rngs=rngs) if spec.crossed else None
        self.action_head = ActionHead(spec, rngs=rngs) if spec.action_dimensions else None
        self.projector = ImageProjector(spec, rngs=rngs) if spec.projected else None

    def embed(self, batch: Batch, dtype: DTypeLike, key: Array | None = None) -> Float[Array, "B L D"]:
        """Token embeddings, replaced by payloads at their positions, plus the embedding of the local position (and, if positions
        are learned, of the absolute one)."""
        # Rows of length about 1 (`TokenTable`) times √D give numbers of variance 1 (Vaswani et al., 2017, section 3.4).
        scale = self.config.embedding_scale
        x = self.tokens(batch.tokens, dtype) * (self.config.width**0.5 if scale is None else scale)
        # Built lazily: an embedder runs only if the batch has its payload.
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
                embedded = batch.gather(embedder(), batch.payload_index)
                x = jnp.where((batch.modality == modality)[..., None], embedded, x)
        if self.projector is not None:
            x = self.projector.embed(batch, x, dtype)
        if self.time_table is not None:
            x = x + rows_at(self.time_table[...], batch.position).astype(dtype)
        x = x + rows_at(self.position_table[...], batch.local_position).astype(dtype)
        return constrain(x, "batch", "length", None)

    def sights(self, batch: Batch) -> dict[LayerKind, Sight]:
        """What layers of each kind see in whole rows."""

        # Placed here, once for all layers of a kind, instead of in each layer.
        def sight(kind: LayerKind) -> Sight:
            placed = placement(batch.position, self.config, kind)
            block = None if self.config.blocks == "none" else jnp.asarray(batch.block)
            return Sight(Packed(batch.segment, jnp.array(kind.startswith("window")), block), placed, placed)

        return {kind: sight(kind) for kind in dict.fromkeys(self.config.kind_of_layers)}

    def cached_sights(
        self,
        batch: Batch,
        key_segment: Int[Array, "B S"],
        key_position: Int[Array, "B S"],
        start: Int[Array, ""] | Int[Array, "B"],
        slide: Slide | None,
        ring: int,
    ) -> dict[LayerKind, Sight]:
        """What layers of each kind see when new positions attend to the slots of a cache, from `start` on, in all rows or
        in each. `ring`: slots of the caches of layers with a window, S if they are no rings."""
        both_ways = block = None
        if self.config.blocks != "none":
            # A block is read as a whole: none of it is among the slots that were written before.
            block = jnp.asarray(batch.block)
            written = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))
            keys = written(jnp.zeros_like(key_segment), block, jnp.broadcast_to(start, len(block)), 0)
            both_ways = Blocks(block, keys, self.config.blocks == "whole")
        seen = functools.partial(
            attention_mask, batch.segment, batch.position, key_segment, key_position, blocks=both_ways
        )
        slid = None if slide is None else slide.slots
        full: Masked | Ring = Masked(seen(), slid)
        near: Masked | Ring = Masked(seen(reach=self.config.window), slid)
        if ring < key_segment.shape[1]:
            assert slide is None, "positions of a ring do not slide"
            earlier = jnp.arange(key_segment.shape[1])[None] < jnp.reshape(start, (-1, 1))
            near = ring_of(
                jnp.asarray(batch.segment),
                jnp.asarray(batch.position),
                ((key_segment > 0) & earlier).sum(axis=1),
                ring,
                reach=self.config.window,
                block=block,
                whole_blocks=self.config.blocks == "whole",
            )
        moved = 0 if slide is None else slide.by[:, None]
        both = jnp.stack([batch.position, batch.position + moved])

        def sight(kind: LayerKind) -> Sight:
            # A loop keeps the compiler from fusing this into every layer, which would compute it again each time.
            placed = jax.lax.map(lambda position: placement(position, self.config, kind), both)
            placed, written = jax.tree.map(lambda leaf: leaf[0], placed), jax.tree.map(lambda leaf: leaf[1], placed)
            # Where all slots have slid, one query per position meets them all, which halves the product with the keys.
            all_slid = slide is not None and slide.slots is None
            return Sight(near if kind.startswith("window") else full, written if all_slid else placed, written)

        return {kind: sight(kind) for kind in dict.fromkeys(self.config.kind_of_layers)}

    def _need(self, payload: str):
        embedder = getattr(self, f"{payload}_embedder")
        if embedder is None:
            raise ValueError(f"the batch carries {payload}s but this model was built without a {payload} embedder")
        return embedder

    def hidden(self, batch: Batch, dtype: DTypeLike = jnp.float32, key: Array | None = None) -> Float[Array, "B L D"]:
        """Final hidden states of whole sequences. `key` draws patch positions and skipped sub-layers (training); with None patch
        positions are the means of their intervals and nothing is skipped."""
        x = self.embed(batch, dtype, key)
        sights = self.sights(batch)
        if isinstance(self.blocks, nnx.List):
            return self.final_norm(self._through_separate(x, batch, sights))
        kinds = jnp.array([list(sights).index(kind) for kind in self.config.kind_of_layers])
        kept = self._kept(len(x), dtype, key)

        def layer(graph, x, of_layer):
            params, kind, kept = of_layer
            # All kinds of layers run in one scan; a choice between sets of angles costs less than a scan for each.
            seen = jax.tree.map(lambda *each: jax.lax.select_n(kind, *each), *sights.values())
            return nnx.merge(graph, params)(x, *seen, kept=kept)[0], None

        layers, first = self.config.layers, 0
        visible = None if self.visual is None else self.visual.visible(batch, x.dtype)
        unroll = layers_unrolled(layers, self.config.layers_unrolled)
        remat = functools.partial(recomputed, kind=self.config.remat, looped=unroll < layers)
        for blocks in (self.blocks,) if self.lower is None else (self.lower, self.blocks):
            graph, stacked = nnx.split(blocks)
            run = remat(functools.partial(layer, graph))
            # Frozen lower layers have a scan of their own: in one scan all layers' gradients would be computed.
            last = first + jax.tree.leaves(stacked)[0].shape[0]
            of_layers = (stacked, *jax.tree.map(lambda leaf, at=slice(first, last): leaf[at], (kinds, kept)))
            if self.visual is None or visible is None:
                x, _ = jax.lax.scan(run, x, of_layers, unroll=unroll)
            else:
                x = self.visual.scan(run, x, of_layers, visible, remat, unroll, first)
            first = last
        return self.final_norm(x)

    def _through_separate(
        self, x: Float[Array, "B L D"], batch: Batch, sights: dict[LayerKind, Sight]
    ) -> Float[Array, "B L D"]:
        """Whole rows through layers that are separate (`unstack`): nothing is skipped and nothing kept for a backward pass."""
        keys = mask = None
        if self.visual is not None:
            visual, mask = self.visual.visible(batch, x.dtype)
            keys = None if visual is None else [gated.keys(visual) for gated in self.visual.gated]
        for index, block in enumerate(self.blocks):
            x = x if self.visual is None else self.visual.before(index, x, keys, mask)
            x, _ = block(x, *sights[self.config.kind_of_layers[index]])
        return x

    def _kept(self, rows: int, dtype: DTypeLike, key: Array | None) -> Float[Array, "layers 2 B"] | None:
        """Stochastic depth (Huang et al., 2016; Gato, appendix D): factors by layer, sub-layer and row: 0 for skipped ones, the
        others scaled to keep the mean; None if nothing is skipped."""
        dropped = self.config.stochastic_depth
        if not dropped or key is None:
            return None
        # fold_in: the key itself draws patch positions, and one key must not be used twice.
        drawn = jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - dropped, (self.config.layers, 2, rows))
        return drawn.astype(dtype) / (1 - dropped)

    def hidden_cached(
        self,
        batch: Batch,
        caches: list[Cache],
        cache_segment: Int[Array, "B S"],
        cache_position: Int[Array, "B S"],
        start: Int[Array, ""] | Int[Array, "B"],
        images: ImageCache | None = None,
        slide: Slide | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float[Array, "B L D"], list[Cache]]:
        """Final hidden states of new positions, whose keys and values are written into the caches from slot `start` on.

        Args:
            batch: the new positions.
            caches: one per layer; those of layers with a window may be rings (`generalist.model.rings`).
            cache_segment: segment of each slot, the new positions already entered.
            cache_position: position of each slot, the new positions already entered.
            start: slot of the first new position, the same in all rows or one per row.
            images: the images that may be seen, by the numbers in `batch.image`; None: no images.
            slide: slots whose positions differ from those at which their keys were written.
            dtype: in which is computed; the caches may have another.
        """
        x, kinds = self.embed(batch, dtype), self.config.kind_of_layers
        ring = min(cache.key.shape[1] for cache in caches)
        sights = self.cached_sights(batch, cache_segment, cache_position, start, slide, ring)
        keys = mask = None
        if self.visual is not None and images is not None:
            keys, mask = images.keys, self.visual.cached_mask(batch.image, images)
        updated = []
        # A loop, not a scan: one cache per layer is updated in place; a stacked one would be copied every step.
        for index, (block, cache) in enumerate(zip(unstacked(self.blocks), caches, strict=True)):
            x = x if self.visual is None else self.visual.before(index, x, keys, mask)
            x, cache = block(x, *sights[kinds[index]], cache, start)
            updated.append(cache)
        return self.final_norm(x), updated

    def unstack(self) -> None:
        """Separates the layers' parameters, for inference: a step of decoding computes so little that slicing them out of the
        stack would take as long as the rest of it."""
        self.blocks = nnx.List(unstacked(self.blocks))
        if self.visual is not None:
            self.visual.gated = nnx.List(unstacked(self.visual.gated))

    @property
    def output_table(self) -> TokenTable:
        """The rows whose products with hidden states are the logits."""
        return self.tokens if self.output is None else self.output

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Next-token logits, in float32."""
        logits = self.output_table.logits(hidden)
        # In float32, like the products: the tanh flattens what distinguishes the largest logits.
        bound = self.config.logit_softcap
        return bound * jnp.tanh(logits / bound) if bound else logits

    def action_hidden(self, hidden: Float[Array, "K D"]) -> Float[Array, "K A D"]:
        """Hidden states of all dimensions of parallel actions, from those of the positions that they are read from."""
        if self.action_head is None:
            raise ValueError("the batch has parallel actions but this model was built without an action head")
        return self.action_head(hidden)

    def action_logits(self, hidden: Float[Array, "K D"]) -> Float[Array, "K A V"]:
        """Logits of parallel actions, in float32: of ids that are no text, which no such action has; others are masked."""
        products = stored_product(self.action_hidden(hidden), self.output_table.other[...].T)
        bound = self.config.logit_softcap
        logits = products.astype(jnp.float32)
        logits = bound * jnp.tanh(logits / bound) if bound else logits
        return jnp.pad(logits, ((0, 0), (0, 0), (len(self.output_table.text), 0)), constant_values=MASKED)

    def empty_caches(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> list[Cache]:
        """One empty cache per layer, of `batch` rows and `slots` positions."""
        config = self.config
        return [Cache.empty(batch, slots, config.kv_heads, config.key_size, dtype) for _ in range(config.layers)]


def create(spec: ModelSpec, seed: int) -> Transformer:
    """A freshly initialised model; the same seed gives the same weights."""
    return Transformer(spec, rngs=nnx.Rngs(seed))


def create_separate(spec: ModelSpec, seed: int) -> Transformer:
    """The same with separate layers, as inference takes it."""
    model = create(spec, seed)
    model.unstack()
    return model


def count_parameters(params) -> int:
    """Number of scalars in a tree of arrays or abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
