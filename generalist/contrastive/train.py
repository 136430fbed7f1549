"""The contrastive step, its loop, and the export of the encoder that it leaves."""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from rich.console import Console

from generalist.contrastive.config import ContrastiveConfig
from generalist.contrastive.data import PairBatches
from generalist.contrastive.dual import fresh_towers
from generalist.contrastive.towers import LARGEST_LOG_SCALE, Towers, clip_loss, siglip_loss, vit_config
from generalist.model.params import flat
from generalist.model.transformer import count_parameters
from generalist.training.checkpoint import Checkpoints
from generalist.training.loop import Interrupt, Interrupted
from generalist.training.metrics import Metrics
from generalist.training.optimizer import make_optimizer, schedule
from generalist.training.sharding import make_mesh, moment_shardings, parameter_shardings, rows_sharding
from generalist.training.step import TrainState, compute_dtype
from generalist.vision.vit import save_vit
from generalist.weights.folder import save_tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveTrainer:
    """The compiled pieces of a run."""

    initialize: Callable[[], TrainState]
    step: Callable[[TrainState, Array, Array], tuple[TrainState, dict[str, Array]]]
    """State, pixels and text ids to the next state and metrics; donates the state."""
    abstract_state: TrainState
    mesh: jax.sharding.Mesh

    def place(self, arrays: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
        """A batch on the devices, its rows split over them."""
        return tuple(jax.device_put(array, rows_sharding(array.shape, self.mesh)) for array in arrays)


def make_contrastive_trainer(config: ContrastiveConfig) -> ContrastiveTrainer:
    """Builds the trainer over all devices; nothing is computed yet."""
    training = config.training
    mesh = make_mesh(training)
    optimizer, dtype = make_optimizer(training), compute_dtype(training.dtype, jax.default_backend())

    def fresh() -> TrainState:
        params = nnx.to_pure_dict(nnx.state(fresh_towers(config), nnx.Param))
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params, frozen={}, mean_params={}, opt_state=optimizer.init(params)
        )

    graph, _ = nnx.split(nnx.eval_shape(lambda: fresh_towers(config)), nnx.Param)
    abstract = jax.eval_shape(fresh)
    shardings = parameter_shardings(abstract.params, mesh)
    replicated = NamedSharding(mesh, P())
    state_shardings = TrainState(
        step=replicated,
        params=shardings,
        frozen={},
        mean_params={},
        opt_state=moment_shardings(abstract.opt_state, shardings),
    )

    def loss(params, pixels, text):
        towers: Towers = nnx.merge(graph, params)
        images, texts = towers.images(pixels, dtype), towers.texts(text, dtype)
        if towers.bias is None:
            value = clip_loss(images, texts, towers.scale)
        else:
            value = siglip_loss(images, texts, towers.scale, towers.bias[...])
        right = (images @ texts.T).argmax(axis=1) == jnp.arange(len(images))
        return value, {"loss": value, "accuracy": right.mean(), "scale": towers.scale}

    def step(state: TrainState, pixels: Array, text: Array) -> tuple[TrainState, dict[str, Array]]:
        gradients, metrics = jax.grad(loss, has_aux=True)(state.params, pixels, text)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The parameter itself is clamped: a clamp in the loss would have no gradient that brings it back.
        params |= {"log_scale": jnp.minimum(params["log_scale"], LARGEST_LOG_SCALE)}
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    return ContrastiveTrainer(
        initialize=jax.jit(fresh, out_shardings=state_shardings),
        step=jax.jit(step, donate_argnums=(0,), out_shardings=(state_shardings, replicated)),
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            state_shardings,
        ),
        mesh=mesh,
    )


def train(config: ContrastiveConfig, batches: PairBatches, console: Console) -> TrainState:
    """Trains to `training.steps`, from the run's newest checkpoint if it has one."""
    training, trainer = config.training, make_contrastive_trainer(config)
    checkpoints = Checkpoints(training.checkpoints or str(config.folder / "checkpoints"), training)
    if checkpoints.latest is None:
        state = trainer.initialize()
    else:
        console.print(f"going on from the checkpoint of step {checkpoints.latest}", highlight=False)
        state, position = checkpoints.restore(trainer.abstract_state)
        batches.go_to(position["step"])
    start = int(state.step)
    console.print(
        f"{count_parameters(state.params) / 1e6:.2f} M parameters, {config.batch} pairs a step, {config.loss} loss, "
        f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)",
        highlight=False,
    )
    with Metrics(config.folder, training.steps, start, console) as metrics, Interrupt() as interrupt:
        state, last = _steps(config, trainer, state, batches, checkpoints, metrics, interrupt)
        metrics.advance(int(state.step), "saving")
        checkpoints.save(state, {"step": batches.step}, last)
        checkpoints.wait()
    checkpoints.close()
    if interrupt.asked:
        raise Interrupted(f"stopped at step {int(state.step)} and saved; the same command goes on from there")
    return state


def _steps(
    config: ContrastiveConfig,
    trainer: ContrastiveTrainer,
    state: TrainState,
    batches: PairBatches,
    checkpoints: Checkpoints,
    metrics: Metrics,
    interrupt: Interrupt,
) -> tuple[TrainState, dict[str, float]]:
    training = config.training
    rate = schedule(training)
    values: dict[str, float] = {}
    begun, waited, since = time.perf_counter(), 0.0, int(state.step)
    with jax.set_mesh(trainer.mesh):
        for step in range(int(state.step) + 1, training.steps + 1):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            state, entry = trainer.step(state, *trainer.place(batch))
            if step % training.log_every == 0 or step == training.steps:
                values = {name: float(value) for name, value in entry.items()}
                if not np.isfinite(values["loss"]):
                    raise FloatingPointError(
                        f"loss {values['loss']} at step {step}: lower training.learning_rate; the last checkpoint is whole"
                    )
                seconds = time.perf_counter() - begun
                values |= {
                    "learning_rate": float(rate(step - 1)),
                    "pairs_per_second": (step - since) * config.batch / seconds,
                    "waiting": waited / seconds,
                }
                metrics.write(step, values)
                metrics.advance(
                    step,
                    f"loss {values['loss']:.3f} right {values['accuracy']:.0%} {values['pairs_per_second']:.0f} pairs/s "
                    f"wait {values['waiting']:.0%}",
                )
                begun, waited, since = time.perf_counter(), 0.0, step
            else:
                jax.block_until_ready(entry["loss"])
                metrics.advance(step)
            if step % training.checkpoint_every == 0 and step < training.steps:
                checkpoints.save(state, {"step": batches.step}, values)
            if interrupt.asked:
                break
    return state, values


def export(config: ContrastiveConfig, params: Any) -> None:
    """Writes all weights, nested, and the image tower as a folder that loaders of SigLIP read; each is whole or not there."""
    params = jax.device_get(params)
    with tempfile.TemporaryDirectory(dir=config.folder, prefix=".export.") as temporary:
        whole = Path(temporary)
        save_tensors({path: np.asarray(leaf) for path, leaf in flat(params).items()}, whole / "towers.safetensors")
        save_vit(whole / "encoder", vit_config(config.towers), params["vit"])
        shutil.rmtree(config.folder / "encoder", ignore_errors=True)
        (whole / "encoder").rename(config.folder / "encoder")
        (whole / "towers.safetensors").rename(config.folder / "towers.safetensors")
