"""Attention of packed rows on a TPU in one kernel per pass, from the output of the projection to the input of the next product.

Whole rows fit into a core's memory, so that softmax and gradients need one pass over them, and nothing but the projection and the
gradient of the result is read from main memory. Heads that are narrower than the lanes of a register lie side by side in them, as
the projection writes them: an array whose last dimension is one such head would be padded to all lanes.

Dimension key: B rows, L positions, N heads, H head size, C groups of heads, W lanes of a group, R half of a head.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int

from generalist.model.blocked_attention import MASKED
from generalist.model.mesh_layout import Layout

LANES = 128  # of a vector register
LARGEST = 1024 * LANES
"""Numbers of a row in one group of heads, up to which queries, keys, values and gradients fit into a core's memory together; the
compiler refuses the backward pass of twice as many on a v5e."""
BLOCK = 256
"""Queries whose scores are computed at once."""


class Heads(NamedTuple):
    """How heads are laid out; static."""

    size: int
    """H."""
    scale: float
    """Factor of the scores."""
    interpret: bool = False
    """Run the kernels without a TPU, slowly."""

    @property
    def lanes(self) -> int:
        """W, of a group."""
        return max(LANES, self.size)

    @property
    def per_group(self) -> int:
        """Heads of a group."""
        return self.lanes // self.size


def row_attention_takes(length: int, heads: int, size: int, layout: Layout) -> bool:
    """Whether the kernels support rows of `length` positions with this number and size of heads. Heads and queries stay whole:
    divided heads would have their weights moved between devices to be put in order."""
    lanes = max(LANES, size)
    whole = lanes % size == 0 and size % 8 == 0 and lanes % LANES == 0 and heads * size % lanes == 0
    divided = layout.heads or layout.queries
    return whole and length % BLOCK == 0 and length * lanes <= LARGEST and not divided


def by_groups(kernel: Float[Array, "D inputs"], heads: Heads) -> Float[Array, "D inputs"]:
    """The columns of queries, keys and values, which follow one another, in the order that the kernels read: those of a group of
    heads next to each other. Weights are moved instead of activations, of which there are more."""
    width = len(kernel)
    grouped = kernel.reshape(width, 3, -1, heads.lanes).swapaxes(1, 2)  # (D, C, 3, W)
    # Without a barrier the compiler moves the gradient of the projection instead of that of the weights.
    return jax.lax.optimization_barrier(grouped.reshape(width, -1))


class Places(NamedTuple):
    """What the kernels know about each position: its segment, and the cosines and sines of its rotary angles."""

    segment: Int[Array, "B L"]
    cos: Float32[Array, "B L R"]
    sin: Float32[Array, "B L R"]


def row_attention(
    projected: Float[Array, "B L _"], places: Places, heads: Heads, layout: Layout
) -> Float[Array, "B L _"]:
    """Causal attention within segments, with rotated queries and keys.

    Args:
        projected: products with a kernel `by_groups`.
    """

    def local(projected: Float[Array, "B L _"], *places: Any) -> Float[Array, "B L _"]:
        return _attend(projected, Places(*places), heads)

    mesh = jax.sharding.get_abstract_mesh()
    # Pallas calls are not partitioned by the compiler: on a mesh the division is written out.
    if mesh.empty:
        return local(projected, *places)
    rows = P(layout.rows, None, None)
    in_specs = (rows, P(layout.rows, None), rows, rows)
    return jax.shard_map(local, in_specs=in_specs, out_specs=rows, check_vma=False)(projected, *places)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(projected: Float[Array, "B L _"], places: Places, heads: Heads) -> Float[Array, "B L _"]:
    return _call(_forward_kernel, (projected,), places, heads, outputs=1, products=2)


def _attend_forward(projected, places, heads):
    return _attend(projected, places, heads), (projected, places)


def _attend_backward(heads, kept, gradient):
    projected, places = kept
    return _call(_backward_kernel, (projected, gradient), places, heads, outputs=3, products=5), None


_attend.defvjp(_attend_forward, _attend_backward)


def _call(
    kernel: Any, arrays: tuple[Float[Array, "B L _"], ...], places: Places, heads: Heads, *, outputs: int, products: int
) -> Float[Array, "B L _"]:
    """Runs a kernel for every row and every group of heads.

    Args:
        outputs: arrays of W lanes per group that it writes side by side.
        products: of queries by keys by head size that it computes.
    """
    # Imported here: Pallas takes long to import, and only a TPU needs it.
    from jax.experimental import pallas as pl

    batch, length, inputs = arrays[0].shape
    groups = inputs // (3 * heads.lanes)

    def of_group(width: int) -> Any:
        return pl.BlockSpec((1, length, width), lambda row, group: (row, 0, group))

    def of_row(*shape: int) -> Any:
        return pl.BlockSpec((1, *shape), lambda row, group: (row, 0, 0))

    of_positions = (places.cos, places.sin, places.segment[..., None], places.segment[:, None])
    blocks = length // BLOCK
    cost = pl.CostEstimate(
        # Of b × b blocks those on and below the diagonal are computed: b (b + 1) / 2.
        flops=products * batch * (blocks + 1) * length * length // blocks * groups * heads.lanes,
        transcendentals=batch * (blocks + 1) * length * length // (2 * blocks) * groups * heads.per_group,
        bytes_accessed=arrays[0].dtype.itemsize * batch * length * groups * heads.lanes * (2 + outputs + len(arrays)),
    )
    return pl.pallas_call(
        functools.partial(kernel, heads=heads),
        grid=(batch, groups),
        in_specs=[
            *(of_group(array.shape[-1] // groups) for array in arrays),
            *(of_row(length, heads.size // 2),) * 2,
            of_row(length, 1),
            of_row(1, length),
            pl.BlockSpec((heads.lanes, heads.lanes), lambda row, group: (0, 0)),
            pl.BlockSpec((heads.size // 2, heads.lanes), lambda row, group: (0, 0)),
        ],
        out_specs=of_group(outputs * heads.lanes),
        out_shape=jax.ShapeDtypeStruct((batch, length, groups * outputs * heads.lanes), arrays[0].dtype),
        cost_estimate=cost,
        interpret=heads.interpret,
        name=kernel.__name__.strip("_"),
    )(
        *arrays,
        *of_positions,
        turn(heads, arrays[0].dtype),
        jnp.tile(jnp.eye(heads.size // 2), (1, 2 * heads.per_group)),
    )


def turn(heads: Heads, dtype: Any) -> Float[Array, "W W"]:
    """The matrix whose product with a group's lanes is, in each head, its second half negated before its first."""
    half = heads.size // 2
    of_head = jnp.kron(jnp.array([[0, 1], [-1, 0]], dtype), jnp.eye(half, dtype=dtype))
    return jnp.kron(jnp.eye(heads.per_group, dtype=dtype), of_head)


def _product(left: Any, right: Any, left_dim: int, right_dim: int) -> Any:
    """The product of two matrices summed over these dimensions, in float32."""
    # Float32 numbers, in tests, would be cut to bfloat16 without the highest precision.
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dims = (((left_dim,), (right_dim,)), ((), ()))
    return jax.lax.dot_general(left, right, dims, precision=exact, preferred_element_type=jnp.float32)


def _spread(angles: Any, lanes: Any) -> Float32[Array, "L W"]:
    """Cosines or sines of a group's lanes, from those of half a head, by a product with zeros and ones."""
    exact = jax.lax.Precision.HIGHEST
    return jax.lax.dot(angles[0], lanes[...], precision=exact, preferred_element_type=jnp.float32)


def _rotated(x: Any, cos: Any, sin: Any, turning: Any) -> Any:
    """Rotary positions of a group's lanes, in float32."""
    return x.astype(jnp.float32) * cos + _product(x, turning, 1, 0) * sin


def _own(shape: tuple[int, int], head: int, size: int) -> Bool[Array, "_ W"]:
    """The lanes of one head of a group."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) // size == head


def _shown(of_queries: Any, of_keys: Any, first: int, keys: int) -> Bool[Array, "_ _"]:
    """Which of the first keys a block of queries sees."""
    shape = (BLOCK, keys)
    query, key = (jax.lax.broadcasted_iota(jnp.int32, shape, dim) for dim in (0, 1))
    return (of_queries[0, first : first + BLOCK, :] == of_keys[0, :, :keys]) & (key <= query + first)


def _weights(query: Any, keys: Any, shown: Any, scale: float) -> Float[Array, "_ _"]:
    """Attention weights, float32; lanes of `query` outside its head are 0."""
    scores = jnp.where(shown, _product(query, keys, 1, 1) * scale, MASKED)
    weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _forward_kernel(projected, cos, sin, of_queries, of_keys, turning, spreading, out, *, heads: Heads):
    """Attention of the heads of one group of one row."""
    dtype, lanes = projected.dtype, heads.lanes
    cos, sin = _spread(cos, spreading), _spread(sin, spreading)
    place = functools.partial(_rotated, cos=cos, sin=sin, turning=turning[...])
    query, key = (place(projected[0, :, at * lanes : (at + 1) * lanes]).astype(dtype) for at in (0, 1))
    value = projected[0, :, 2 * lanes :]
    for first in range(0, query.shape[0], BLOCK):
        # Keys after the block are never seen.
        last = first + BLOCK
        shown, mixed = _shown(of_queries, of_keys, first, last), jnp.zeros((BLOCK, lanes), jnp.float32)
        for head in range(heads.per_group):
            own = _own((BLOCK, lanes), head, heads.size)
            # A product over all lanes takes no longer than one over some of them.
            asked = jnp.where(own, query[first:last], 0)
            weights = _weights(asked, key[:last], shown, heads.scale).astype(dtype)
            mixed = jnp.where(own, _product(weights, value[:last], 1, 0), mixed)
        out[0, first:last, :] = mixed.astype(dtype)


def _backward_kernel(projected, gradient, cos, sin, of_queries, of_keys, turning, spreading, out, *, heads: Heads):
    """Gradients of queries, keys and values of one group of one row; the weights are computed again."""
    dtype, lanes, length = projected.dtype, heads.lanes, projected.shape[1]
    cos, sin = _spread(cos, spreading), _spread(sin, spreading)
    place = functools.partial(_rotated, cos=cos, sin=sin, turning=turning[...])
    query, key = (place(projected[0, :, at * lanes : (at + 1) * lanes]).astype(dtype) for at in (0, 1))
    value = projected[0, :, 2 * lanes :]
    of_query = []
    of_key, of_value = (jnp.zeros((length, lanes), jnp.float32) for _ in range(2))
    for first in range(0, length, BLOCK):
        last = first + BLOCK
        shown, mixed = _shown(of_queries, of_keys, first, last), jnp.zeros((BLOCK, lanes), jnp.float32)
        for head in range(heads.per_group):
            own = _own((BLOCK, lanes), head, heads.size)
            asked, given = jnp.where(own, query[first:last], 0), jnp.where(own, gradient[0, first:last, :], 0)
            weights = _weights(asked, key[:last], shown, heads.scale)
            of_weights = _product(given, value[:last], 1, 1)
            # The gradient of a softmax: w (g − Σ w g).
            of_scores = weights * (of_weights - (weights * of_weights).sum(axis=1, keepdims=True)) * heads.scale
            of_scores = of_scores.astype(dtype)
            mixed = jnp.where(own, _product(of_scores, key[:last], 1, 0), mixed)
            rest = ((0, length - last), (0, 0))
            of_key += jnp.pad(_product(of_scores, asked, 0, 0), rest)
            of_value += jnp.pad(_product(weights.astype(dtype), given, 0, 0), rest)
        of_query.append(mixed)
    # The transpose of a rotation turns back.
    back = functools.partial(_rotated, cos=cos, sin=-sin, turning=turning[...])
    out[0, :, :lanes] = back(jnp.concatenate(of_query).astype(dtype)).astype(dtype)
    out[0, :, lanes : 2 * lanes] = back(of_key.astype(dtype)).astype(dtype)
    out[0, :, 2 * lanes :] = of_value.astype(dtype)
