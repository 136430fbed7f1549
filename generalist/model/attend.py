"""Attention by the kernel that suits the target platform, divided over the mesh.

Dimension key: B rows, L queries (positions), S keys, N query heads, M key-value heads, G query heads per key-value head,
R = B · M, H head size.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from generalist.model.blocked_attention import BLOCKS, MASKED, blocked_attention
from generalist.model.constrain import constrain
from generalist.model.masks import Blocks, visible
from generalist.model.mesh_layout import Layout, mesh_layout
from generalist.model.splash_attention import splash_attention, splash_takes
from generalist.system.platforms import target_platform

AMPERE = 8.0  # compute capability


class Packed(NamedTuple):
    """Visibility in whole packed rows: a position sees those of its segment that are not later in the row.

    A segment's positions are contiguous and in order, so distance in the row is distance in time. Padding, segment 0, sees
    padding: its outputs are never read.
    """

    # Not a mask (B, L, L), whose memory grows with the square of the length: a kernel that needs one builds it.
    segment: Int[Array, "B L"]
    near: Bool[Array, ""]
    """Whether the layer has the model's window. An array, because one scan goes over layers with and without one."""
    block: Int[Array, "B L"] | None = None
    """Blocks whose positions see each other in both directions (`Batch.block`); None: there are none."""


def fused_on_gpu(dtype: DTypeLike, length: int, keys: int, head_size: int, softcap: float) -> bool:
    """Whether cuDNN's kernel supports these shapes on every generation since Ampere (jax.nn.dot_product_attention)."""
    half = dtype in (jnp.bfloat16, jnp.float16)
    return half and head_size % 8 == 0 and head_size <= 128 and length % 2 == 0 and keys % 2 == 0 and not softcap


@functools.cache
def lacks_fused() -> bool:
    """Whether this machine's GPU is older than Ampere, for which cuDNN has no such kernel. A program that is only lowered for a
    GPU is for one that has it."""
    return jax.default_backend() == "gpu" and float(jax.local_devices()[0].compute_capability) < AMPERE


def slow_heads(head_size: int) -> str | None:
    """What to tell the user of a GPU whose attention has small heads; None if they are large enough."""
    if head_size >= 64:
        return None
    return (
        f"heads of {head_size} fill only a part of what the tensor cores multiply at once in attention: half as many heads of "
        "twice model.head_size take less time, with as many parameters"
    )


def _is_fused(*shapes: Any) -> bool:
    return target_platform() == "gpu" and fused_on_gpu(*shapes) and not lacks_fused()


def by_blocks(batch: int, length: int, kv_heads: int) -> bool:
    """Whether attention to what a mask shows is computed by `shown_attention`: on a CPU that has all rows, queries and heads, if
    there are queries enough for a block. A few, as in a step of decoding, have small scores, and a loop would copy their keys."""
    return target_platform() == "cpu" and length >= BLOCKS[0] and mesh_layout(batch, length, kv_heads) == Layout()


def attend(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B S M H"],
    value: Float[Array, "B S M H"],
    mask: Bool[Array, "B L S"],
    *,
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "B L N H"]:
    """Scaled dot-product attention with grouped queries (N a multiple of M) to the keys that the mask shows."""
    if softcap:  # jax.nn.dot_product_attention has no softcap
        key, value = (one.swapaxes(1, 2).reshape(-1, *one.shape[1::2]) for one in (key, value))  # (R, S, H)
        return _attend_heads((query,), key, value, mask, None, scale, softcap)
    _, length, _, size = query.shape
    fused = _is_fused(query.dtype, length, key.shape[1], size, softcap)
    # Named, not left to JAX: it would not choose cuDNN by itself.
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask[:, None], scale=scale, implementation="cudnn" if fused else "xla"
    )


def attend_cached(
    query: Float[Array, "B L N H"],
    key: Float[Array, "R S H"],
    value: Float[Array, "R S H"],
    mask: Bool[Array, "B L S"],
    slide: tuple[Float[Array, "B L N H"], Bool[Array, "S"]] | None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "B L N H"]:
    """`attend` to the slots of a cache (see `Cache`), in the cache's dtype.

    Args:
        slide: other queries of the same positions, and the slots whose keys these meet; None: `query` meets all keys.
    """
    batch, length = query.shape[:2]
    slots, size = key.shape[1:]
    # cuDNN's kernel takes slots before heads. A prompt's many queries pay for the copy; a step of one position never comes here.
    if slide is None and _is_fused(query.dtype, length, slots, size, softcap):
        key, value = (one.reshape(batch, -1, slots, size).swapaxes(1, 2) for one in (key, value))  # (B, S, M, H)
        key, value = key.astype(query.dtype), value.astype(query.dtype)
        return attend(query, key, value, mask, scale=scale)
    queries, slid = ((query,), None) if slide is None else ((slide[0], query), slide[1])
    return _attend_heads(queries, key, value, mask, slid, scale, softcap)


def _attend_heads(
    queries: tuple[Float[Array, "B L N H"], ...],
    key: Float[Array, "R S H"],
    value: Float[Array, "R S H"],
    mask: Bool[Array, "B L S"],
    slid: Bool[Array, "S"] | None,
    scale: float,
    softcap: float,
) -> Float[Array, "B L N H"]:
    """Attention as two products per head. Of two queries per position the first meets the keys of slots that have slid, the
    second those of all others."""
    batch, length, heads, size = queries[0].shape
    kv_heads, slots = key.shape[0] // batch, key.shape[1]

    def by_head(query: Float[Array, "B L N H"]) -> Float[Array, "R G L H"]:
        grouped = query.reshape(batch, length, kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
        return grouped.reshape(batch * kv_heads, -1, length, size)

    # A matrix of queries per row and head, and a key's numbers last on both sides, so that neither keys nor values are
    # transposed: with slots before heads a CPU copied the whole cache in every step.
    grouped = jnp.concatenate([by_head(query) for query in queries], axis=2).reshape(batch * kv_heads, -1, size)
    # On a mesh each device has its cells of the cache, and everything up to the mixed values stays there.
    grouped = constrain(grouped.astype(key.dtype), "cells", None, None)
    # The product itself gives float32: rounded to bfloat16 first, close scores would become equal.
    scores = jnp.einsum("rqh,rsh->rqs", grouped, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch * kv_heads, -1, len(queries) * length, slots) * scale  # (R, G, queries · L, S)
    if slid is not None:
        # Both products over all slots, then a choice per slot: cheaper than gathering slots whose number changes every step.
        first, second = jnp.split(scores, 2, axis=2)
        scores = jnp.where(slid[None, None, None], first, second)
    scores = softcap * jnp.tanh(scores / softcap) if softcap else scores
    shown = jnp.broadcast_to(mask[:, None], (batch, kv_heads, length, slots)).reshape(-1, 1, length, slots)
    weights = jax.nn.softmax(jnp.where(shown, scores, MASKED), axis=-1).astype(value.dtype)
    mixed = jnp.einsum("rqs,rsh->rqh", weights.reshape(batch * kv_heads, -1, slots), value)
    mixed = mixed.reshape(batch, heads, length, size)  # heads in the order of their groups: M, then G
    return mixed.swapaxes(1, 2).astype(queries[0].dtype)


def masked_attention(
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
    blocks: Blocks | None = None,
) -> Float[Array, "B L N H"]:
    """The result of `blocked_attention`, computed with a mask of all queries by all keys: the form that GPU kernels take. It also
    knows blocks whose positions see each other in both directions."""
    # By the places in the row; `start` is that of this device's first query.
    places = (jnp.arange(query.shape[1])[None] + start, jnp.arange(key.shape[1])[None])
    mask = (query_segment[:, :, None] == key_segment[:, None, :]) & visible(*places, reach=reach, blocks=blocks)
    return attend(query, key, value, mask, scale=scale, softcap=softcap)


def attend_packed(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    seen: Packed,
    *,
    window: int,
    scale: float,
    softcap: float,
    whole_blocks: bool = False,
) -> Float[Array, "B L N H"]:
    """Causal attention of whole packed rows: Pallas' splash kernel on a TPU, cuDNN's on a GPU, blocks on a CPU. Each device holds
    only its rows, queries and heads, and the keys that these need.

    Rows with blocks that see themselves in both directions take a mask of all queries by all keys on every platform, whose
    memory grows with the square of the length.

    Args:
        window: positions that a layer with `seen.near` looks back, its own included; 0: no layer has a window.
        whole_blocks: as in `Blocks`.
    """
    batch, length = query.shape[:2]
    layout, platform = mesh_layout(batch, length, key.shape[2]), target_platform()
    if platform == "tpu" and seen.block is None and splash_takes(length, layout.queries):
        # The kernel has no scale argument, so the queries are scaled here.
        take = functools.partial(
            splash_attention, query * scale, key, value, seen.segment, softcap=softcap, layout=layout
        )
        if not window:
            return take(window=0)
        # Splash compiles the window into its block tables, so one scan over both kinds of layers needs both kernels.
        return jax.lax.cond(seen.near, lambda: take(window=window), lambda: take(window=0))
    # The other kernels take the window as a number: a layer without one looks back over the whole row.
    reach = jnp.where(seen.near, window, length) if window else None
    # What each position is, as a query and as a key: its segment and, if there are any, its block.
    marks = (seen.segment, seen.segment) if seen.block is None else (seen.segment, seen.segment, seen.block, seen.block)

    def run(query, key, value, marks, reach, start=0):
        at = {"scale": scale, "softcap": softcap, "start": start, "reach": reach}
        if platform == "cpu" and seen.block is None:
            return blocked_attention(query, key, value, *marks, **at)
        segments, own = marks[:2], marks[2:]
        blocks = Blocks(own[0], own[1], whole_blocks) if own else None
        return masked_attention(query, key, value, *segments, **at, blocks=blocks)

    if layout == Layout():
        return run(query, key, value, marks, reach)

    def local(query, key, value, marks, reach):
        # Each device knows only its slice of the queries; its index gives their place in the row.
        start = jax.lax.axis_index(layout.queries) * query.shape[1] if layout.queries else 0
        return run(query, key, value, marks, reach, start)

    of_marks = (P(*layout.query[:2]), P(*layout.key[:2])) * (len(marks) // 2)
    return jax.shard_map(
        local,
        in_specs=(layout.query, layout.key, layout.key, of_marks, P()),
        out_specs=layout.query,
        check_vma=False,  # the kernels' custom gradients do not carry varying-axes annotations
    )(query, key, value, marks, reach)
