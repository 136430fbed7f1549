"""Rows of a table by their index, and the sums of gradients that this asks for in the backward pass.

XLA's own gradient is a scatter, which on a GPU adds with atomic operations: thousands of positions share a row (padding's, a
local position's) and take turns, in an order that differs from run to run. There the sums are products with one-hot rows for
small tables, and sums over sorted positions for large ones: both without a scatter, and the same in every run.

Dimension key: T tables (1, or one a shard), N rows of a table, n positions, D numbers of a row.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

from generalist.system.platforms import target_platform

SMALL = 1024
"""Largest table whose gradient is a product with one-hot rows: beyond it that costs as much as a layer of the model."""


def rows_at(table: Shaped[Array, "N ..."], index: Int[Array, "..."]) -> Shaped[Array, "..."]:
    """Rows of a table; an index beyond its end means the last one, a negative one counts from the end.

    The gradient is summed in float32: in 16 bits the small parts of a row that many positions share would be lost.
    """
    if target_platform() == "gpu":
        return _looked_up(table[None], index[None])[0]
    return _summed_wide(table, index) if table.dtype in (jnp.bfloat16, jnp.float16) else _clipped(table, index)


def rows_of_shards(tables: Shaped[Array, "T N ..."], index: Int[Array, "T ..."]) -> Shaped[Array, "T ..."]:
    """`rows_at` of several tables, each with indices of its own."""
    return _looked_up(tables, index) if target_platform() == "gpu" else jax.vmap(rows_at)(tables, index)


def _clipped(table: Shaped[Array, "N ..."], index: Int[Array, "..."]) -> Shaped[Array, "..."]:
    return table.at[index].get(mode="clip")


@jax.custom_vjp
def _summed_wide(table: Shaped[Array, "N ..."], index: Int[Array, "..."]) -> Shaped[Array, "..."]:
    """Rows of a 16-bit table."""
    # As whole numbers: to look up bfloat16 numbers, XLA first makes a float32 copy of the whole table on a CPU.
    rows = _clipped(jax.lax.bitcast_convert_type(table, jnp.uint16), index)
    return jax.lax.bitcast_convert_type(rows, table.dtype)


def _summed_wide_forward(table, index):
    return _summed_wide(table, index), (table, index)


def _summed_wide_backward(kept, gradient):
    table, index = kept
    _, pull = jax.vjp(lambda wide: _clipped(wide, index), table.astype(jnp.float32))
    return pull(gradient.astype(jnp.float32))[0].astype(table.dtype), None


_summed_wide.defvjp(_summed_wide_forward, _summed_wide_backward)


@jax.custom_vjp
def _looked_up(tables: Shaped[Array, "T N ..."], index: Int[Array, "T ..."]) -> Shaped[Array, "T ..."]:
    return jax.vmap(_clipped)(tables, index)


def _looked_up_forward(tables, index):
    return _looked_up(tables, index), (tables, index)


def _looked_up_backward(kept, gradient):
    tables, index = kept  # of the tables only the shape and the type are used
    rows, *row = tables.shape[1:]
    index = jnp.clip(jnp.where(index < 0, index + rows, index), 0, rows - 1)
    if not index.size:
        return jnp.zeros_like(tables), None
    flat = gradient.reshape(*index.shape, math.prod(row))
    sums = sums_by_products(flat, index, rows) if rows <= SMALL else sums_over_mesh(flat, index, rows)
    return sums.reshape(tables.shape).astype(tables.dtype), None


_looked_up.defvjp(_looked_up_forward, _looked_up_backward)


def sums_by_products(gradient: Float[Array, "T ... D"], index: Int[Array, "T ..."], rows: int) -> Float[Array, "T N D"]:
    """Each row's sum of the gradients of its positions, in float32, as one product, which divides over any mesh as other products
    do. A number that is not finite spoils its column of all rows; the step skips such a batch anyway.
    """
    hot = (index[..., None] == jnp.arange(rows).reshape((1,) * index.ndim + (rows,))).astype(gradient.dtype)
    positions = tuple(range(1, index.ndim))
    wide = gradient.dtype.itemsize > 2
    return jax.lax.dot_general(
        hot,
        gradient,
        ((positions, positions), ((0,), (0,))),
        # Zeros, ones and 16-bit numbers are exact in tensor cores, whose sums are float32; TF32 would cut float32 numbers.
        precision=jax.lax.Precision.HIGHEST if wide else None,
        preferred_element_type=jnp.promote_types(gradient.dtype, jnp.float32),
    )


def sums_by_order(gradient: Float[Array, "n D"], index: Int[Array, "n"], rows: int) -> Float[Array, "N D"]:
    """The same sums for one table, over positions sorted by their row: a running sum that begins anew with each row, of which
    the row's last position has the whole."""
    wide = jnp.promote_types(gradient.dtype, jnp.float32)
    ordered, order = jax.lax.sort_key_val(index, jnp.arange(len(index)))
    begins = jnp.concatenate([jnp.ones((1,), bool), ordered[1:] != ordered[:-1]])[:, None]

    def joined(left, right):
        (left_begins, left_sum), (right_begins, right_sum) = left, right
        return left_begins | right_begins, right_sum + jnp.where(right_begins, 0, left_sum)

    _, running = jax.lax.associative_scan(joined, (begins, gradient[order].astype(wide)))
    # Unrolled, the binary search is one kernel; other methods than a search sort again, with a scatter.
    last = jnp.searchsorted(ordered, jnp.arange(rows), side="right", method="scan_unrolled") - 1
    last = jnp.maximum(last, 0)
    return jnp.where((ordered[last] == jnp.arange(rows))[:, None], running[last], 0)


def sums_over_mesh(gradient: Float[Array, "T ... D"], index: Int[Array, "T ..."], rows: int) -> Float[Array, "T N D"]:
    """`sums_by_order` of every table: each device sorts the positions that it has, and the tables' sums are added up. Sorting all
    positions together would gather all of their gradients on every device."""
    count, first = index.shape[:2]
    index = index.reshape(count, first, -1)
    gradient = gradient.reshape(*index.shape, -1)
    sizes = dict(jax.sharding.get_abstract_mesh().shape)

    def dividing(names: tuple[str, ...], size: int) -> tuple[str, ...]:
        names = tuple(name for name in names if sizes.get(name, 1) > 1)
        return names if size % math.prod(sizes[name] for name in names) == 0 else ()

    # Shards are divided over the devices as rows of a batch are: a device then has whole tables.
    of_tables = dividing(("data", "fsdp"), count) if count > 1 else ()
    of_rows = dividing(("data", "fsdp"), first) if count == 1 else ()
    of_positions = dividing(("sequence",), index.shape[2])

    def local(gradient, index):
        gradient, index = gradient.reshape(len(index), -1, gradient.shape[-1]), index.reshape(len(index), -1)
        sums = jax.vmap(functools.partial(sums_by_order, rows=rows))(gradient, index)
        summed = (*of_rows, *of_positions)
        return jax.lax.psum(sums, summed) if summed else sums

    if not (of_tables or of_rows or of_positions):
        return local(gradient, index)
    split = (of_tables or None, of_rows or None, of_positions or None)
    return jax.shard_map(
        local, in_specs=(P(*split, None), P(*split)), out_specs=P(of_tables or None, None, None), check_vma=False
    )(gradient, index)
