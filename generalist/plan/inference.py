"""Memory and speed of writing text on devices that need not be present: weights, caches, the step of one id, and a prompt.

Dimension key: B rows, S slots of a row's cache.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from generalist.config.run import Config
from generalist.data.batch import Batch, BatchSpec
from generalist.inference.cached_rows import LONGEST
from generalist.inference.decode import extend
from generalist.inference.placing import KERNELS, TAKEN, axis_sizes, cells_place, make_mesh, parameter_place
from generalist.inference.structure import Structure
from generalist.model.attention import Cache
from generalist.model.config import ModelSpec
from generalist.model.layers import Int8Kernel
from generalist.model.params import flat, nested
from generalist.model.rings import cache_slots
from generalist.model.transformer import count_parameters, create_separate
from generalist.plan.estimate import speeds_of
from generalist.plan.hlo import parse
from generalist.plan.program import compile_program, device_bytes
from generalist.plan.roofline import walk
from generalist.plan.target import Target
from generalist.run.published import published_tokenizers, published_tower
from generalist.run.shapes import without_data
from generalist.training.sharding import parameter_shardings
from generalist.vision.vit import vit_shapes
from generalist.weights.language import LanguageModel

WEIGHTS_TYPES = ("bfloat16", "float16", "float32", "int8")
"""Types of planned weights; with int8 all but the layers' kernels are in bfloat16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """What is asked of the devices."""

    rows: int = 1
    """Texts that are written together."""
    context: int
    """Positions of each: prompt and text."""
    weights_type: str = "bfloat16"
    cache_type: str = "float32"
    mesh: str | None = None
    """As `--mesh` of the commands takes it; None: all devices along `tensor`."""

    def __post_init__(self) -> None:
        for name in ("rows", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """A plan's figures, of one device; times are None for devices without a known speed."""

    mesh: dict[str, int]
    parameters: int
    """Number of parameters of the whole model, without the frozen encoder's."""
    weights: float
    """Bytes."""
    encoder: float
    """Bytes of the frozen encoder's part."""
    caches: float
    temporary: float
    """Bytes that the larger of both programs takes besides: that of a prompt's part, or of one id."""
    limit: float | None
    step_seconds: float | None
    """Of one id in all rows, when the caches are full."""
    tokens_per_second: float | None
    """Ids per second, of all rows together."""
    prompt_seconds: float | None
    """Of reading a prompt of the whole context in all rows."""

    @property
    def total(self) -> float:
        return self.weights + self.encoder + self.caches + self.temporary

    @property
    def fits(self) -> bool:
        return self.limit is None or self.total <= self.limit

    def plain(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**dataclasses.asdict(self), "total": self.total, "fits": self.fits}


def subject(of: Path | Config, tower_type: str = "bfloat16") -> tuple[ModelSpec, int, Any]:
    """The model of a preset or of a published language model's folder, its context, and the parameters of its frozen encoder or
    vision tower, or their shapes, empty if it has none.

    Args:
        tower_type: of the parameters of a published model's tower.

    Raises:
        WeightsError: the folder holds no language model that can be loaded.
    """
    if isinstance(of, Path):
        model = LanguageModel(of, images=True)
        tokenizers, tower = published_tokenizers(model), published_tower(model)
        length = tokenizers.config.data.length
        if tower is None:
            return tokenizers.model_spec(), length, {}
        tokenizers = dataclasses.replace(tokenizers, channels=tower.channels)
        return tokenizers.model_spec(), length, vit_shapes(tower, jnp.dtype(tower_type))
    spec, _, encoder = without_data(of)
    return spec, of.data.length, {} if encoder is None else encoder.params


def encoder_bytes(params: Any, mesh: Mesh) -> float:
    """Bytes of a frozen encoder on one device, as `encoder_in_place` splits it."""

    def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return device_bytes(jax.tree.map(placed, params, parameter_shardings(params, mesh)))


def planned_mesh(serving: Serving, devices: Sequence[Any]) -> Mesh:
    """The mesh over the target's devices.

    Raises:
        ValueError: its sizes are unknown or do not multiply to the number of devices.
    """
    return make_mesh(axis_sizes(serving.mesh or f"tensor={len(devices)}"), devices)


def abstract_decoder(spec: ModelSpec, serving: Serving, mesh: Mesh) -> tuple[Structure, Any]:
    """`Weights.decoder` of weights that are not there: shapes, types and places of the parameters."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: create_separate(spec, 0)), nnx.Param)
    rounded = serving.weights_type == "int8"
    dtype = jnp.dtype("bfloat16" if rounded else serving.weights_type)

    def shape(shape: tuple[int, ...], dtype: Any, place: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, place))

    leaves: dict[str, Any] = {}
    for path, leaf in flat(nnx.to_pure_dict(abstract)).items():
        place = parameter_place(path, leaf.shape, mesh)
        if rounded and KERNELS.fullmatch(path):
            scale = shape(leaf.shape[1:], jnp.float32, P(*place[1:]))
            leaves[path] = Int8Kernel(shape(leaf.shape, jnp.int8, place), scale)  # type: ignore[arg-type]
        else:
            leaves[path] = shape(leaf.shape, dtype, place)
    return Structure(graph, mesh), nnx.restore_int_paths(nested(leaves))


def abstract_caches(spec: ModelSpec, serving: Serving, mesh: Mesh) -> list[Cache]:
    """The shapes of full caches, of layers with a window no more than they look back."""
    config, caches = spec.config, []
    for slots in cache_slots(config, serving.context):
        shape = (serving.rows * config.kv_heads, slots, config.key_size)
        # A shape stands for the array, as everywhere in what is compiled without numbers.
        one: Any = jax.ShapeDtypeStruct(shape, jnp.dtype(serving.cache_type), sharding=cells_place(shape, mesh))
        caches.append(Cache(one, one))
    return caches


def compiled(spec: ModelSpec, serving: Serving, target: Target, devices: Sequence[Any], encoder: Any) -> Served:
    """The figures of the programs that inference runs, compiled for the target.

    Args:
        devices: the result of `open_devices`.
        encoder: parameters of the frozen encoder, or their shapes.

    Raises:
        OutOfMemory: a program does not fit the device.
        ValueError: as `planned_mesh`.
    """
    mesh = planned_mesh(serving, devices)
    structure, params = abstract_decoder(spec, serving, mesh)
    caches = abstract_caches(spec, serving, mesh)
    parts = {
        "parameters": device_bytes(params),
        "frozen": encoder_bytes(encoder, mesh),
        "optimizer": 0.0,
        "batch": device_bytes(caches),
    }
    speeds, found = speeds_of(target, mesh.devices.flat), {}
    part = min(serving.context, LONGEST)
    for name, length in (("step", 1), ("prompt", part)):
        arguments = _arguments(spec, serving, mesh, length)
        lowered = extend.lower(structure, params, caches, *arguments)
        program = compile_program(lowered, parts, f"the program of {'one id' if length == 1 else 'a prompt'}")
        found[name] = (program.memory.temporary + program.memory.code, walk(parse(program.text), speeds).seconds)
    step, prompt = (seconds if target.chip is not None and seconds else None for _, seconds in found.values())
    prompt = prompt * serving.context / part if prompt else None
    return Served(
        mesh={name: size for name, size in mesh.shape.items() if name in TAKEN},
        parameters=_count(spec),
        weights=parts["parameters"],
        encoder=parts["frozen"],
        caches=parts["batch"],
        temporary=max(bytes for bytes, _ in found.values()),
        limit=target.memory,
        step_seconds=step,
        tokens_per_second=serving.rows / step if step else None,
        prompt_seconds=prompt,
    )


def arithmetic(spec: ModelSpec, serving: Serving, target: Target, encoder: Any) -> Served:
    """The figures of one device without a compiler, which is there only for a TPU and a CPU.

    A program takes the longer of its products at the chip's peak and of its traffic at the full bandwidth: all weights, and the
    caches as far as they are filled.
    """
    mesh = make_mesh({}, jax.devices()[:1])  # for the shapes alone
    _, params = abstract_decoder(spec, serving, mesh)
    config, chip = spec.config, target.chip
    weights, caches = device_bytes(params), device_bytes(abstract_caches(spec, serving, mesh))
    rows, length = serving.rows, serving.context
    # What is multiplied: all kernels and the output table, which looks rows up as well where it is the embedding too.
    tables = {path: leaf for path, leaf in flat(params).items() if path.startswith("tokens/")}
    looked_up = 0 if config.tied_output else device_bytes(tables)
    multiplied = _count(spec) - (0 if config.tied_output else count_parameters(tables))
    scores = config.heads * 4 * config.key_size  # FLOPs per query and key of a layer: two products

    def keys(slots: int, positions: int) -> int:
        """How many a layer reads: of a ring, and of several new positions beside it."""
        return slots if slots == length or positions == 1 else slots + positions

    def seconds(positions: int) -> float | None:
        if chip is None or not chip.flops:
            return None
        read = sum(keys(slots, positions) for slots in cache_slots(config, length))
        flops = rows * positions * (2 * multiplied + scores * read)
        return max(flops / chip.flops, (weights - looked_up + caches) / chip.bandwidth)

    part = min(length, LONGEST)  # of a prompt
    step, prompt = seconds(1), seconds(part)
    prompt = prompt * length / part if prompt else None
    # Of a prompt, in float32: scores before and after the softmax, a layer's widest activations, and the logits of one position.
    widest = max((2 * config.hidden), (config.heads + 2 * config.kv_heads) * config.key_size) + 3 * config.width
    most = max(keys(slots, part) for slots in cache_slots(config, length))
    values = part * (2 * config.heads * most + widest) + 2 * spec.vocabulary.size
    return Served(
        mesh={},
        parameters=_count(spec),
        weights=weights,
        encoder=encoder_bytes(encoder, mesh),
        caches=caches,
        temporary=4.0 * rows * values,
        limit=target.memory,
        step_seconds=step,
        tokens_per_second=rows / step if step else None,
        prompt_seconds=prompt,
    )


def _arguments(spec: ModelSpec, serving: Serving, mesh: Mesh, length: int) -> tuple[Any, ...]:
    """The other arguments of `extend` for `length` new positions, as shapes that every device has whole."""
    whole = NamedSharding(mesh, P())
    rows = BatchSpec(rows=serving.rows, length=length, tensors=0, projection_width=0, frames=0, frame_size=0)
    batch: Batch = rows.zeros(0)
    slots = np.zeros((serving.rows, serving.context), np.int32)
    allowed = np.ones((1, 1, spec.vocabulary.size), bool)
    given = (slots, slots, np.int32(0), batch, None, allowed)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), given)


def _count(spec: ModelSpec) -> int:
    """Number of the model's parameters."""
    return count_parameters(nnx.state(nnx.eval_shape(lambda: create_separate(spec, 0)), nnx.Param))
