"""Division of attention's rows, queries and heads over a mesh.

Dimension key: B rows, L queries (positions), S keys, N query heads, M key-value heads, H head size.
"""

import math
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec as P


class Layout(NamedTuple):
    """Mesh axes over which rows, queries and heads are divided; None: not divided. Every device has all keys of its rows."""

    rows: tuple[str, ...] | None = None
    queries: str | None = None
    heads: str | None = None

    @property
    def query(self) -> P:
        """Sharding of queries (B, L, N, H)."""
        return P(self.rows, self.queries, self.heads, None)

    @property
    def key(self) -> P:
        """Sharding of keys and values (B, S, M, H)."""
        return P(self.rows, None, self.heads, None)


def mesh_layout(batch: int, length: int, kv_heads: int) -> Layout:
    """Rows over data and fsdp, queries over sequence, heads over tensor, each if the mesh has the axis and it divides evenly."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)

    def divides(names: tuple[str, ...], size: int) -> bool:
        parts = math.prod(sizes.get(name, 1) for name in names)
        return parts > 1 and size % parts == 0

    # Axes of one device are dropped, so that equal layouts compare equal whatever the mesh names.
    rows = tuple(name for name in ("data", "fsdp") if sizes.get(name, 1) > 1)
    return Layout(
        rows=rows if divides(rows, batch) else None,
        queries="sequence" if divides(("sequence",), length) else None,
        # Key-value heads, of which there are fewer: a device must have the keys of its query heads.
        heads="tensor" if divides(("tensor",), kv_heads) else None,
    )
