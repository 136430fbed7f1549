"""Training of an image tokenizer: its losses, and what the common loop is given.

Dimension key: N images, S pixels per side.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, UInt8
from rich.console import Console

from generalist.data.batch import ArrayLike
from generalist.data.drawn_batches import DrawnBatches
from generalist.image_tokenizer.config import ImageTokenizerConfig
from generalist.model.transformer import count_parameters
from generalist.training import loop
from generalist.training.sharding import make_mesh, rows_sharding
from generalist.training.state import Parameters, TrainState
from generalist.training.step import Gradients, Trainer, compile_trainer
from generalist.vision.autoencoder import Autoencoder, rounded
from generalist.vision.efficientnet import block_outputs, folded, weights_file
from generalist.vision.image_tokenizer import (
    ImageTokenizer,
    fresh_autoencoder,
    graph_of,
    standardised,
    straight_pixels,
)
from generalist.weights.legacy_torch import read_tensors

BLOCKS = (0, 2)
"""Blocks of the frozen encoder whose features are compared: cells of 2×2 and of 4×4 pixels, in which details are still there."""
Distance = Callable[[Float[Array, "N S S 3"], Float[Array, "N S S 3"]], Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageSums:
    """Metrics of a batch of images."""

    psnr: Float[ArrayLike, ""]
    """Peak signal-to-noise ratio of the reconstructions in dB, of the mean squared error of the batch."""
    perceptual: Float[ArrayLike, ""]
    """Perceptual distance."""
    stable: Float[ArrayLike, ""]
    """Share of the codes that encoding the decoded image gives again."""


def make_image_trainer(config: ImageTokenizerConfig) -> Trainer:
    """Builds the trainer for all devices; nothing is computed before its `initialize` is called.

    Raises:
        ImportError, WeightsError: the frozen encoder's weights are missing or damaged, and `perceptual` is above 0.
    """
    seed = config.training.seed
    parameters = Parameters(draw=lambda: nnx.to_pure_dict(nnx.state(fresh_autoencoder(config.shape, seed), nnx.Param)))
    return compile_trainer(parameters, make_gradients(config), config.training, make_mesh(config.training))


def make_gradients(config: ImageTokenizerConfig) -> Gradients:
    """The function that computes loss and gradients of a batch: mean squared error, perceptual distance and the distance between
    codes and those of their decoded image, each by its weight. All in float32."""
    graph = graph_of(config.shape)
    distance = perceptual_distance() if config.perceptual else None

    def loss(params: Any, pixels: UInt8[Array, "N S S 3"]) -> tuple[Float[Array, ""], ImageSums]:
        network: Autoencoder = nnx.merge(graph, params)
        images = standardised(pixels)
        digits = rounded(network.latents(images))
        decoded = network.images(digits)
        error = jnp.mean(jnp.square(decoded - images))
        perceptual = distance(decoded, images) if distance is not None else jnp.zeros(())
        # The codes are the target and do not follow: otherwise all images would soon have the same ones, the stablest of all.
        again, kept = network.latents(straight_pixels(decoded)), jax.lax.stop_gradient(digits)
        drift = jnp.mean(jnp.square(again - kept))
        sums = ImageSums(
            psnr=-10 * jnp.log10(error / 4),  # the images' range is 2, so its square is 4
            perceptual=perceptual,
            stable=jnp.mean(jnp.all(jnp.round(again) == jnp.round(kept), axis=-1)),
        )
        return error + config.perceptual * perceptual + config.stability * drift, sums

    def gradients(
        params: Any, frozen: Any, batch: UInt8[Array, "N S S 3"], key: Key[Array, ""]
    ) -> tuple[tuple[Float[Array, ""], ImageSums], Any]:
        del frozen, key  # no parameter is frozen, and nothing is drawn in the step
        return jax.value_and_grad(loss, has_aux=True)(params, batch)

    return gradients


def perceptual_distance() -> Distance:
    """The mean squared distance of the features that EfficientNet-Lite0 has of two batches of images from -1 to 1, each scaled to
    length 1 (LPIPS; Zhang et al., 2018, section 3, without its learned weights).

    Raises:
        ImportError, WeightsError: the weights are missing or damaged.
    """
    params = folded(read_tensors(weights_file()))

    def directions(images: Float[Array, "N S S 3"]) -> list[Float[Array, "N h w C"]]:
        def scaled(x: Float[Array, "N h w C"]) -> Float[Array, "N h w C"]:
            # 1e-6 within the root: the gradient of a cell of zeros stays finite.
            return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)

        found = block_outputs(params, (images + 1.0) * 127.5, max(BLOCKS) + 1)
        return [scaled(found[block]) for block in BLOCKS]

    def distance(decoded: Float[Array, "N S S 3"], images: Float[Array, "N S S 3"]) -> Float[Array, ""]:
        pairs = zip(directions(decoded), directions(jax.lax.stop_gradient(images)), strict=True)
        return jnp.mean(jnp.stack([jnp.square(one - other).sum(axis=-1).mean() for one, other in pairs]))

    return distance


@dataclasses.dataclass(frozen=True)
class ImageReadout:
    """Means of the metrics of batches of images, and the speed of training."""

    batch: int
    """Images per step."""

    def values(self, sums: ImageSums, *, steps: int, sound: int, seconds: float, params: Any) -> dict[str, float]:
        """As in `ImageSums`; `images_per_second` counts the images of steps that were not skipped."""
        del steps, params
        means = {name: float(value) / max(1, sound) for name, value in vars(sums).items()}
        return {"images_per_second": self.batch * sound / seconds, **means}

    def describe(self, values: Mapping[str, float]) -> str:
        return f"{values['psnr']:.1f} dB, {values['stable']:.1%} stable, {values['images_per_second']:.0f} images/s"

    def origin(self, parts: ImageSums) -> str:
        del parts
        return ""

    def breakdown(self, parts: ImageSums) -> str:
        del parts
        return ""


def place(batch: tuple[UInt8[np.ndarray, "N S S 3"]], mesh: Mesh) -> UInt8[Array, "N S S 3"]:
    """A batch on the devices, its images split over them."""
    return jax.device_put(batch[0], rows_sharding(batch[0].shape, mesh))


def train(config: ImageTokenizerConfig, batches: DrawnBatches, console: Console) -> TrainState:
    """Trains to `training.steps`, from the run's newest checkpoint if it has one; `batches` are closed at the end.

    Raises:
        Interrupted, FloatingPointError, OSError: as `loop.train`.
    """
    trainer = make_image_trainer(config)
    console.print(
        f"{count_parameters(trainer.abstract_state.params) / 1e6:.2f} M parameters, {config.shape.cells} codes of "
        f"{config.shape.codebook} per image, {config.batch} images per step",
        highlight=False,
    )
    return loop.train(
        config, trainer, batches, lambda batch: place(batch, trainer.mesh), ImageReadout(config.batch), console
    )


def trained(config: ImageTokenizerConfig, state: TrainState) -> ImageTokenizer:
    """The tokenizer with the trained weights; with `training.ema` their moving average, otherwise the last ones."""
    return ImageTokenizer(config.shape, state.mean_params if config.training.ema else state.params)
