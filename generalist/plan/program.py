"""The real training step, lowered from shapes alone and compiled for devices that need not be there."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from generalist.config import Config
from generalist.data.batch import Batch, BatchSpec
from generalist.model.config import ModelSpec
from generalist.plan.target import Target, mesh_sizes
from generalist.training.optimizer import make_optimizer
from generalist.training.sharding import AXES, rows_sharding
from generalist.training.step import Trainer, make_trainer
from generalist.vision.encoder import VisionEncoder


class OutOfMemory(Exception):
    """The compiler could not fit the program into a device.

    Args:
        needed: bytes a device, as far as the compiler says; else None.
    """

    def __init__(self, message: str, needed: float | None):
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, by what they are for."""

    parameters: float
    """Trained ones, and their moving average if there is one."""
    frozen: float
    optimizer: float
    batch: float
    temporary: float
    """Gradients, activations, and all else the step holds meanwhile: the compiler's own figure."""
    code: float

    @property
    def total(self) -> float:
        return sum(dataclasses.asdict(self).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program, as far as a plan reads it."""

    text: str
    """Optimised HLO."""
    memory: Memory
    seconds: float
    """Spent compiling."""


def sources_of(config: Config) -> int:
    """How many data sources take part."""
    others = (config.data.emoji, config.data.prose, config.data.documents)
    return len(config.data.control()) + sum(one.weight > 0 for one in others)


def compute_dtype(config: Config, platform: str) -> Any:
    """The activations' dtype on a platform, which need not be this process's."""
    name = config.training.dtype
    return jnp.dtype(("float32" if platform == "cpu" else "bfloat16") if name == "auto" else name)


def make_mesh(config: Config, devices: Sequence[Any]) -> Mesh:
    """The mesh that the settings lay over the devices, neighbours beside each other."""
    training = config.training
    sizes = mesh_sizes((training.data_axis, training.fsdp_axis, training.tensor_axis), len(devices))
    placed = mesh_utils.create_device_mesh(sizes, list(devices), allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_planned_trainer(config: Config, spec: ModelSpec, mesh: Mesh, platform: str) -> Trainer:
    """The trainer that a run would have."""
    training = config.training
    return make_trainer(
        spec,
        make_optimizer(training),
        mesh,
        sources=sources_of(config),
        z_loss=training.z_loss,
        dtype=compute_dtype(config, platform),
        seed=training.seed,
        ema=training.ema,
    )


def abstract_batch(spec: BatchSpec, mesh: Mesh, encoder: VisionEncoder | None) -> Batch:
    """A batch's shapes and shardings as the step takes it: images as features."""

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows_sharding(leaf.shape, mesh))

    batch = jax.tree.map(placed, spec.zeros(0))
    if encoder is None or not spec.images:
        return batch
    pixels = jax.ShapeDtypeStruct((spec.images, *spec.image_shape), jnp.uint8)
    return dataclasses.replace(batch, images=placed(jax.eval_shape(encoder.apply, encoder.params, pixels)))


def compile_step(trainer: Trainer, batch: Batch, target: Target) -> Program:
    """Compiles the step.

    Raises:
        OutOfMemory: it does not fit.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = trainer.abstract_state
    with jax.set_mesh(trainer.mesh):
        lowered = trainer.step.lower(state, batch, key)  # type: ignore[attr-defined]
    parts = {
        "parameters": device_bytes((state.params, state.mean_params)),
        "frozen": device_bytes(state.frozen),
        "optimizer": device_bytes(state.opt_state),
        "batch": device_bytes(batch),
    }
    return _compile(lowered, parts, target)


def compile_encoder(encoder: VisionEncoder, spec: BatchSpec, mesh: Mesh, target: Target) -> Program:
    """Compiles the frozen encoder's own program, which runs before each step: parameters whole on every device, images split
    like the batch.

    Raises:
        OutOfMemory: it does not fit.
    """
    whole = NamedSharding(mesh, P())
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), encoder.params)
    shape = (spec.images, *spec.image_shape)
    pixels = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=rows_sharding(shape, mesh))
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda params, pixels: encoder.encode(params, pixels)).lower(params, pixels)
    parts = {"parameters": 0.0, "frozen": device_bytes(params), "optimizer": 0.0, "batch": device_bytes(pixels)}
    return _compile(lowered, parts, target)


def device_bytes(tree: Any) -> float:
    """Bytes of a tree of sharded shapes on one device."""
    return float(
        sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))
    )


def _compile(lowered: Any, parts: dict[str, float], target: Target) -> Program:
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
            raise
        raise OutOfMemory(message.splitlines()[0], _needed(message)) from error
    analysis = compiled.memory_analysis()
    memory = Memory(
        **parts,
        # What is given back beside the donated state: metrics, or features.
        temporary=analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )
    return Program(text=compiled.as_text(), memory=memory, seconds=time.perf_counter() - begun)


def _needed(message: str) -> float | None:
    """Bytes that the compiler says the program needs of a device's main memory."""
    found = re.search(r"(?:temporaries \(|Used )(\d+(?:\.\d+)?)([KMGT])", message)
    return float(found.group(1)) * 2 ** (10 * ("KMGT".index(found.group(2)) + 1)) if found else None
