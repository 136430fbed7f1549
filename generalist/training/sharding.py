"""Sharding as data: one ordered table from parameter paths to mesh axes, the mesh, and where each part of a batch goes.

The axes are `data` (weights replicated, rows split), `fsdp` (weights and rows split), `tensor` (matrices and heads split) and
`sequence` (positions split, for long contexts).

Dimension key: N rows or payloads of this process's shards, G the same of the whole batch.
"""

import functools
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from generalist.config.run import TrainingConfig
from generalist.model.params import flat, path_string

AXES = ("data", "fsdp", "tensor", "sequence")
ROWS = ("data", "fsdp")

# The first pattern that matches a parameter's path decides. Parameters of blocks are stacked: their leading axis, the layers, is
# never split, since the scan over layers would have to gather it whole.
# Along `tensor`, the first product of a sub-layer is split by its outputs and the second by its inputs: the activations between
# them stay on their device, and one sum per sub-layer is exchanged (Megatron-LM, Shoeybi et al., 2019, section 3).
RULES: tuple[tuple[str, P], ...] = (
    (r"(blocks|lower)/.*(qkv|up)/kernel", P(None, "fsdp", "tensor")),
    (r"(blocks|lower)/.*(out|down)/kernel", P(None, "tensor", "fsdp")),
    # Adapters as the kernels beside them; the rank is never split.
    (r"(qkv|up)/adapter/a$", P(None, "fsdp", None)),
    (r"(qkv|up)/adapter/b$", P(None, None, "tensor")),
    (r"(out|down)/adapter/a$", P(None, "tensor", None)),
    (r"(out|down)/adapter/b$", P(None, None, "fsdp")),
    (r"^(tokens|output)/", P("tensor", "fsdp")),
    (r"^visual/.*(query|key_value|up)/kernel", P(None, "fsdp", "tensor")),
    (r"^visual/.*(out|down)/kernel", P(None, "tensor", "fsdp")),
    (r"embedder/.*(projection|out|hidden)/kernel", P("fsdp", "tensor")),
    # A frozen vision tower, whose layers are stacked too.
    (r"^layers/(qkv|up)/kernel", P(None, "fsdp", "tensor")),
    (r"^layers/(out|down)/kernel", P(None, "tensor", "fsdp")),
)
SMALLEST_SPLIT = 2**16  # numbers; splitting a smaller parameter costs more in messages than it saves in memory


def make_mesh(training: TrainingConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that the settings describe. One of its sizes may be -1: the devices that the others leave.

    Args:
        devices: to compile for devices that are not there; None: all devices of all processes.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    sizes = [training.data_axis, training.fsdp_axis, training.tensor_axis, training.sequence_axis]
    sizes[0] = sizes[0] or default_data_axis(training, count, devices[0].platform)
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        # At least 1, so that the message below names the sizes that were given.
        sizes[sizes.index(-1)] = max(1, count // known)
    if math.prod(sizes) != count:
        raise ValueError(
            f"training.data_axis × fsdp_axis × tensor_axis × sequence_axis = {' × '.join(map(str, sizes))} does not cover the "
            f"{count} devices; make them multiply to that number, or set one of them to -1"
        )
    types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # what JAX raises for a mesh whose axes are no products of a TPU slice's sides
        # Sides are split only if they must be, since a part of a side is no ring.
        placed = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=types)


def default_data_axis(training: TrainingConfig, count: int, platform: str) -> int:
    """The size of the data axis where the settings leave it open: 2 on TPUs that otherwise are all along fsdp, else 1."""
    # The TPU compiler writes gathers of weights and scattered sums of gradients over *all* devices as whole sums of twice the
    # bytes, or as rings of many small products (docs/experiments/plans.md); over half of them, as what they are.
    along = count // (training.tensor_axis * training.sequence_axis)
    alone = training.fsdp_axis == -1 and training.tensor_axis == training.sequence_axis == 1
    return 2 if platform == "tpu" and alone and along > 2 and along % 2 == 0 else 1


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The mesh axes of one parameter: by the table, otherwise its largest dimension that divides is split over `fsdp`."""
    for pattern, spec in RULES:
        # The rank is compared too: in a layer that is not stacked the path is the same, but the kernel has no leading axis.
        if re.search(pattern, path) and len(spec) == len(shape):
            # A dimension that an axis does not divide stays whole; the other dimensions are split nevertheless.
            return P(
                *(axis if axis and dim % mesh.shape[axis] == 0 else None for axis, dim in zip(spec, shape, strict=True))
            )
    if int(np.prod(shape)) >= SMALLEST_SPLIT:
        for index in sorted(range(len(shape)), key=lambda i: -shape[i]):
            if shape[index] % mesh.shape["fsdp"] == 0:
                return P(*(("fsdp" if i == index else None) for i in range(len(shape))))
    return P()


def parameter_shardings(params, mesh: Mesh):
    """A tree of `NamedSharding` for a tree of parameters or of their shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, parameter_spec(path_string(path), leaf.shape, mesh)), params
    )


def moment_shardings(opt_state, shardings):
    """Shardings of an optimizer's state: moments are sharded as their parameters, and counts are replicated.

    Args:
        opt_state: a tree of abstract arrays.
        shardings: of the trained parameters.
    """
    # Left to jit, the whole state would be replicated on every device.
    of_path = flat(shardings)
    replicated = NamedSharding(next(iter(of_path.values())).mesh, P())

    def sharding(path: tuple, _) -> NamedSharding:
        # A moment's path is its parameter's after the names of the optimizer's transformations, such as 1/0/mu/blocks/...
        parts = path_string(path).split("/")
        ends = ("/".join(parts[at:]) for at in range(len(parts)))
        return next((of_path[end] for end in ends if end in of_path), replicated)

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def rows_sharding(shape: tuple[int, ...], mesh: Mesh, *, positions: bool = False) -> NamedSharding:
    """The sharding of one array of a batch: its rows or payloads are split over `data` and `fsdp`. A dimension that does not
    divide stays whole.

    Args:
        shape: of the array in the whole batch.
        positions: the second dimension are the positions of a row, which are split over `sequence`.
    """
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    spec: list[str | tuple[str, ...] | None] = [ROWS if shape[0] and shape[0] % parts == 0 else None]
    if positions and shape[1] % mesh.shape["sequence"] == 0:
        spec.append("sequence")
    return NamedSharding(mesh, P(*spec))


@functools.cache
def own_shards(mesh: Mesh, shards: int) -> tuple[int, ...]:
    """The shards of a batch that this process's devices need, in order. Processes along one `tensor` or `sequence` axis need the
    same shards.

    Raises:
        ValueError: there are several processes, and shards and devices do not divide each other.
    """
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    if jax.process_count() > 1 and shards % parts and parts % shards:
        raise ValueError(
            f"data.shards = {shards} and the {parts} devices along training.data_axis × fsdp_axis do not divide each other: "
            "make data.shards a multiple of their number"
        )
    # A batch of this many rows divides both among the devices and among the shards, so that each row belongs to one of either.
    rows = math.lcm(parts, shards)
    index = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((rows,))
    each = rows // shards
    owned = {row // each for at in index.values() if at is not None for row in range(*at[0].indices(rows))}
    return tuple(sorted(owned))


def place(
    name: str, leaf: Shaped[np.ndarray, "N ..."], sharding: NamedSharding, own: Sequence[int], shards: int
) -> Shaped[Array, "G ..."]:
    """An array of a batch, on the devices.

    Args:
        name: of the array, for messages.
        leaf: this process's shards, one after the other.
        sharding: of the whole array.
        own: numbers of this process's shards (`own_shards`).
        shards: how many the whole batch has.

    Raises:
        ValueError: this process's devices would need rows of other processes, since they do not share the array equally.
    """
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    each = len(leaf) // len(own)
    first = {shard: at * each for at, shard in enumerate(own)}  # shard → its first row in `leaf`

    def part(index: tuple[slice, ...] | None) -> Shaped[np.ndarray, "n ..."]:
        """The rows of the whole array that one device asks for, cut out of `leaf`."""
        if index is None or not each:  # a payload that no batch has: all devices hold it whole, with no rows
            return leaf
        rows = range(*index[0].indices(each * shards))
        if len(rows) > len(leaf):
            raise ValueError(
                f"data.{name} = {each * shards} must be a multiple of training.data_axis × fsdp_axis, since there are "
                f"{jax.process_count()} processes"
            )
        # If the rows span several shards, the further ones follow in `leaf` too: `own` is in order.
        start = first[rows.start // each] + rows.start % each
        return leaf[(slice(start, start + len(rows)), *index[1:])]

    return jax.make_array_from_callback((each * shards, *leaf.shape[1:]), sharding, part)
