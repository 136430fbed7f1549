"""An image tower and a text tower whose embeddings meet: CLIP (Radford et al., 2021) and SigLIP (Zhai et al., 2023).

Dimension key: N images or texts, S pixels per side, L text pieces, D width, E embedding width, V text vocabulary.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from generalist.contrastive.config import Loss, TowersConfig
from generalist.data.rows import rows_at
from generalist.model.attention import Masked
from generalist.model.config import ModelConfig
from generalist.model.layers import Linear, RMSNorm, stack
from generalist.model.positions import placement
from generalist.model.transformer import Block
from generalist.vision.processor import DEVIATIONS, MEANS
from generalist.vision.vit import ViT, ViTConfig

PADDING = -1
"""The id of positions without a text piece. It is none of SentencePiece's ids."""
LARGEST_LOG_SCALE = math.log(100.0)
"""Similarities are multiplied by at most 100, since training is unstable above that (CLIP, section 2.5)."""


def vit_config(config: TowersConfig) -> ViTConfig:
    """The shape of the image tower: SigLIP's, so that the exported tower is loaded like a published one."""
    return ViTConfig(
        family="siglip",
        size=config.size,
        patch=config.patch,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        hidden=config.hidden,
        activation="gelu_pytorch_tanh",
        epsilon=1e-6,
        mean=MEANS["siglip"],
        deviation=DEVIATIONS["siglip"],
    )


class TextTower(nnx.Module):
    """Text pieces to one embedding: Transformer blocks with attention in both directions, then the mean over the pieces."""

    def __init__(self, config: TowersConfig, *, rngs: nnx.Rngs):
        self.config = ModelConfig(
            width=config.width,
            layers=config.text_layers,
            heads=config.heads,
            kv_heads=config.heads,
            head_size=config.width // config.heads,
            hidden=config.hidden,
        )
        self.table = nnx.Param(jax.random.normal(rngs.params(), (config.text_pieces, config.width)))
        self.blocks = stack(lambda rngs: Block(self.config, rngs=rngs), config.text_layers, rngs.params())
        self.norm = RMSNorm(config.width, rngs=rngs)
        self.projection = Linear(config.width, config.embedding, rngs=rngs)

    def __call__(self, text: Int[Array, "N L"], dtype: DTypeLike) -> Float[Array, "N E"]:
        present = text != PADDING  # (N, L)
        # Padding looks up row 0 and is masked below: an index of -1 would mean the last row.
        x = rows_at(self.table[...], jnp.maximum(text, 0)).astype(dtype)
        turned = placement(jnp.broadcast_to(jnp.arange(text.shape[1])[None], text.shape), self.config)
        seen = Masked(present[:, :, None] & present[:, None, :])  # (N, L, L)
        graph, stacked = nnx.split(self.blocks)
        x, _ = jax.lax.scan(lambda x, params: (nnx.merge(graph, params)(x, seen, turned, turned)[0], None), x, stacked)
        # (N, L, D) → (N, D): the mean over the pieces that are there; an empty text divides by 1 instead of 0.
        x = jnp.where(present[..., None], self.norm(x), 0).sum(axis=1) / jnp.maximum(present.sum(axis=1), 1)[:, None]
        return unit(self.projection(x))


class Towers(nnx.Module):
    """Both towers, and the scale and bias of their similarities."""

    def __init__(self, config: TowersConfig, loss: Loss, *, rngs: nnx.Rngs):
        self.vit = ViT(vit_config(config), rngs=rngs)
        self.projection = Linear(config.width, config.embedding, rngs=rngs)
        self.text = TextTower(config, rngs=rngs)
        # CLIP starts with a scale of 1/0.07 (section 2.5). SigLIP starts with 10 and a bias of -10: nearly all pairs of a batch
        # do not match, and without the bias the first steps would only learn that (section 3.2).
        self.log_scale = nnx.Param(jnp.log(jnp.array(1 / 0.07 if loss == "clip" else 10.0, jnp.float32)))
        self.bias = nnx.Param(jnp.array(-10.0, jnp.float32)) if loss == "siglip" else None

    def images(self, pixels: UInt8[Array, "N S S 3"], dtype: DTypeLike) -> Float[Array, "N E"]:
        """Embeddings of length 1: the mean of the patches' features, projected."""
        # The image tower itself is in float32: its features are what the export is for.
        return unit(self.projection(self.vit(pixels).mean(axis=1).astype(dtype)))

    def texts(self, text: Int[Array, "N L"], dtype: DTypeLike) -> Float[Array, "N E"]:
        """Embeddings of length 1; shorter texts end with `PADDING`."""
        return self.text(text, dtype)

    @property
    def scale(self) -> Float[Array, ""]:
        """The factor of the similarities."""
        # Learned as a logarithm, so that it stays positive and moves by shares of itself.
        return jnp.exp(self.log_scale[...])


def unit(x: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """The vectors scaled to length 1, float32."""
    # 1e-12 within the root: the gradient of a vector of zeros stays finite.
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def clip_loss(images: Float[Array, "N E"], texts: Float[Array, "N E"], scale: Float[Array, ""]) -> Float[Array, ""]:
    """Symmetric InfoNCE (CLIP, figure 3): text i must be recognised among all texts by image i, and image i among all images by
    text i; the mean of both cross-entropies."""
    # Over several devices, each one holds the rows of its own images, and the embeddings of the texts are exchanged.
    logits = scale * images @ texts.T  # (N, N)
    right = jnp.diagonal(logits)
    return (jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0) - 2 * right).mean() / 2


def siglip_loss(
    images: Float[Array, "N E"], texts: Float[Array, "N E"], scale: Float[Array, ""], bias: Float[Array, ""]
) -> Float[Array, ""]:
    """For each pair of the batch on its own, whether it matches: `−1/N Σᵢⱼ log σ(zᵢⱼ (scale · xᵢ·yⱼ + bias))` with zᵢⱼ = 1 for
    i = j and −1 otherwise (SigLIP, section 3.2)."""
    logits = scale * images @ texts.T + bias  # (N, N)
    matches = 2 * jnp.eye(len(images)) - 1  # (N, N)
    return -jax.nn.log_sigmoid(matches * logits).sum() / len(images)
