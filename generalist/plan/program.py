"""The real training step, lowered from shapes alone and compiled for devices that need not be present."""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from generalist.config.run import Config
from generalist.data.batch import Batch, BatchSpec
from generalist.model.config import ModelSpec
from generalist.training.sharding import make_mesh, parameter_shardings, rows_sharding
from generalist.training.state import compute_dtype, computed
from generalist.training.token_trainer import TokenTrainer, make_trainer
from generalist.vision.encoder import VisionEncoder


class OutOfMemory(Exception):
    """The compiler could not fit the program into a device.

    Args:
        needed: bytes per device that the compiler reports; None if it does not.
    """

    def __init__(self, message: str, needed: float | None):
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, by purpose."""

    parameters: float
    """Trained parameters, and their moving average if there is one."""
    frozen: float
    optimizer: float
    batch: float
    temporary: float
    """Gradients, activations and everything else that the step allocates, as the compiler reports it."""
    code: float

    @property
    def total(self) -> float:
        return sum(dataclasses.asdict(self).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program: the parts that a plan uses."""

    text: str
    """Optimised HLO."""
    memory: Memory
    seconds: float
    """Seconds spent compiling."""


def make_planned_trainer(config: Config, spec: ModelSpec, devices: Sequence[Any]) -> TokenTrainer:
    """The trainer that a run on these devices would have. The frozen encoder is planned apart: see `compile_encoder`.

    Raises:
        ValueError: the mesh's axes do not multiply to the devices, or cannot be laid along the slice's sides.
    """
    mesh = make_mesh(config.training, devices)
    # The encoder is left out: `make_trainer` would put its parameters on devices that are not there.
    return make_trainer(spec, config.training, mesh, weights=list(config.source_weights.values()))


def abstract_batch(config: Config, trainer: TokenTrainer, spec: BatchSpec, encoder: VisionEncoder | None) -> Batch:
    """A batch's shapes and shardings as the step takes it: images as features."""
    batch = trainer.abstract_batch(spec)
    if encoder is None or not spec.images:
        return batch
    encode = functools.partial(encoder.encode, positions=kept_positions(config))
    features = jax.eval_shape(encode, encoder_shapes(config, trainer.mesh, encoder), batch.images)
    sharding = rows_sharding(features.shape, trainer.mesh)
    placed = jax.ShapeDtypeStruct(features.shape, features.dtype, sharding=sharding)
    return dataclasses.replace(batch, images=placed)


def kept_positions(config: Config) -> int:
    """Positions per image to which the encoder's grid is averaged before it is kept; 0: it is kept whole."""
    projected = "projected" in (config.tokens.images, config.tokens.documents)
    return config.model.vision.positions if projected else 0


def encoder_shapes(config: Config, mesh: Mesh, encoder: VisionEncoder) -> Any:
    """A frozen encoder's parameters as a run lays them out (`training.token_trainer.encoder_on`), as shapes."""
    dtype = compute_dtype(config.training.dtype, mesh.devices.flat[0].platform)
    shapes = jax.eval_shape(lambda: computed(jax.tree.map(_zeros, encoder.params), dtype))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        parameter_shardings(shapes, mesh),
    )


def _zeros(leaf: Any) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype)


def compile_step(trainer: TokenTrainer, batch: Batch) -> Program:
    """Compiles the step.

    Raises:
        OutOfMemory: it does not fit the device.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))  # nothing is computed: there may be no device that could
    state = trainer.abstract_state
    with jax.set_mesh(trainer.mesh):
        lowered = trainer.step.lower(state, batch, key)  # type: ignore[attr-defined]
    # The compiler reports arguments as one sum; what they are for is known from the shapes.
    parts = {
        "parameters": device_bytes((state.params, state.mean_params)),
        "frozen": device_bytes(state.frozen),
        "optimizer": device_bytes(state.opt_state),
        "batch": device_bytes(batch),
    }
    return compile_program(lowered, parts, "the step")


def compile_encoder(config: Config, encoder: VisionEncoder, spec: BatchSpec, mesh: Mesh) -> Program:
    """Compiles the frozen encoder's program, which runs before each step.

    Raises:
        OutOfMemory: it does not fit the device.
    """
    params, shape = encoder_shapes(config, mesh, encoder), (spec.images, *spec.image_shape)
    pixels = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=rows_sharding(shape, mesh))
    # On one device the encoder works through its images in chunks, which takes less memory.
    alone = mesh.size == 1
    with jax.set_mesh(mesh):
        encode = functools.partial(encoder.encode, alone=alone, positions=kept_positions(config))
        lowered = jax.jit(encode).lower(params, pixels)
    parts = {"parameters": 0.0, "frozen": device_bytes(params), "optimizer": 0.0, "batch": device_bytes(pixels)}
    return compile_program(lowered, parts, "the frozen encoder's program")


def device_bytes(tree: Any) -> float:
    """Bytes of a tree of sharded shapes on one device."""
    return float(
        # `shard_shape` is that of the largest shard, and without the padding of tiles.
        sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))
    )


def compile_program(lowered: Any, parts: dict[str, float], what: str) -> Program:
    """Compiles and measures a program; `parts` are the bytes of its arguments.

    Raises:
        OutOfMemory: it does not fit the device.
    """
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        # XLA has no error type for memory: its text tells it from real faults, which are raised on.
        if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
            raise
        raise OutOfMemory(f"{what}: {message.splitlines()[0]}", _needed(message)) from error
    analysis = compiled.memory_analysis()
    memory = Memory(
        **parts,
        # Outputs other than the donated state: metrics, or features.
        temporary=analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )
    return Program(text=compiled.as_text(), memory=memory, seconds=time.perf_counter() - begun)


def _needed(message: str) -> float | None:
    """Bytes of main memory that the program needs, according to the compiler's message; None if it does not say."""
    # A TPU's compiler says "Used 20.10G of 15.75G hbm"; others name the size of the temporaries.
    found = re.search(r"(?:temporaries \(|Used )(\d+(?:\.\d+)?)([KMGT])", message)
    return float(found.group(1)) * 2 ** (10 * ("KMGT".index(found.group(2)) + 1)) if found else None
