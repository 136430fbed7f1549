"""The generalist's trainer: gradients of the next token's loss, in micro-batches, and where a packed batch goes.

Dimension key: B rows, L positions, K kinds of token, S sources.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array

from generalist.config.run import TrainingConfig
from generalist.data.batch import Batch, BatchSpec
from generalist.model.config import ModelSpec
from generalist.model.params import divided, path_string, united
from generalist.model.transformer import create
from generalist.training.loss import make_loss, token_weights
from generalist.training.sharding import make_mesh, own_shards, parameter_shardings, place, rows_sharding
from generalist.training.state import Parameters, compute_dtype, computed
from generalist.training.step import Gradients, Trainer, compile_trainer, split
from generalist.vision.encoder import VisionEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenTrainer(Trainer):
    """The generalist's trainer; its batches are `Batch`es."""

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


def make_trainer(
    spec: ModelSpec,
    training: TrainingConfig,
    mesh: Mesh | None = None,
    *,
    weights: Sequence[float],
    encoder: VisionEncoder | None = None,
) -> TokenTrainer:
    """Builds the trainer; nothing is computed before `initialize` is called.

    Args:
        mesh: None takes all devices.
        weights: of the data's sources, in the order of the batches' `source` ids.
        encoder: the frozen encoder, where batches carry pixels.
    """
    mesh = make_mesh(training) if mesh is None else mesh
    dtype = compute_dtype(training.dtype, mesh.devices.flat[0].platform)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: create(spec, training.seed)), nnx.Param)
    parameters = Parameters(
        draw=lambda: nnx.to_pure_dict(nnx.state(create(spec, training.seed), nnx.Param)),
        divide=lambda params: divided(params, spec.config),
    )
    shardings, _ = parameters.divide(parameter_shardings(nnx.to_pure_dict(abstract), mesh))
    gradients = make_gradients(graph, spec, training, dtype, weights, shardings)
    trainer = compile_trainer(parameters, gradients, training, mesh)
    encode = None
    if encoder is not None:
        encode = encoder.compiled(encoder_on(mesh, encoder, dtype), alone=mesh.size == 1)
    return TokenTrainer(**vars(trainer), encode=encode)


def encoder_on(mesh: Mesh, encoder: VisionEncoder, dtype: DTypeLike) -> Any:
    """A frozen encoder's parameters, sharded and in the compute type."""
    params = computed(encoder.params, dtype)
    return jax.tree.map(jax.device_put, params, parameter_shardings(params, mesh))


def make_gradients(
    graph: nnx.GraphDef,
    spec: ModelSpec,
    training: TrainingConfig,
    dtype: DTypeLike,
    weights: Sequence[float],
    shardings: Any,
) -> Gradients:
    """Loss and gradients of a batch, of one micro-batch after the other if there are several.

    Args:
        shardings: of the trained parameters, which their gradients get as well.
    """
    loss = make_loss(graph, spec.vocabulary, len(weights), training.z_loss, training.loss_chunks)

    def of_micro_batch(params: Any, frozen: Any, batch: Batch, weight: Array, key: Array):
        return loss(united(computed(params, dtype), frozen), batch, weight, dtype, key)

    def gradients(params: Any, frozen: Any, batch: Batch, key: Array):
        # Weights of the whole batch: the sum over micro-batches is then the very loss of the batch in one piece.
        weight = token_weights(batch, weights, training.average)
        differentiated = jax.value_and_grad(of_micro_batch, has_aux=True)
        count = training.micro_batches
        if count == 1:
            return differentiated(params, frozen, batch, weight, key)

        structure = jax.tree.structure(dataclasses.replace(batch, shards=batch.shards // count))

        def of_part(part: tuple[list[Array], Array, Array]):
            leaves, weight, key = part
            return differentiated(params, frozen, jax.tree.unflatten(structure, leaves), weight, key)

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

    return gradients
