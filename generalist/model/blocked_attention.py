"""Attention of whole rows on a CPU, in blocks that stay in its caches: causal in packed rows, where keys that no query can see
are skipped, or to the keys that a mask shows.

As in FlashAttention (Dao et al., 2022) the backward pass rebuilds the softmax from its log-sum-exp and recomputes the scores, so
memory grows with the length, not with its square.

Dimension key: B rows, L queries, S keys, N query heads, M key-value heads, G query heads that share keys, H head size.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite, so that a row without any visible key gives a uniform softmax instead of NaN
SHORT = 384
"""Keys of rows whose heads are computed all at once, in blocks of few queries: heads one after another are products so small that
all cores but one stay idle."""
BLOCKS = (64, 128)  # queries of a block of short and of longer rows
TOGETHER = 1 << 19
"""Bytes of scores of a block that are computed at once, a part of one core's second-level cache: all heads of several rows of 64
positions, two heads of a row of 512."""


def blocked_attention(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B S M H"],
    value: Float[Array, "B S M H"],
    query_segment: Int[Array, "B L"],
    key_segment: Int[Array, "B S"],
    *,
    scale: float,
    softcap: float,
    start: Int[Array, ""] | int = 0,
    reach: Int[Array, ""] | int | None = None,
) -> Float[Array, "B L N H"]:
    """Attention within segments to keys that are not later in the row.

    Args:
        scale: factor of the scores.
        softcap: bound of the scores by a tanh; 0: none.
        start: position in the row of the first query; if it is known to be 0, blocks skip the keys that come later.
        reach: positions that a query looks back, its own included; None: all.
    """
    batch, length = query.shape[:2]
    # Further than any key is away: one comparison serves both cases.
    span = key.shape[1] if reach is None else reach
    places = (jnp.broadcast_to(jnp.asarray(place, jnp.int32), (batch,)) for place in (start, span))
    skip = isinstance(start, int) and start == 0 and length == key.shape[1]
    return _by_head(query, key, value, _Segments(query_segment, key_segment, *places), scale, softcap, skip)


def shown_attention(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B S M H"],
    value: Float[Array, "B S M H"],
    mask: Bool[Array, "B L S"],
    *,
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "B L N H"]:
    """Attention to the keys that a mask shows. A query to which it shows none gets the mean of all values, without gradients.
    Arguments as in `blocked_attention`."""
    return _by_head(query, key, value, mask, scale, softcap, False)


def _by_head(query, key, value, marks, scale: float, softcap: float, skip: bool) -> Float[Array, "B L N H"]:
    batch, length, heads, size = query.shape
    # (B, M, G, L, H): each key-value head with its group of queries, heads outermost, as the loop below takes them. Scaled
    # outside of the custom gradient, which then needs no factor.
    groups = (query * scale).reshape(batch, length, key.shape[2], -1, size).transpose(0, 2, 3, 1, 4)
    mixed = _rows(groups, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3), marks, softcap, skip)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, size)


class _Segments(NamedTuple):
    """What tells which keys queries see: segments, the place of a row's first query and the positions that it looks back."""

    query: Int[Array, "*B L"]
    key: Int[Array, "*B S"]
    start: Int[Array, "*B"]
    reach: Int[Array, "*B"]


def _blocks(length: int, keys: int, skip: bool) -> Iterator[tuple[slice, slice]]:
    """Slices of the queries, and of the keys that at least one of them sees."""
    size = BLOCKS[keys > SHORT]
    for first in range(0, length, size):
        last = min(length, first + size)
        yield slice(first, last), slice(0, last if skip else keys)


def _biases(skip: bool, marks: _Segments | Bool[Array, "L S"]) -> list[Array]:
    """Added to the scores of each block of a row, (1, its queries, its keys): 0 for a visible key, `MASKED` otherwise. All heads
    share them."""

    def shown(queries: slice, keys: slice):
        if not isinstance(marks, _Segments):
            return marks[queries, keys]
        back = jnp.arange(queries.start, queries.stop)[:, None] + marks.start
        back = back - jnp.arange(keys.start, keys.stop)[None]
        same = marks.query[queries, None] == marks.key[None, keys]
        return same & (back >= 0) & (back < marks.reach)

    length, keys = (len(marks.query), len(marks.key)) if isinstance(marks, _Segments) else marks.shape
    return [jnp.where(shown(*block), 0.0, MASKED)[None] for block in _blocks(length, keys, skip)]


def _capped(scores: Float[Array, "G l s"], softcap: float) -> Float[Array, "G l s"]:
    return softcap * jnp.tanh(scores / softcap) if softcap else scores


def _by_rows(compute: Callable[..., Any], rows: tuple[Array, ...], marks: Any, skip: bool) -> Any:
    """`compute(biases, head)` of each key-value head of each row.

    Args:
        rows: queries (B, M, G, L, H), keys (B, M, S, H) and so on.
    """
    batch, count, groups, length, _ = rows[0].shape
    keys, bias = rows[1].shape[2], functools.partial(_biases, skip)
    of_head = groups * min(length, BLOCKS[keys > SHORT]) * keys * 4
    if keys <= SHORT:

        def short(operands):
            heads, biases = operands
            return jax.vmap(functools.partial(compute, biases))(heads)

        # All rows' biases before the loop: XLA would fuse comparisons inside of it with the softmax, which then takes several
        # times as long.
        return jax.lax.map(short, (rows, jax.vmap(bias)(marks)), batch_size=_together(batch, count * of_head))

    def long(operands):
        heads, own = operands
        return jax.lax.map(functools.partial(compute, bias(own)), heads, batch_size=_together(count, of_head))

    return jax.lax.map(long, (rows, marks))


def _together(count: int, size: int) -> int | None:
    """How many of `count` blocks of scores of `size` bytes are computed at once: a part of them, since XLA takes a loop of one
    round apart; None: one."""
    fitting = [some for some in range(2, count // 2 + 1) if count % some == 0 and some * size <= TOGETHER]
    return max(fitting, default=None)


def _forward_head(
    biases: list[Array],
    head: tuple[Float[Array, "G L H"], Float[Array, "S H"], Float[Array, "S H"]],
    *,
    softcap: float,
    skip: bool,
) -> tuple[Float[Array, "G L H"], Float[Array, "G L"]]:
    """One key-value head with its G queries: the averaged values, and the log-sum-exp of the scores."""
    query, key, value = head
    mixed, sums = [], []
    for (queries, keys), bias in zip(_blocks(query.shape[1], len(key), skip), biases, strict=True):
        scores = jnp.einsum("glh,sh->gls", query[:, queries], key[keys], preferred_element_type=jnp.float32)
        # The key axis of a block is complete, so the softmax needs no running maximum as on a GPU.
        scores = _capped(scores, softcap) + bias
        highest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = weights.sum(axis=-1, keepdims=True)
        # Divided after the product: H numbers per query instead of one per key.
        product = jnp.einsum(
            "gls,sh->glh", weights.astype(value.dtype), value[keys], preferred_element_type=jnp.float32
        )
        mixed.append((product / total).astype(value.dtype))
        sums.append((highest + jnp.log(total))[..., 0])
    return jnp.concatenate(mixed, axis=1), jnp.concatenate(sums, axis=1)


def _backward_head(biases: list[Array], head: tuple[Array, ...], *, softcap: float, skip: bool):
    """Gradients of one head's queries (G, L, H), keys and values (S, H)."""
    query, key, value, mixed, sums, gradient = head
    # The gradient of a softmax is shifted by its mean under the weights (Dao et al., 2022, section 3.1).
    mean = jnp.einsum("glh,glh->gl", mixed, gradient, preferred_element_type=jnp.float32)
    # Of a query that sees nothing the logarithm is lost in `MASKED`: its weights would be 1 each.
    sums = jnp.where(sums > MASKED / 2, sums, jnp.inf)
    of_query, of_key, of_value = [], jnp.zeros(key.T.shape, jnp.float32), jnp.zeros(value.T.shape, jnp.float32)
    for (queries, keys), bias in zip(_blocks(query.shape[1], len(key), skip), biases, strict=True):
        q, g = query[:, queries], gradient[:, queries]
        scores = jnp.einsum("glh,sh->gls", q, key[keys], preferred_element_type=jnp.float32)
        capped = _capped(scores, softcap)
        # The softmax again, from the stored log-sum-exp: one exponential instead of a second pass for the maximum.
        weights = jnp.exp(capped + bias - sums[:, queries, None])
        of_weights = jnp.einsum("glh,sh->gls", g, value[keys], preferred_element_type=jnp.float32)
        of_scores = weights * (of_weights - mean[:, queries, None])
        # The derivative of c · tanh(s / c) by s is 1 − tanh².
        if softcap:
            of_scores = of_scores * (1 - jnp.square(capped / softcap))
        of_scores, weights = of_scores.astype(q.dtype), weights.astype(g.dtype)
        of_query.append(jnp.einsum("gls,sh->glh", of_scores, key[keys]))
        # (H, S) instead of (S, H): the other order transposes the scores, which costs more than the products.
        # Summed over blocks in float32: in 16 bits small contributions would be lost.
        of_key = of_key.at[:, keys].add(jnp.einsum("glh,gls->hs", q, of_scores, preferred_element_type=jnp.float32))
        of_value = of_value.at[:, keys].add(jnp.einsum("glh,gls->hs", g, weights, preferred_element_type=jnp.float32))
    # Of a single block XLA would else make the other order again.
    of_key, of_value = jax.lax.optimization_barrier((of_key, of_value))
    return jnp.concatenate(of_query, axis=1), of_key.T.astype(key.dtype), of_value.T.astype(value.dtype)


# `softcap` and `skip` are Python values that decide what is compiled, so they can't be among the traced operands.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _rows(query, key, value, marks, softcap: float, skip: bool):
    """All heads of all rows: query (B, M, G, L, H), key and value (B, M, S, H)."""
    return _rows_forward(query, key, value, marks, softcap, skip)[0]


def _rows_forward(query, key, value, marks, softcap: float, skip: bool):
    compute = functools.partial(_forward_head, softcap=softcap, skip=skip)
    mixed, sums = _by_rows(compute, (query, key, value), marks, skip)
    # Named, so that a remat policy can keep them: the backward pass then needs no second forward pass.
    mixed, sums = checkpoint_name(mixed, "attention"), checkpoint_name(sums, "attention")
    return mixed, (query, key, value, marks, mixed, sums)


def _rows_backward(softcap: float, skip: bool, kept, gradient):
    query, key, value, marks, mixed, sums = kept
    compute = functools.partial(_backward_head, softcap=softcap, skip=skip)
    # The masks are built again: comparing segments costs less than keeping an (L, S) array per row.
    gradients = _by_rows(compute, (query, key, value, mixed, sums, gradient), marks, skip)
    return (*gradients, None)  # marks have no gradient


_rows.defvjp(_rows_forward, _rows_backward)
