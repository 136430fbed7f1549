"""Sharding is data: one ordered table from parameter paths to mesh axes, and the mesh they refer to.

The axes are `data` (weights replicated, batch split), `fsdp` (weights and batch split) and `tensor` (matrices split).
"""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

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


def make_mesh(data: int, fsdp: int, tensor: int) -> Mesh:
    """A mesh over all devices; one size may be -1 and takes what the others leave.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or there are several processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"training runs in one process so far, with all devices that it sees, but there are {jax.process_count()}: start one"
        )
    count = jax.device_count()
    sizes = [data, fsdp, tensor]
    if -1 in sizes:
        known = int(np.prod([size for size in sizes if size != -1]))
        sizes[sizes.index(-1)] = max(1, count // known)
    if int(np.prod(sizes)) != count:
        raise ValueError(
            f"training.data_axis × fsdp_axis × tensor_axis = {' × '.join(map(str, sizes))} does not cover the {count} devices; "
            "make them multiply to that number, or set one of them to -1"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def path_string(path: tuple) -> str:
    """A tree path as `blocks/attention/qkv/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def flat(tree) -> dict:
    """A tree's leaves by their paths."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


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


def rows_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """A batch's array: rows or payloads are split over `data` and `fsdp` where they divide, else replicated."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return NamedSharding(mesh, BATCH if shape[0] and shape[0] % parts == 0 else P())
