"""The jitted training step, the same for every loss: gradients, clipping, optimizer, moving average, metrics.

Dimension key: N rows of a batch, C micro-batches, M rows of a micro-batch (N = C · M).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key, Shaped

from generalist.config.run import TrainingConfig
from generalist.data.batch import ArrayLike
from generalist.model.params import flat, nested
from generalist.system.tpu_options import step_options
from generalist.training.optimizer import make_optimizer
from generalist.training.state import Parameters, TrainState, abstract_state, compute_dtype, fresh_state

Gradients = Callable[[Any, Any, Any, Key[Array, ""]], tuple[tuple[Float[Array, ""], Any], Any]]
"""From trained parameters, frozen ones, batch and key to ((loss, what else was measured), gradients of the trained ones)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What a step measured: JAX arrays that become numpy arrays once they are fetched."""

    loss: Float[ArrayLike, ""]
    """May be infinite or NaN in a skipped step."""
    gradient_norm: Float[ArrayLike, ""]
    """Global norm before clipping."""
    skipped: Float[ArrayLike, ""]
    """1 if the loss or a gradient was not finite, so that the parameters did not change; otherwise 0."""
    parts: Any
    """What else the loss measured: sums over the batch, so that several steps can be averaged exactly."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """The compiled functions of a run, and where its state lives on the mesh."""

    initialize: Callable[[Any], TrainState]
    """Draws the parameters, except those that are given, nested; {} gives none."""
    step: Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, StepMetrics]]
    """One step from state, batch and key. Donates the state: only the returned one may be used."""
    state_shardings: TrainState
    """A `NamedSharding` in place of every array."""
    abstract_state: TrainState
    """A `jax.ShapeDtypeStruct` with its sharding in place of every array."""
    mesh: Mesh


def compile_trainer(
    parameters: Parameters,
    gradients: Gradients,
    training: TrainingConfig,
    mesh: Mesh,
    project: Callable[[Any], Any] = lambda params: params,
) -> Trainer:
    """Builds the trainer of a loss; nothing is computed before `initialize` is called.

    Args:
        parameters: how they are drawn and divided.
        gradients: of the loss.
        project: applied to the parameters after each update, to keep some of them within a range.
    """
    optimizer, dtype = make_optimizer(training), compute_dtype(training.dtype, mesh.devices.flat[0].platform)
    abstract = abstract_state(parameters, training, optimizer, dtype, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    of_path = flat(shardings.params) | flat(shardings.frozen)

    def initialize(given: Any) -> TrainState:
        # Placed before the call: a pretrained trunk need not fit one device whole.
        placed = {path: jax.device_put(array, of_path[path]) for path, array in flat(given).items()}
        with jax.set_mesh(mesh):
            return jax.jit(
                lambda given: fresh_state(parameters, training, optimizer, dtype, given), out_shardings=shardings
            )(nested(placed))

    step = make_step(gradients, optimizer, training.ema, project)
    return Trainer(
        initialize=initialize,
        step=jax.jit(
            step,
            donate_argnums=(0,),
            out_shardings=(shardings, NamedSharding(mesh, P())),
            compiler_options=step_options(mesh.devices.flat[0].platform),
        ),
        state_shardings=shardings,
        abstract_state=abstract,
        mesh=mesh,
    )


def make_step(
    gradients: Gradients, optimizer: optax.GradientTransformation, ema: float, project: Callable[[Any], Any]
) -> Callable[[TrainState, Any, Array], tuple[TrainState, StepMetrics]]:
    """The function that `Trainer.step` compiles.

    Args:
        ema: decay of the moving average of the weights; 0: none is kept.
        project: as in `compile_trainer`.
    """

    def step(state: TrainState, batch: Any, key: Key[Array, ""]) -> tuple[TrainState, StepMetrics]:
        # One key per step, derived from its number: a resumed run draws what an uninterrupted one would have drawn.
        (value, parts), gradient = gradients(state.params, state.frozen, batch, jax.random.fold_in(key, state.step))
        norm = optax.tree.norm(gradient)
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = project(optax.apply_updates(state.params, updates))
        # One bad batch must neither end a long run nor leave NaN in the moments: the step is undone, except for its number.
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        # A young average follows faster, so that the random weights of the beginning are soon forgotten: the decay is at most
        # (1 + step) / (10 + step), as in TensorFlow's ExponentialMovingAverage.
        share = jnp.where(sound, jnp.maximum(1 - ema, 9 / (10 + state.step)), 0)
        mean_params = optax.incremental_update(params if ema else {}, state.mean_params, share)
        metrics = StepMetrics(loss=value, gradient_norm=norm, skipped=1.0 - sound, parts=parts)
        # Skipped steps count too: `state.step` is the number of batches that were taken from the data.
        following = dataclasses.replace(
            state, step=state.step + 1, params=params, mean_params=mean_params, opt_state=opt_state
        )
        return following, metrics

    return step


def split(x: Shaped[Array, "N ..."], shards: int, count: int) -> Shaped[Array, "C M ..."]:
    """An array of a batch, divided into micro-batches.

    Args:
        shards: equal pieces that `x` consists of.
        count: C; each micro-batch gets every C-th piece.
    """
    # Every C-th piece rather than C consecutive blocks: a device holds consecutive pieces, and so has a part of every
    # micro-batch. With blocks, each micro-batch would be on a few devices while the others wait.
    pieces = x.reshape(shards // count, count, x.shape[0] // shards, *x.shape[1:])  # (shards / C, C, N / shards, ...)
    return jnp.moveaxis(pieces, 1, 0).reshape(count, x.shape[0] // count, *x.shape[1:])
