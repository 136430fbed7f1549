"""The generalist's trainer: gradients of the next-token loss, in micro-batches, and the placing of packed batches.

Dimension key: B rows, L positions, J images, S pixels per side, T cells of the encoder's grid, F channels of its features, N rows
or payloads of this process, G the same of the whole batch, M of a micro-batch.
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
from jaxtyping import Array, Float, Key, Shaped, UInt8

from generalist.config.run import TrainingConfig
from generalist.data.batch import Batch, BatchSpec
from generalist.model.config import ModelSpec
from generalist.model.params import path_string, united
from generalist.model.tuned import create_tuned, divided
from generalist.training.loss import Factors, TokenSums, make_loss, token_weights
from generalist.training.sharding import make_mesh, own_shards, parameter_shardings, place, rows_sharding
from generalist.training.state import Parameters, compute_dtype, computed
from generalist.training.step import Gradients, Trainer, compile_trainer, split
from generalist.vision.encoder import VisionEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenTrainer(Trainer):
    """The generalist's trainer: its batches are of type `Batch`."""

    encode: Callable[[UInt8[Array, "J S S 3"]], Float[Array, "J T F"]] | None = None
    """A frozen encoder, compiled. It runs outside the step, since it has no gradient and no optimizer state."""

    def abstract_batch(self, spec: BatchSpec, pad: int = 0) -> Batch:
        """Shapes and shardings of a whole batch that uses every budget."""
        zeros = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, spec.zeros(pad)))

        def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = rows_sharding(leaf.shape, self.mesh, positions=leaf.shape == zeros.tokens.shape)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return dataclasses.replace(jax.tree.map(placed, zeros), shards=spec.shards)

    def place(self, batch: Batch, shards: int | None = None) -> Batch:
        """Moves a batch to the devices in the form that the step takes, with images as features.

        Args:
            batch: this process's shards, as numpy arrays.
            shards: number of shards of the whole batch, if other processes have some of them.

        Raises:
            ValueError: there are several processes, and the batch does not divide among their devices.
        """
        shards = batch.shards if shards is None else shards
        own = own_shards(self.mesh, shards)

        def put(path: tuple, leaf: Shaped[np.ndarray, "N ..."]) -> Shaped[Array, "G ..."]:
            # Fields of shape (B, L) are those with a value per position; they alone are split along the sequence.
            shape = (len(leaf) // len(own) * shards, *leaf.shape[1:])
            sharding = rows_sharding(shape, self.mesh, positions=leaf.shape == batch.tokens.shape)
            return place(path_string(path), leaf, sharding, own, shards)

        placed = dataclasses.replace(jax.tree_util.tree_map_with_path(put, batch), shards=shards)
        # Features that were stored before training (`data.features`) come in place of pixels, as float16.
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
        mesh: None: all devices, as the settings arrange them.
        weights: of the data's sources in the loss (`token_weights`), in the order of the batches' `source` ids.
        encoder: the frozen encoder, if batches carry pixels.
    """
    mesh = make_mesh(training) if mesh is None else mesh
    dtype = compute_dtype(training.dtype, mesh.devices.flat[0].platform)
    tuning = training.tuning
    graph, abstract = nnx.split(nnx.eval_shape(lambda: create_tuned(spec, training.seed, tuning)), nnx.Param)
    parameters = Parameters(
        draw=lambda: nnx.to_pure_dict(nnx.state(create_tuned(spec, training.seed, tuning), nnx.Param)),
        divide=lambda params: divided(params, spec.config, tuning),
    )
    # Everything that has the structure of the parameters can be divided like them, shardings too.
    shardings, _ = parameters.divide(parameter_shardings(nnx.to_pure_dict(abstract), mesh))
    gradients = make_gradients(graph, spec, training, dtype, weights, shardings)
    trainer = compile_trainer(parameters, gradients, training, mesh)
    encode = None
    if encoder is not None:
        positions = spec.config.vision.positions if spec.projected else 0
        encode = encoder.compiled(encoder_on(mesh, encoder, dtype), alone=mesh.size == 1, positions=positions)
    return TokenTrainer(**vars(trainer), encode=encode)


def encoder_on(mesh: Mesh, encoder: VisionEncoder, dtype: DTypeLike) -> Any:
    """A frozen encoder's parameters, in the compute dtype and sharded over the mesh."""
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
    """Makes the function that computes loss and gradients of a batch, in micro-batches one after the other if there are several.

    Args:
        graph: the model without its parameters.
        dtype: compute dtype.
        weights: of the data's sources in the loss.
        shardings: of the trained parameters; their gradients get the same.
    """
    loss = make_loss(graph, spec.vocabulary, len(weights), training.z_loss, training.loss_chunks)

    def of_micro_batch(
        params: Any, frozen: Any, batch: Batch, weight: Factors, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], TokenSums]:
        # The cast is differentiated too: gradients come back in float32, the type of the trained parameters.
        return loss(united(computed(params, dtype), frozen), batch, weight, dtype, key)

    def gradients(
        params: Any, frozen: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[tuple[Float[Array, ""], TokenSums], Any]:
        # Factors that are normalised over the whole batch: summed over its micro-batches, the loss is that of the whole batch.
        # A mean of the micro-batches' means would favour the tokens of those that hold fewer.
        weight = token_weights(batch, weights, training.average)
        differentiated = jax.value_and_grad(of_micro_batch, has_aux=True)
        count = training.parts
        if count == 1:
            return differentiated(params, frozen, batch, weight, key)

        # The number of shards is static, a part of the tree's structure, and a micro-batch has fewer.
        structure = jax.tree.structure(dataclasses.replace(batch, shards=batch.shards // count))

        def of_part(part: tuple[list[Shaped[Array, "..."]], Factors, Key[Array, ""]]):
            leaves, weight, key = part
            return differentiated(params, frozen, jax.tree.unflatten(structure, leaves), weight, key)

        # Without the constraint, the sums could end up replicated on every device while the scan runs.
        def on_mesh(total: Any) -> Any:
            aux, gradients = total
            return aux, jax.lax.with_sharding_constraint(gradients, shardings)

        def add(total: Any, part: tuple[list[Shaped[Array, "..."]], Factors, Key[Array, ""]]):
            return on_mesh(jax.tree.map(jnp.add, total, of_part(part))), None

        leaves, weight = jax.tree.map(lambda leaf: split(leaf, batch.shards, count), (jax.tree.leaves(batch), weight))
        parts = (leaves, weight, jax.random.split(key, count))
        shapes = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], parts))
        zeros = on_mesh(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
        return jax.lax.scan(add, zeros, parts)[0]

    return gradients
