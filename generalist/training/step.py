"""The one jitted training step, and the state it carries.

Dimension key: B rows, L positions, V vocabulary, K kinds of token, S sources.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from generalist.config.run import TrainingConfig
from generalist.data.batch import ArrayLike, Batch, BatchSpec
from generalist.model.config import ModelSpec
from generalist.model.params import divided, flat, nested, path_string, united
from generalist.model.transformer import create
from generalist.training.loss import make_loss, token_weights
from generalist.training.optimizer import make_optimizer
from generalist.training.sharding import (
    make_mesh,
    moment_shardings,
    own_shards,
    parameter_shardings,
    place,
    rows_sharding,
)
from generalist.vision.encoder import VisionEncoder


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """Sums over a batch, so that several steps can be averaged exactly; numpy once they are fetched."""

    loss: Float[ArrayLike, ""]
    """Mean weighted negative log-likelihood plus z-loss, in nats a token."""
    gradient_norm: Float[ArrayLike, ""]
    kind_nll: Float[ArrayLike, "K"]
    kind_weight: Float[ArrayLike, "K"]
    source_nll: Float[ArrayLike, "S"]
    source_weight: Float[ArrayLike, "S"]
    source_correct: Float[ArrayLike, "S"]
    tokens: Float[ArrayLike, ""]
    """Positions that are not padding."""
    skipped: Float[ArrayLike, ""]
    """1 where the loss or a gradient was not finite: the parameters are as before, and all sums above are 0; else 0."""
    skipped_sources: Float[ArrayLike, "S"]
    """Of a skipped step: how much of the loss's weight each source had; else 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """The compiled pieces of a run: how to start, how to step, and where everything lives on the mesh."""

    graph: nnx.GraphDef
    initialize: Callable[[Any], TrainState]
    """Fresh parameters, except for those of a pretrained trunk, given nested; {} without one."""
    step: Callable[[TrainState, Batch, Array], tuple[TrainState, StepMetrics]]
    """Donates the state: use only the returned one."""
    state_shardings: TrainState
    abstract_state: TrainState
    mesh: Mesh
    encode: Callable[[Array], Array] | None = None
    """Pixels to features, by a frozen encoder. Outside the step: it has no gradient and no optimizer state."""

    def abstract_batch(self, spec: BatchSpec, pad: int = 0) -> Batch:
        """The shapes of a whole batch, where it lives on the mesh; with room for every payload."""
        zeros = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, spec.zeros(pad)))

        def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = rows_sharding(leaf.shape, self.mesh, positions=leaf.shape == zeros.tokens.shape)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return dataclasses.replace(jax.tree.map(placed, zeros), shards=spec.shards)

    def place(self, batch: Batch, shards: int | None = None) -> Batch:
        """This process's shards of a batch, moved to the devices as the step wants them, images as features.

        Args:
            shards: how many the whole batch has, if other processes have some of them.

        Raises:
            ValueError: its shapes do not divide among the processes' devices.
        """
        shards = batch.shards if shards is None else shards
        own = own_shards(self.mesh, shards)

        def put(path: tuple, leaf: np.ndarray) -> Array:
            shape = (len(leaf) // len(own) * shards, *leaf.shape[1:])
            sharding = rows_sharding(shape, self.mesh, positions=leaf.shape == batch.tokens.shape)
            return place(path_string(path), leaf, sharding, own, shards)

        placed = dataclasses.replace(jax.tree_util.tree_map_with_path(put, batch), shards=shards)
        if self.encode is None or not len(placed.images) or placed.images.dtype != np.uint8:
            return placed
        return dataclasses.replace(placed, images=self.encode(placed.images))


def compute_dtype(name: str, platform: str) -> np.dtype:
    """The activations' dtype; `auto` is bfloat16 on accelerators and float32 on a CPU."""
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def make_trainer(
    spec: ModelSpec,
    training: TrainingConfig,
    mesh: Mesh | None = None,
    *,
    weights: Sequence[float],
    encoder: VisionEncoder | None = None,
) -> Trainer:
    """Builds the trainer; nothing is computed before `initialize` is called.

    Args:
        mesh: None takes all devices.
        weights: of the data's sources, in the order of the batches' `source` ids.
        encoder: the frozen encoder, where batches carry pixels.
    """
    mesh = make_mesh(training) if mesh is None else mesh
    optimizer, dtype = make_optimizer(training), compute_dtype(training.dtype, mesh.devices.flat[0].platform)
    graph, abstract_model = nnx.split(nnx.eval_shape(lambda: create(spec, training.seed)), nnx.Param)
    abstract_all = nnx.to_pure_dict(abstract_model)
    all_shardings = parameter_shardings(abstract_all, mesh)
    abstract_state = _abstract_state(spec, training, optimizer, dtype, all_shardings, abstract_all)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    replicated = NamedSharding(mesh, P())
    of_path = flat(all_shardings)

    def initialize(trunk: Any) -> TrainState:
        placed = {path: jax.device_put(array, of_path[path]) for path, array in flat(trunk).items()}
        with jax.set_mesh(mesh):
            return jax.jit(
                lambda trunk: fresh_state(spec, training, optimizer, dtype, trunk), out_shardings=state_shardings
            )(nested(placed))

    step = make_step(graph, spec, training, optimizer, dtype, weights, state_shardings.params)
    return Trainer(
        graph=graph,
        initialize=initialize,
        step=jax.jit(step, donate_argnums=(0,), out_shardings=(state_shardings, replicated)),
        state_shardings=state_shardings,
        abstract_state=abstract_state,
        mesh=mesh,
        encode=encoder.compiled(encoder_on(mesh, encoder, dtype), alone=mesh.size == 1)
        if encoder is not None
        else None,
    )


def fresh_state(
    spec: ModelSpec, training: TrainingConfig, optimizer: optax.GradientTransformation, dtype: DTypeLike, trunk: Any
) -> TrainState:
    """The state before the first step."""
    drawn = nnx.to_pure_dict(nnx.state(create(spec, training.seed), nnx.Param))
    given = flat(trunk)
    whole = jax.tree_util.tree_map_with_path(lambda path, leaf: given.get(path_string(path), leaf), drawn)
    params, frozen = divided(whole, spec.config)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Numbers that are never updated need no more precision than they are computed with.
        frozen=computed(frozen, dtype),
        mean_params=jax.tree.map(jnp.copy, params) if training.ema else {},
        opt_state=optimizer.init(params),
    )


def _abstract_state(
    spec: ModelSpec,
    training: TrainingConfig,
    optimizer: optax.GradientTransformation,
    dtype: DTypeLike,
    all_shardings: Any,
    abstract_all: Any,
) -> TrainState:
    """Shapes and shardings of the state."""
    shardings, frozen_shardings = divided(all_shardings, spec.config)
    params, _ = divided(abstract_all, spec.config)
    replicated = NamedSharding(jax.tree.leaves(all_shardings)[0].mesh, P())
    state_shardings = TrainState(
        step=replicated,
        params=shardings,
        frozen=frozen_shardings,
        mean_params=shardings if training.ema else {},
        opt_state=moment_shardings(jax.eval_shape(optimizer.init, params), shardings),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: fresh_state(spec, training, optimizer, dtype, {})),
        state_shardings,
    )


def computed(params: Any, dtype: DTypeLike) -> Any:
    """Parameters as they are computed with: matrices in `dtype`, so that half as many bytes are gathered from the devices that
    hold them; norms and biases, which are small, as they are."""

    def cast(path: tuple, leaf: Any) -> Any:
        return leaf if re.search(r"(scale|bias|gate)$", path_string(path)) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def encoder_on(mesh: Mesh, encoder: VisionEncoder, dtype: DTypeLike) -> Any:
    """A frozen encoder's parameters, sharded and in the compute type."""
    params = computed(encoder.params, dtype)
    return jax.tree.map(jax.device_put, params, parameter_shardings(params, mesh))


def make_step(
    graph: nnx.GraphDef,
    spec: ModelSpec,
    training: TrainingConfig,
    optimizer: optax.GradientTransformation,
    dtype: DTypeLike,
    weights: Sequence[float],
    shardings: Any,
) -> Callable:
    """The step that is compiled: state, batch and key to the next state and what was measured."""
    loss = make_loss(graph, spec.vocabulary, len(weights), training.z_loss, training.loss_chunks)

    def of_micro_batch(params: Any, frozen: Any, batch: Batch, weight: Array, key: Array):
        return loss(united(computed(params, dtype), frozen), batch, weight, dtype, key)

    def gradients_of(state: TrainState, batch: Batch, key: Array):
        weight = token_weights(batch, weights, training.average)
        differentiated = jax.value_and_grad(of_micro_batch, has_aux=True)
        count = training.micro_batches
        if count == 1:
            return differentiated(state.params, state.frozen, batch, weight, key)

        structure = jax.tree.structure(dataclasses.replace(batch, shards=batch.shards // count))

        def of_part(part: tuple[list[Array], Array, Array]):
            leaves, weight, key = part
            return differentiated(state.params, state.frozen, jax.tree.unflatten(structure, leaves), weight, key)

        def on_mesh(total: Any) -> Any:
            aux, gradients = total
            return aux, jax.lax.with_sharding_constraint(gradients, shardings)

        def add(total: Any, part: tuple[list[Array], Array, Array]):
            return on_mesh(jax.tree.map(jnp.add, total, of_part(part))), None

        leaves = [split(leaf, batch.shards, count) for leaf in jax.tree.leaves(batch)]
        parts = (leaves, split(weight, batch.shards, count), jax.random.split(key, count))
        shapes = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], parts))
        zeros = on_mesh(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
        return jax.lax.scan(add, zeros, parts)[0]

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, StepMetrics]:
        # One key a step, derived from its number: a resumed run draws what the uninterrupted one would have drawn.
        (value, parts), gradients = gradients_of(state, batch, jax.random.fold_in(key, state.step))
        norm = optax.tree.norm(gradients)
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # One bad batch must not end a long run, nor leave anything in the moments: the step is as if it had not been.
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        # Young averages follow faster: the first weights, which are random, are soon forgotten.
        share = jnp.where(sound, jnp.maximum(1 - training.ema, 9 / (10 + state.step)), 0)
        mean_params = jax.tree.map(
            lambda mean, new: mean + share * (new - mean), state.mean_params, params if training.ema else {}
        )
        counted = {"loss": value, "gradient_norm": norm, **parts}
        metrics = StepMetrics(
            **jax.tree.map(lambda leaf: jnp.where(sound, leaf, 0), counted),
            skipped=1.0 - sound,
            skipped_sources=jnp.where(sound, 0, parts["source_weight"]),
        )
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
