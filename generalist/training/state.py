"""What changes from step to step, and how it is drawn and laid out on the mesh."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from generalist.config.run import TrainingConfig
from generalist.model.params import flat, path_string
from generalist.training.sharding import moment_shardings, parameter_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step; also holds shapes or shardings in its leaves' places."""

    step: Any
    params: Any
    """What is trained."""
    frozen: Any
    """What stays as it is: no gradient, no optimizer state; empty unless a frozen trunk was given."""
    mean_params: Any
    """Exponential moving average of `params`, which evaluation uses; empty unless it is asked for."""
    opt_state: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """How a kind of model's parameters come about. Contrastive towers have no frozen ones; the generalist may."""

    draw: Callable[[], Any]
    """All of them, nested and freshly drawn; traced."""
    divide: Callable[[Any], tuple[Any, Any]] = lambda params: (params, {})
    """Those that are trained and those that are frozen, each nested."""


def fresh_state(
    parameters: Parameters,
    training: TrainingConfig,
    optimizer: optax.GradientTransformation,
    dtype: DTypeLike,
    given: Any,
) -> TrainState:
    """The state before the first step.

    Args:
        given: nested parameters that take the place of drawn ones; {} for none.
    """
    drawn, found = parameters.draw(), flat(given)
    whole = jax.tree_util.tree_map_with_path(lambda path, leaf: found.get(path_string(path), leaf), drawn)
    params, frozen = parameters.divide(whole)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Numbers that are never updated need no more precision than they are computed with.
        frozen=computed(frozen, dtype),
        mean_params=jax.tree.map(jnp.copy, params) if training.ema else {},
        opt_state=optimizer.init(params),
    )


def abstract_state(
    parameters: Parameters,
    training: TrainingConfig,
    optimizer: optax.GradientTransformation,
    dtype: DTypeLike,
    mesh: Mesh,
) -> TrainState:
    """Shapes and shardings of the state; nothing is computed."""
    every = jax.eval_shape(parameters.draw)
    shardings, frozen_shardings = parameters.divide(parameter_shardings(every, mesh))
    params, _ = parameters.divide(every)
    state_shardings = TrainState(
        step=NamedSharding(mesh, P()),
        params=shardings,
        frozen=frozen_shardings,
        mean_params=shardings if training.ema else {},
        opt_state=moment_shardings(jax.eval_shape(optimizer.init, params), shardings),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: fresh_state(parameters, training, optimizer, dtype, {})),
        state_shardings,
    )


def compute_dtype(name: str, platform: str) -> np.dtype:
    """The activations' dtype; `auto` is bfloat16 on accelerators and float32 on a CPU."""
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def computed(params: Any, dtype: DTypeLike) -> Any:
    """Parameters as they are computed with: matrices in `dtype`, so that half as many bytes are gathered from the devices that
    hold them; norms and biases, which are small, as they are."""

    def cast(path: tuple, leaf: Any) -> Any:
        return leaf if re.search(r"(scale|bias|gate)$", path_string(path)) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)
