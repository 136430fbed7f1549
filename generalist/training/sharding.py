"""Sharding is data: one ordered table from parameter paths to mesh axes, the mesh they refer to, and where a batch goes.

The axes are `data` (weights replicated, rows split), `fsdp` (weights and rows split), `tensor` (matrices and heads split) and
`sequence` (positions split, for long contexts).
"""

import functools
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from generalist.config.run import TrainingConfig
from generalist.model.params import flat, path_string

AXES = ("data", "fsdp", "tensor", "sequence")
ROWS = ("data", "fsdp")

# The first pattern that matches a parameter's path decides. Stacked block parameters carry a leading layer axis, never split.
RULES: tuple[tuple[str, P], ...] = (
    (r"blocks/.*(qkv|up)/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/.*(out|down)/kernel", P(None, "tensor", "fsdp")),
    (r"^(tokens|output)/", P("tensor", "fsdp")),
    (r"^visual/.*(query|key_value|up)/kernel", P(None, "fsdp", "tensor")),
    (r"^visual/.*(out|down)/kernel", P(None, "tensor", "fsdp")),
    (r"embedder/.*(projection|out|hidden)/kernel", P("fsdp", "tensor")),
)
SMALLEST_SPLIT = 2**16  # scalars: splitting less costs more in messages than it saves in memory


def make_mesh(training: TrainingConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that the settings describe, over all devices of all processes; one size may be -1 and takes what the others leave.

    Args:
        devices: others than those of this run, to compile for.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or cannot be laid along a TPU slice's links.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = [training.data_axis, training.fsdp_axis, training.tensor_axis, training.sequence_axis]
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(1, count // known)
    if math.prod(sizes) != count:
        raise ValueError(
            f"training.data_axis × fsdp_axis × tensor_axis × sequence_axis = {' × '.join(map(str, sizes))} does not cover the "
            f"{count} devices; make them multiply to that number, or set one of them to -1"
        )
    try:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    except NotImplementedError as error:  # JAX's own for a mesh that it can't lay over a TPU slice's wiring
        raise ValueError(
            "the mesh does not fit the slice's wiring: each of --training.*-axis must be 1, a side of the slice, or a product of "
            "sides"
        ) from error


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The mesh axes of one parameter: by the table, else the largest axis that divides goes to `fsdp`."""
    for pattern, spec in RULES:
        if re.search(pattern, path) and len(spec) == len(shape):
            return P(
                *(axis if axis and dim % mesh.shape[axis] == 0 else None for axis, dim in zip(spec, shape, strict=True))
            )
    if int(np.prod(shape)) >= SMALLEST_SPLIT:
        for index in sorted(range(len(shape)), key=lambda i: -shape[i]):
            if shape[index] % mesh.shape["fsdp"] == 0:
                return P(*(("fsdp" if i == index else None) for i in range(len(shape))))
    return P()


def parameter_shardings(params, mesh: Mesh):
    """A tree of `NamedSharding` for a tree of (abstract) parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, parameter_spec(path_string(path), leaf.shape, mesh)), params
    )


def moment_shardings(opt_state, shardings):
    """Shardings of an optimizer's state: what it keeps of a parameter, whose path ends as the parameter's, lies as that does; the
    rest, counts, is everywhere. Without being told, jit would give all of it whole to every device.

    Args:
        opt_state: a tree of abstract arrays.
        shardings: of the parameters.
    """
    of_path = flat(shardings)
    replicated = NamedSharding(next(iter(of_path.values())).mesh, P())

    def sharding(path: tuple, _) -> NamedSharding:
        parts = path_string(path).split("/")
        ends = ("/".join(parts[at:]) for at in range(len(parts)))
        return next((of_path[end] for end in ends if end in of_path), replicated)

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def rows_sharding(shape: tuple[int, ...], mesh: Mesh, *, positions: bool = False) -> NamedSharding:
    """A batch's array: rows or payloads are split over `data` and `fsdp`, and the second axis, where it is of `positions`, over
    `sequence`; an axis that does not divide stays whole."""
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    spec: list[str | tuple[str, ...] | None] = [ROWS if shape[0] and shape[0] % parts == 0 else None]
    if positions and shape[1] % mesh.shape["sequence"] == 0:
        spec.append("sequence")
    return NamedSharding(mesh, P(*spec))


@functools.cache
def own_shards(mesh: Mesh, shards: int) -> tuple[int, ...]:
    """Which of a batch's shards this process's devices need, in order.

    Of several processes, those that a `tensor` or `sequence` axis spans need the same ones.

    Raises:
        ValueError: shards and rows do not divide among several processes' devices.
    """
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    if jax.process_count() > 1 and shards % parts and parts % shards:
        raise ValueError(
            f"data.shards = {shards} and the {parts} devices along training.data_axis × fsdp_axis do not divide each other: "
            "make data.shards a multiple of their number"
        )
    rows = math.lcm(parts, shards)
    index = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((rows,))
    each = rows // shards
    owned = {row // each for at in index.values() if at is not None for row in range(*at[0].indices(rows))}
    return tuple(sorted(owned))


def place(name: str, leaf: np.ndarray, sharding: NamedSharding, own: Sequence[int], shards: int) -> jax.Array:
    """An array whose first axis holds this process's own shards, as the part of the global one that its devices need.

    Raises:
        ValueError: the devices along `data` and `fsdp` do not share it equally, and so would need the shards of other processes.
    """
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    each = len(leaf) // len(own)
    first = {shard: at * each for at, shard in enumerate(own)}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        if index is None or not each:
            return leaf
        rows = range(*index[0].indices(each * shards))
        if len(rows) > len(leaf):
            raise ValueError(
                f"data.{name} = {each * shards} must be a multiple of training.data_axis × fsdp_axis, since there are "
                f"{jax.process_count()} processes"
            )
        start = first[rows.start // each] + rows.start % each  # further shards of these rows stand behind it
        return leaf[(slice(start, start + len(rows)), *index[1:])]

    return jax.make_array_from_callback((each * shards, *leaf.shape[1:]), sharding, part)
