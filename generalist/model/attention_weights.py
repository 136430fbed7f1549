"""What positions look at: the attention weights of every layer, taken from the same parameters and inputs as its outputs.

Dimension key: L positions of a row, Q of them that are asked about, D width, Y layers, G gated layers, N heads, I images of the
row, K visual tokens per image, S cells of the encoder's grid.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from generalist.data.batch import Batch
from generalist.model.cross_attention import gate
from generalist.model.layers import unstacked
from generalist.model.masks import Blocks, attention_mask
from generalist.model.transformer import Transformer


class Looks(NamedTuple):
    """The attention weights of Q positions of a row, as means over the heads."""

    positions: Float[Array, "Y Q L"]
    """Weights of the row's positions in each layer; each row of them sums to 1."""
    images: Float[Array, "G Q I S"]
    """Weights of the cells of each image in each gated layer; they sum to 1, or to 0 where no image is seen."""
    gates: Float[Array, "G 2"]
    """Opening of each gated layer's attention and feed-forward; of gates with a number per channel the mean size."""


def looks(
    model: Transformer, batch: Batch, places: Int[Array, "Q"], dtype: DTypeLike
) -> tuple[Looks, Float[Array, "1 L D"]]:
    """What some positions of a row look at, and the row's final hidden states.

    Args:
        model: with separate layers (`Transformer.unstack`).
        batch: one row that is one segment, its padding excepted.
        places: the positions.
    """
    config, sights = model.config, model.sights(batch)
    at = (batch.segment, batch.position, batch.segment, batch.position)
    block = None if config.blocks == "none" else jnp.asarray(batch.block)
    blocks = None if block is None else Blocks(block, block, config.blocks == "whole")
    reach = {kind: config.window if kind.startswith("window") else None for kind in sights}
    masks = {kind: attention_mask(*at, reach=back, blocks=blocks) for kind, back in reach.items()}
    visual = mask = cells = None
    if model.visual is not None:
        visual, mask = model.visual.visible(batch, dtype)
        cells = model.visual.sources(batch, dtype)
    x = model.embed(batch, dtype)
    to_positions, to_images = [], []
    for index, layer in enumerate(unstacked(model.blocks)):
        gated = None if model.visual is None else model.visual.layer_before(index)
        if gated is not None:
            keys = None if visual is None else gated.keys(visual)
            if keys is not None and mask is not None:
                to_tokens = gated.weights(x[:, places], keys, mask[:, places])[0].mean(axis=0)  # (Q, I, K)
                to_tokens = jnp.where(mask[0, places].any(axis=-1)[:, None, None], to_tokens, 0.0)
                to_images.append(jnp.einsum("qik,iks->qis", to_tokens, cells))
            x = gated(x, keys, mask)
        kind = config.kind_of_layers[index]
        inside = layer.attention.weights(layer.attention_norm(x), masks[kind], sights[kind].placed, places)
        to_positions.append(inside[0].mean(axis=0))
        x, _ = layer(x, *sights[kind])
    found = Looks(jnp.stack(to_positions), _stacked(to_images, len(places)), openings(model))
    return found, model.final_norm(x)


def openings(model: Transformer) -> Float[Array, "G 2"]:
    """How far the gates of each gated layer are open: tanh of its parameters (Flamingo, section 2.2)."""
    if model.visual is None:
        return jnp.zeros((0, 2))
    one = jnp.zeros((1, 1, 1), jnp.float32)

    def opening(alpha) -> Float[Array, ""]:
        open = gate(alpha, one)
        return open[0, 0, 0] if open.size == 1 else jnp.abs(open).mean()

    pairs = [(layer.attention_gate, layer.feed_forward_gate) for layer in unstacked(model.visual.gated)]
    return jnp.array([[opening(alpha) for alpha in pair] for pair in pairs])


def _stacked(found: list[Float[Array, "Q I S"]], count: int) -> Float[Array, "G Q I S"]:
    return jnp.stack(found) if found else jnp.zeros((0, count, 0, 0))
