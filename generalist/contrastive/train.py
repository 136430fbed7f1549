"""Contrastive training: what the common loop is given for pairs of images and texts, and the export of the trained encoder.

Dimension key: N pairs, S pixels per side, L text pieces, E embedding width, C micro-batches, M pairs of one (N = C · M).
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8
from rich.console import Console

from generalist.contrastive.config import ContrastiveConfig
from generalist.contrastive.data import PairBatches
from generalist.contrastive.dual import fresh_towers
from generalist.contrastive.towers import LARGEST_LOG_SCALE, Towers, clip_loss, siglip_loss, vit_config
from generalist.data.batch import ArrayLike
from generalist.model.params import flat
from generalist.model.transformer import count_parameters
from generalist.training import loop
from generalist.training.sharding import make_mesh, rows_sharding
from generalist.training.state import Parameters, TrainState, compute_dtype
from generalist.training.step import Gradients, Trainer, compile_trainer, split
from generalist.vision.vit import save_vit
from generalist.weights.folder import save_tensors

Pairs = tuple[UInt8[Array, "N S S 3"], Int[Array, "N L"]]
"""A batch: pixels and text ids."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairSums:
    """Metrics of a batch of pairs."""

    accuracy: Float[ArrayLike, ""]
    """Share of the images whose own text is the nearest one of the batch."""
    scale: Float[ArrayLike, ""]
    """The factor of the similarities."""


def make_contrastive_trainer(config: ContrastiveConfig) -> Trainer:
    """Builds the trainer for all devices; nothing is computed before its `initialize` is called."""
    mesh = make_mesh(config.training)
    parameters = Parameters(draw=lambda: nnx.to_pure_dict(nnx.state(fresh_towers(config), nnx.Param)))
    dtype = compute_dtype(config.training.dtype, mesh.devices.flat[0].platform)

    def clamped(params: Any) -> Any:
        # The parameter itself is clamped: beyond a clamp in the loss, no gradient would bring it back.
        return params | {"log_scale": jnp.minimum(params["log_scale"], LARGEST_LOG_SCALE)}

    return compile_trainer(parameters, make_gradients(config, dtype), config.training, mesh, clamped)


def make_gradients(config: ContrastiveConfig, dtype: np.dtype) -> Gradients:
    """Makes the function that computes loss and gradients of a batch, in which every pair is compared with all others.

    Micro-batches change neither of them. Each is embedded without keeping activations, the loss is over all embeddings
    together, and in the backward pass each is embedded once more for its part of the gradient (GradCache; Gao et al., 2021).

    Args:
        dtype: compute dtype.
    """
    graph, _ = nnx.split(nnx.eval_shape(lambda: fresh_towers(config)), nnx.Param)
    count = config.training.parts

    def embed(params: Any, batch: Pairs) -> tuple[Float[Array, "N E"], Float[Array, "N E"]]:
        towers: Towers = nnx.merge(graph, params)
        pixels, text = batch
        return towers.images(pixels, dtype), towers.texts(text, dtype)

    def embed_all(params: Any, batch: Pairs) -> tuple[Float[Array, "N E"], Float[Array, "N E"]]:
        if count == 1:
            return embed(params, batch)
        parts = jax.tree.map(lambda x: split(x, len(x), count), batch)  # (C, M, ...)
        # `checkpoint` keeps the pixels of a micro-batch but no activation; the transposed scan adds up the gradients.
        found = jax.lax.map(jax.checkpoint(lambda part: embed(params, part)), parts)  # (C, M, E)
        # Micro-batch i has the pairs i, i + C, ...: with C as the second axis, the pairs are in their order again.
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, x.shape[-1]), found)

    def loss(params: Any, batch: Pairs) -> tuple[Float[Array, ""], PairSums]:
        images, texts = embed_all(params, batch)
        towers: Towers = nnx.merge(graph, params)
        if towers.bias is None:
            value = clip_loss(images, texts, towers.scale)
        else:
            value = siglip_loss(images, texts, towers.scale, towers.bias[...])
        # Without scale and bias, which do not change the order.
        right = (images @ texts.T).argmax(axis=1) == jnp.arange(len(images))
        return value, PairSums(accuracy=right.mean(), scale=towers.scale)

    def gradients(
        params: Any, frozen: Any, batch: Pairs, key: Key[Array, ""]
    ) -> tuple[tuple[Float[Array, ""], PairSums], Any]:
        del frozen, key  # no parameter is frozen, and nothing is drawn in the step
        return jax.value_and_grad(loss, has_aux=True)(params, batch)

    return gradients


def place(batch: tuple[UInt8[np.ndarray, "N S S 3"], Int[np.ndarray, "N L"]], mesh: Mesh) -> Pairs:
    """A batch on the devices, with its pairs split over them."""
    pixels, text = (jax.device_put(array, rows_sharding(array.shape, mesh)) for array in batch)
    return pixels, text


@dataclasses.dataclass(frozen=True)
class PairReadout:
    """Means of the metrics of batches of pairs, and the speed of training."""

    batch: int
    """Pairs per step."""

    def values(self, sums: PairSums, *, steps: int, sound: int, seconds: float, params: Any) -> dict[str, float]:
        """`accuracy` and `scale` as in `PairSums`; `pairs_per_second` counts the pairs of steps that were not skipped."""
        del steps, params
        means = {name: float(value) / max(1, sound) for name, value in vars(sums).items()}
        return {"pairs_per_second": self.batch * sound / seconds, **means}

    def describe(self, values: Mapping[str, float]) -> str:
        return (
            f"loss {values['loss']:.3f} right {values['accuracy']:.0%} {values['pairs_per_second']:.0f} pairs/s "
            f"wait {values['waiting']:.0%}"
        )

    def origin(self, parts: PairSums) -> str:
        del parts
        return ""

    def breakdown(self, parts: PairSums) -> str:
        del parts
        return ""


def train(config: ContrastiveConfig, batches: PairBatches, console: Console) -> TrainState:
    """Trains to `training.steps`, from the run's newest checkpoint if it has one; `batches` are closed at the end.

    Raises:
        Interrupted, FloatingPointError, OSError: as `loop.train`.
    """
    trainer = make_contrastive_trainer(config)
    console.print(
        f"{count_parameters(trainer.abstract_state.params) / 1e6:.2f} M parameters, {config.batch} pairs per step, "
        f"{config.loss} loss, {jax.device_count()} {jax.devices()[0].device_kind} device(s)",
        highlight=False,
    )
    return loop.train(
        config, trainer, batches, lambda batch: place(batch, trainer.mesh), PairReadout(config.batch), console
    )


def final_params(config: ContrastiveConfig, state: TrainState) -> Any:
    """The weights that are exported and scored: with `training.ema` their moving average, otherwise the last ones."""
    return state.mean_params if config.training.ema else state.params


def export(config: ContrastiveConfig, params: Any) -> None:
    """Writes all weights as one file, and the image tower as a folder in SigLIP's format. Each is complete or absent.

    Args:
        params: nested.
    """
    params = jax.device_get(params)
    # Written beside their places, on the same file system, so that renaming them is one step.
    with tempfile.TemporaryDirectory(dir=config.folder, prefix=".export.") as temporary:
        whole = Path(temporary)
        save_tensors({path: np.asarray(leaf) for path, leaf in flat(params).items()}, whole / "towers.safetensors")
        save_vit(whole / "encoder", vit_config(config.towers), params["vit"])
        shutil.rmtree(config.folder / "encoder", ignore_errors=True)  # a folder cannot be renamed onto another one
        (whole / "encoder").rename(config.folder / "encoder")
        (whole / "towers.safetensors").rename(config.folder / "towers.safetensors")
