"""An image tower and a text tower whose embeddings meet: CLIP (Radford et al., 2021) and SigLIP (Zhai et al., 2023).

Dimension key: N images or texts, S pixels on a side, L text pieces, D width, E embedding width.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from generalist.contrastive.config import Loss, TowersConfig
from generalist.data.rows import rows_at
from generalist.model.attention import Masked, angles
from generalist.model.config import ModelConfig
from generalist.model.layers import Linear, RMSNorm, stack
from generalist.model.transformer import Block
from generalist.vision.processor import DEVIATIONS, MEANS
from generalist.vision.vit import ViT, ViTConfig

PADDING = -1
"""Stands where a text has no piece."""
LARGEST_LOG_SCALE = math.log(100.0)
"""Similarities are multiplied by 100 at most, to which each step clamps the parameter; above, training is unstable (CLIP,
section 2.5)."""


def vit_config(config: TowersConfig) -> ViTConfig:
    """The image tower's shape: SigLIP's, so that it is loaded as such."""
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
    """Text pieces to one embedding: Transformer blocks that see the whole text, then the mean over it."""

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

    def __call__(self, text: Int[Array, "N L"], dtype: jnp.dtype) -> Float[Array, "N E"]:
        present = text != PADDING
        x = rows_at(self.table[...], jnp.maximum(text, 0)).astype(dtype)
        turned = angles(jnp.broadcast_to(jnp.arange(text.shape[1])[None], text.shape), self.config)
        seen = Masked(present[:, :, None] & present[:, None, :])
        graph, stacked = nnx.split(self.blocks)
        x, _ = jax.lax.scan(lambda x, params: (nnx.merge(graph, params)(x, seen, turned, turned)[0], None), x, stacked)
        x = jnp.where(present[..., None], self.norm(x), 0).sum(axis=1) / jnp.maximum(present.sum(axis=1), 1)[:, None]
        return unit(self.projection(x))


class Towers(nnx.Module):
    """Both towers, and the scale and bias of their similarities."""

    def __init__(self, config: TowersConfig, loss: Loss, *, rngs: nnx.Rngs):
        self.vit = ViT(vit_config(config), rngs=rngs)
        self.projection = Linear(config.width, config.embedding, rngs=rngs)
        self.text = TextTower(config, rngs=rngs)
        # CLIP starts at 1/0.07, SigLIP at 10 with a bias that says: nearly all pairs do not match.
        self.log_scale = nnx.Param(jnp.log(jnp.array(1 / 0.07 if loss == "clip" else 10.0, jnp.float32)))
        self.bias = nnx.Param(jnp.array(-10.0, jnp.float32)) if loss == "siglip" else None

    def images(self, pixels: UInt8[Array, "N S S 3"], dtype: jnp.dtype) -> Float[Array, "N E"]:
        """Unit embeddings: the mean of the patches' features, projected."""
        return unit(self.projection(self.vit(pixels).mean(axis=1).astype(dtype)))

    def texts(self, text: Int[Array, "N L"], dtype: jnp.dtype) -> Float[Array, "N E"]:
        """Unit embeddings of texts; `PADDING` closes the shorter ones."""
        return self.text(text, dtype)

    @property
    def scale(self) -> Float[Array, ""]:
        """What similarities are multiplied by."""
        return jnp.exp(self.log_scale[...])


def unit(x: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """Vectors of length 1, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def clip_loss(images: Float[Array, "N E"], texts: Float[Array, "N E"], scale: Float[Array, ""]) -> Float[Array, ""]:
    """Symmetric InfoNCE: image i is to be told from all images by text i, and the other way round; the mean of both directions
    (CLIP, figure 3). Over several devices each holds its images' rows of the similarities, and the texts go round."""
    logits = scale * images @ texts.T
    right = jnp.diagonal(logits)
    return (jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0) - 2 * right).mean() / 2


def siglip_loss(
    images: Float[Array, "N E"], texts: Float[Array, "N E"], scale: Float[Array, ""], bias: Float[Array, ""]
) -> Float[Array, ""]:
    """Every pair of the batch on its own: does it match? `−1/N Σᵢⱼ log σ(zᵢⱼ (scale · xᵢ·yⱼ + bias))` (SigLIP, section 3.2)."""
    logits = scale * images @ texts.T + bias
    matches = 2 * jnp.eye(len(images)) - 1
    return -jax.nn.log_sigmoid(matches * logits).sum() / len(images)
