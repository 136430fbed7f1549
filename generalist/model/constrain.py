"""Sharding of activations over the mesh, by logical axis names.

The mesh has four axes (generalist/training/sharding.py): `data` and `fsdp` split a batch's rows, `sequence` its positions,
`tensor` heads and hidden widths. Without a mesh, or if an axis does not divide the size, no constraint is set.
"""

import math

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

LOGICAL: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
}


def constrain(x: Shaped[Array, "..."], *names: str | None) -> Shaped[Array, "..."]:
    """`x` sharded by logical axis names, one per dimension; None leaves a dimension whole."""
    mesh = jax.sharding.get_abstract_mesh()
    # Without a mesh JAX refuses axis names; on one device there is nothing to divide.
    if mesh.empty or mesh.size == 1:
        return x
    spec = []
    for size, name in zip(x.shape, names, strict=True):
        axes = LOGICAL[name] if name is not None else ()
        # parts may be 1 (an axis of one device): naming it is harmless and keeps the specs equal across meshes.
        parts = math.prod(mesh.shape[axis] for axis in axes)
        spec.append(axes if axes and size % parts == 0 else None)
    return jax.lax.with_sharding_constraint(x, P(*spec))
