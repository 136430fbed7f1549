"""Parameters read from files into their places: on one device, or each device's part alone on a mesh.

Dimension key: I inputs and O outputs of a linear map.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, Int8, Shaped

from generalist.model.config import ModelConfig
from generalist.model.constrain import logical_spec
from generalist.model.layers import Int8Kernel
from generalist.model.params import layers_apart, layers_together, nested
from generalist.system.memory import release_freed
from generalist.training.sharding import AXES, SMALLEST_SPLIT, parameter_shardings, parameter_spec
from generalist.vision.encoder import VisionEncoder
from generalist.weights.stored import Stored, aligned

TAKEN = ("data", "fsdp", "tensor")
"""Axes of a mesh for inference: rows are split over the first two, weights over the last two, heads and caches over all."""
WEIGHTS_TYPES = ("stored", "int8")
CACHE_TYPES = ("stored", "float32", "bfloat16", "float16")
KERNELS = re.compile(r"(blocks|visual/gated)/\d+/.*kernel")
"""Paths of the kernels that are held in int8: the linear maps of the layers, and none of the tables or embedders."""
COLUMNS = 1024  # outputs of a kernel that are rounded at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placing:
    """Where parameters and caches are, and in which types."""

    mesh: Mesh | None = None
    """None: the first device."""
    weights_type: str = "stored"
    """Of the layers' kernels: as they are stored, or rounded to int8."""
    cache_type: str = "stored"
    """Of keys and values; stored: as `Weights.cache_dtype` says."""

    @classmethod
    def of(cls, mesh: Mesh | str | None = None, weights_type: str = "stored", cache_type: str = "stored") -> "Placing":
        """
        Args:
            mesh: as it is, or as `parse_mesh` takes it.
            weights_type: `stored` or `int8`.
            cache_type: `stored`, `float32`, `bfloat16` or `float16`.

        Raises:
            ValueError: a type is unknown, or the mesh is not one of this process's devices.
        """
        for name, value, known in (
            ("weights_type", weights_type, WEIGHTS_TYPES),
            ("cache_type", cache_type, CACHE_TYPES),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        made = parse_mesh(mesh) if isinstance(mesh, str) else mesh
        return cls(mesh=made, weights_type=weights_type, cache_type=cache_type)


def parse_mesh(text: str) -> Mesh:
    """The mesh of `tensor=4` or `data=2,tensor=4`, over all devices of this process.

    Raises:
        ValueError: an axis is unknown, repeated or no number, their product is not the number of devices, or there are several
            processes.
    """
    sizes = axis_sizes(text)
    if jax.process_count() > 1:
        raise ValueError(f"--mesh {text}: inference runs in one process, but there are {jax.process_count()}")
    return make_mesh(sizes, jax.devices())


def axis_sizes(text: str) -> dict[str, int]:
    """`data=2,tensor=4` → the sizes by axis.

    Raises:
        ValueError: an axis is unknown, repeated or no number.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in TAKEN or name in sizes or not re.fullmatch(r"[1-9]\d{0,4}", size):
            raise ValueError(
                f"--mesh {text}: write each axis once, of {', '.join(TAKEN)}, with its size, such as tensor=4"
            )
        sizes[name] = int(size)
    return sizes


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """A mesh with all axes of training's, those that are not given of size 1.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    if math.prod(sizes.values()) != len(devices):
        named = ",".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"--mesh {named} is for {math.prod(sizes.values())} devices, but there are {len(devices)} ({devices[0].platform}): "
            "make the sizes multiply to that number (a CPU simulates N devices with "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N)"
        )
    whole = tuple(sizes.get(name, 1) for name in AXES)
    return jax.make_mesh(whole, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def encoder_in_place(encoder: VisionEncoder | None, mesh: Mesh | None) -> VisionEncoder | None:
    """A frozen encoder with its parameters split over a mesh as training splits them; without one it stays where it is."""
    if encoder is None or mesh is None:
        return encoder
    return dataclasses.replace(
        encoder, params=jax.device_put(encoder.params, parameter_shardings(encoder.params, mesh))
    )


def cells_place(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where the parts of a cache (R, S, H) are: its rows and heads are divided over the whole mesh, if they can be."""
    return NamedSharding(mesh, logical_spec(shape, ("cells", None, None), mesh.shape))


def note_on_mesh(config: ModelConfig, mesh: Mesh | None) -> str | None:
    """What does not divide over the mesh and what becomes of it; None if all does."""
    if mesh is None or not config.kv_heads % (cells := mesh.size):
        return None
    return (
        f"{config.kv_heads} key-value heads do not divide over {cells} devices: where rows × heads do not either, every device "
        "holds the whole cache"
    )


def parameter_place(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The mesh axes of a parameter whose layers are apart: those of training's table (`generalist.training.sharding`). A
    large one that the table leaves whole along `tensor`, such as a vocabulary of an odd size, is split along another one."""
    ((stack, _),) = layers_together([path]).items()
    apart = stack != path
    spec = parameter_spec(stack, (1, *shape) if apart else shape, mesh)
    # An axis of one device splits nothing.
    axes = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in spec[apart:]]
    axes += [None] * (len(shape) - len(axes))
    if "tensor" not in axes and math.prod(shape) >= SMALLEST_SPLIT:
        free = [at for at, size in enumerate(shape) if axes[at] is None and size % mesh.shape["tensor"] == 0]
        for at in sorted(free, key=lambda at: -shape[at])[:1]:
            axes[at] = "tensor"
    return P(*axes)


def placed(arrays: Iterable[tuple[str, Stored]], placing: Placing) -> Any:
    """Parameters in their places, each layer's apart, from arrays by their paths in files.

    One part at a time is in this machine's memory besides the devices': a layer's kernel, or a device's share of it.
    """
    mesh, leaves = placing.mesh, dict[str, Array | Int8Kernel]()
    for stack, stored in arrays:
        for path, one in layers_apart(stack, stored).items():
            place = P() if mesh is None else parameter_place(path, one.shape, mesh)
            if placing.weights_type == "int8" and KERNELS.fullmatch(path):
                numbers, scale = (Stored.of(part) for part in rounded(one))
                leaves[path] = Int8Kernel(_put(numbers, mesh, place), _put(scale, mesh, P(*place[1:])))
            else:
                leaves[path] = _put(one, mesh, place)
    release_freed()
    # Layers are numbered by integers: as texts the tenth would come before the second.
    return nnx.restore_int_paths(nested(leaves))


def on_host(leaf: Array | Int8Kernel) -> Shaped[np.ndarray, "..."]:
    """A parameter in this machine's memory; of a kernel in int8 the weights that it stands for."""
    if isinstance(leaf, Int8Kernel):
        return np.asarray(leaf.numbers, np.float32) * np.asarray(leaf.scale)
    return np.asarray(leaf)


def rounded(kernel: Stored) -> tuple[Int8[np.ndarray, "I O"], Float32[np.ndarray, "O"]]:
    """A kernel as whole numbers from -127 to 127 and each output's factor, by its largest weight (LLM.int8(), Dettmers et al.,
    2022, section 2.1: vector-wise, of weights alone)."""
    inputs, outputs = kernel.shape
    numbers, scale = np.empty(kernel.shape, np.int8), np.empty(outputs, np.float32)
    for first in range(0, outputs, COLUMNS):
        columns = slice(first, min(first + COLUMNS, outputs))
        part = kernel.read((slice(0, inputs), columns)).astype(np.float32)
        # An output without weights has any factor.
        scale[columns] = np.maximum(np.abs(part).max(axis=0, initial=0.0), 1e-30) / 127
        numbers[:, columns] = np.rint(part / scale[columns])
    return numbers, scale


def _put(stored: Stored, mesh: Mesh | None, place: P) -> Shaped[Array, "..."]:
    """An array on the first device, or its parts on the devices of a mesh, each read once."""
    # Waited for: otherwise all arrays would be read before the first is copied.
    if mesh is None:
        return jax.block_until_ready(jax.device_put(_held(stored.all())))
    sharding = NamedSharding(mesh, place)
    parts = []
    for index, devices in _parts(sharding, stored.shape):
        host = _held(stored.read(index))
        parts += jax.block_until_ready([jax.device_put(host, device) for device in devices])
    return jax.make_array_from_single_device_arrays(stored.shape, sharding, parts)


def _parts(sharding: NamedSharding, shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], list[jax.Device]]]:
    """The parts of an array, each with the devices that hold it."""
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        bounds = tuple(one.indices(size)[:2] for one, size in zip(index, shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    for bounds, devices in holders.items():
        yield tuple(slice(*one) for one in bounds), devices


def _held(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The array as JAX holds it, which has no 64-bit numbers unless they are switched on; one on this machine's processor takes
    it without a copy."""
    dtype = np.float32 if array.dtype == np.float64 else array.dtype
    if array.flags.c_contiguous and array.dtype == dtype:
        return array
    held = aligned(array.shape, dtype)
    held[...] = array
    return held
