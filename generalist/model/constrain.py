"""Sharding of activations over the mesh, by logical axis names.

The mesh has four axes (generalist/training/sharding.py): `data` and `fsdp` split a batch's rows, `sequence` its positions,
`tensor` heads and hidden widths. Without a mesh, or if an axis does not divide the size, no constraint is set.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

LOGICAL: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
    # Rows and heads as one axis, as caches have them: attention of each pair is independent of all others.
    "cells": ("data", "fsdp", "tensor"),
}


def constrain(x: Shaped[Array, "..."], *names: str | None) -> Shaped[Array, "..."]:
    """`x` sharded by logical axis names, one per dimension; None leaves a dimension whole."""
    mesh = jax.sharding.get_abstract_mesh()
    # Without a mesh JAX refuses axis names; on one device there is nothing to divide.
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, logical_spec(x.shape, names, mesh.shape))


def logical_spec(shape: Sequence[int], names: Sequence[str | None], sizes: Mapping[str, int]) -> P:
    """The mesh axes of an array by logical axis names.

    Args:
        sizes: of the mesh's axes.
    """
    spec = []
    for size, name in zip(shape, names, strict=True):
        axes = LOGICAL[name] if name is not None else ()
        # parts may be 1 (an axis of one device): naming it is harmless and keeps the specs equal across meshes.
        parts = math.prod(sizes[axis] for axis in axes)
        spec.append(axes if axes and size % parts == 0 else None)
    return P(*spec)
