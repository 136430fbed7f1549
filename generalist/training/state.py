"""The training state, and how it is initialised and laid out on the mesh."""

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
    """Everything that a checkpoint keeps of a model. The same structure also holds shapes or shardings in place of arrays."""

    step: Any
    """Number of finished steps, int32 ()."""
    params: Any
    """The trained parameters, nested, float32."""
    frozen: Any
    """Parameters of a frozen trunk, which have neither gradient nor optimizer state, in the compute dtype; otherwise empty."""
    mean_params: Any
    """Exponential moving average of `params`, which evaluation uses; empty unless `training.ema` is above 0."""
    opt_state: Any
    """The state of the optax optimizer of `params`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """How the parameters of a kind of model are drawn and divided. Only the generalist may have frozen ones; towers have none."""

    draw: Callable[[], Any]
    """Draws all parameters, nested; called while tracing."""
    divide: Callable[[Any], tuple[Any, Any]] = lambda params: (params, {})
    """Divides them into those that are trained and those that are frozen, each nested."""


def fresh_state(
    parameters: Parameters,
    training: TrainingConfig,
    optimizer: optax.GradientTransformation,
    dtype: DTypeLike,
    given: Any,
) -> TrainState:
    """The state before the first step.

    Args:
        optimizer: of the trained parameters.
        dtype: compute dtype.
        given: nested parameters that replace the drawn ones; {} for none.
    """
    # Under jit nothing is computed for a drawn parameter that is replaced: its value is unused.
    drawn, found = parameters.draw(), flat(given)
    whole = jax.tree_util.tree_map_with_path(lambda path, leaf: found.get(path_string(path), leaf), drawn)
    params, frozen = parameters.divide(whole)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Weights that are never updated need no more precision than the compute dtype has.
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
    # Shardings follow from the paths and shapes of the parameters, and divide as they do.
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
        # The function that `initialize` compiles, so that shapes and state cannot differ.
        jax.eval_shape(lambda: fresh_state(parameters, training, optimizer, dtype, {})),
        state_shardings,
    )


def compute_dtype(name: str, platform: str) -> np.dtype:
    """The dtype of activations and matrix products. `auto` is bfloat16 on accelerators and float32 on a CPU."""
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def computed(params: Any, dtype: DTypeLike) -> Any:
    """The parameters as the forward pass takes them: matrices in `dtype`; norms, biases and gates, which are small, as they
    are."""
    # Cast here and not in the layers: sharded matrices are then gathered from the other devices in `dtype`, half the bytes.

    def cast(path: tuple, leaf: Any) -> Any:
        return leaf if re.search(r"(scale|bias|gate)$", path_string(path)) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)
