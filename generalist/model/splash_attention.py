"""Attention of packed rows by Pallas' splash kernel, for TPUs: fully masked blocks are never computed.

Dimension key: B rows, L positions, N query heads, M key-value heads, H head size.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from generalist.model.mesh_layout import Layout

LANES = 128  # the kernel's blocks are multiples of a vector register's lanes


def mesh_parts(axis: str | None) -> int:
    """Devices along an axis of the mesh; 1 for none."""
    return jax.sharding.get_abstract_mesh().shape[axis] if axis else 1


def splash_takes(length: int, axis: str | None) -> bool:
    """Whether the kernel supports rows of `length` positions with queries divided over a mesh axis."""
    # The masks need a multiple of the square of the parts; see jax's _ComputableMask.
    return length % (LANES * mesh_parts(axis)) == 0 and length % mesh_parts(axis) ** 2 == 0


def block(length: int) -> int:
    """The largest block that divides a length; larger ones no longer fit a core's memory with wide heads."""
    return next(size for size in (512, 384, 256, LANES) if length % size == 0)


def make_kernel(
    length: int, heads: int, size: int, *, window: int, softcap: float, layout: Layout, interpret: bool
) -> Any:
    """The kernel of one row: a pytree of small tables of the blocks to compute, divided like heads and queries.

    Args:
        size: H, of one head.
    """
    # Imported here: Pallas takes long to import, and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    parts = mesh_parts(layout.queries)
    # LocalMask counts the positions before the query, without its own; None means unlimited.
    mask = masks.LocalMask((length, length), (window - 1 if window else None, 0), offset=0, shard_count=parts)
    queries, keys = block(length // parts), block(length)
    # Arrays whose last dimension has fewer numbers than there are lanes are padded in memory: positions, of which there are
    # enough, go last. Wide heads are laid out as the products that follow take them.
    layout_of = kernels.QKVLayout.HEAD_DIM_MINOR if size % LANES == 0 else kernels.QKVLayout.SEQ_MINOR
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        # dkv and dq are the backward pass: without its blocks the kernel has no gradient.
        block_sizes=kernels.BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_q_dkv=queries,
            block_kv_dkv=keys,
            block_q_dq=queries,
            block_kv_dq=keys,
            q_layout=layout_of,
            k_layout=layout_of,
            v_layout=layout_of,
        ),
        attn_logits_soft_cap=softcap or None,
        head_shards=mesh_parts(layout.heads),
        q_seq_shards=parts,
        residual_checkpoint_name="attention",  # the name that the remat policy "products" keeps
        interpret=interpret,
    )


def splash_attention(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    segment: Int[Array, "B L"],
    *,
    window: int,
    softcap: float,
    layout: Layout,
    interpret: bool = False,
) -> Float[Array, "B L N H"]:
    """Causal attention within segments; `query` is already scaled.

    Args:
        window: positions that a query looks back, its own included; 0: all.
        interpret: run the kernel's program without a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    _, length, heads, size = query.shape
    kernel = make_kernel(length, heads, size, window=window, softcap=softcap, layout=layout, interpret=interpret)

    def local(kernel, query, key, value, query_segment, key_segment):
        def row(query, key, value, query_segment, key_segment):
            return kernel(query, key, value, segment_ids=kernels.SegmentIds(q=query_segment, kv=key_segment))

        # The kernel takes heads before positions, one row at a time.
        query, key, value = (array.swapaxes(1, 2) for array in (query, key, value))
        return jax.vmap(row)(query, key, value, query_segment, key_segment).swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    # Pallas calls are not partitioned by the compiler: on a mesh the division is written out.
    if mesh.empty:
        return local(kernel, query, key, value, segment, segment)
    return jax.shard_map(
        local,
        in_specs=(
            kernel.manual_sharding_spec(NamedSharding(mesh, P(layout.heads, layout.queries))),
            layout.query,
            layout.key,
            layout.key,
            P(*layout.query[:2]),
            P(*layout.key[:2]),
        ),
        out_specs=layout.query,
        check_vma=False,  # as in `attend_packed`
    )(kernel, query, key, value, segment, segment)
