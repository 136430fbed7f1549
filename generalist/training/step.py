"""The one jitted training step, for any loss: gradients, clipping, the optimizer, the moving average, and what was measured."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from generalist.config.run import TrainingConfig
from generalist.data.batch import ArrayLike
from generalist.model.params import flat, nested
from generalist.training.optimizer import make_optimizer
from generalist.training.state import Parameters, TrainState, abstract_state, compute_dtype, fresh_state

Gradients = Callable[[Any, Any, Any, Array], tuple[tuple[Array, Any], Any]]
"""Trained parameters, frozen ones, a batch and a key to ((loss, what else was measured), gradients of the trained ones)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What a step measured; numpy once it is fetched."""

    loss: Float[ArrayLike, ""]
    """Not finite in a step that was skipped for it."""
    gradient_norm: Float[ArrayLike, ""]
    """Before clipping."""
    skipped: Float[ArrayLike, ""]
    """1 where the loss or a gradient was not finite: the parameters are as before; else 0."""
    parts: Any
    """What else the loss measures: sums over the batch, so that several steps can be averaged exactly."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """The compiled pieces of a run: how to start, how to step, and where everything lives on the mesh."""

    initialize: Callable[[Any], TrainState]
    """Fresh parameters, except for those given, nested; {} gives none."""
    step: Callable[[TrainState, Any, Array], tuple[TrainState, StepMetrics]]
    """Donates the state: use only the returned one."""
    state_shardings: TrainState
    abstract_state: TrainState
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
        project: applied to the parameters after each update, for those that must stay within a range.
    """
    optimizer, dtype = make_optimizer(training), compute_dtype(training.dtype, mesh.devices.flat[0].platform)
    abstract = abstract_state(parameters, training, optimizer, dtype, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    of_path = flat(shardings.params) | flat(shardings.frozen)

    def initialize(given: Any) -> TrainState:
        placed = {path: jax.device_put(array, of_path[path]) for path, array in flat(given).items()}
        with jax.set_mesh(mesh):
            return jax.jit(
                lambda given: fresh_state(parameters, training, optimizer, dtype, given), out_shardings=shardings
            )(nested(placed))

    step = make_step(gradients, optimizer, training.ema, project)
    return Trainer(
        initialize=initialize,
        step=jax.jit(step, donate_argnums=(0,), out_shardings=(shardings, NamedSharding(mesh, P()))),
        state_shardings=shardings,
        abstract_state=abstract,
        mesh=mesh,
    )


def make_step(
    gradients: Gradients, optimizer: optax.GradientTransformation, ema: float, project: Callable[[Any], Any]
) -> Callable[[TrainState, Any, Array], tuple[TrainState, StepMetrics]]:
    """The step that is compiled: state, batch and key to the next state and what was measured."""

    def step(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, StepMetrics]:
        # One key a step, derived from its number: a resumed run draws what the uninterrupted one would have drawn.
        (value, parts), gradient = gradients(state.params, state.frozen, batch, jax.random.fold_in(key, state.step))
        norm = optax.tree.norm(gradient)
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = project(optax.apply_updates(state.params, updates))
        # One bad batch must not end a long run, nor leave anything in the moments: the step is as if it had not been.
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        # Young averages follow faster: the first weights, which are random, are soon forgotten.
        share = jnp.where(sound, jnp.maximum(1 - ema, 9 / (10 + state.step)), 0)
        mean_params = jax.tree.map(
            lambda mean, new: mean + share * (new - mean), state.mean_params, params if ema else {}
        )
        metrics = StepMetrics(loss=value, gradient_norm=norm, skipped=1.0 - sound, parts=parts)
        following = dataclasses.replace(
            state, step=state.step + 1, params=params, mean_params=mean_params, opt_state=opt_state
        )
        return following, metrics

    return step


def split(x: Array, shards: int, count: int) -> Array:
    """An array of `shards` pieces as those of `count` micro-batches on a new first axis, each with every `count`-th piece: pieces
    stay on the devices that have them."""
    pieces = x.reshape(shards // count, count, x.shape[0] // shards, *x.shape[1:])
    return jnp.moveaxis(pieces, 1, 0).reshape(count, x.shape[0] // count, *x.shape[1:])
