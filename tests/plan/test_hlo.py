"""The walk over compiled programs: real ones, compiled here for the CPU, against what arithmetic says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from generalist.plan.cost import convolution_flops, custom_call_flops, hbm_bytes
from generalist.plan.groups import first_group
from generalist.plan.hlo import ArrayShape, parse
from generalist.plan.roofline import Speeds, Totals, walk

NO_TIME = Speeds(flops=1.0, bandwidth=1.0, seconds=lambda exchange: 0.0)
F32 = jnp.float32


def totals(function, *shapes: tuple[int, ...], **settings) -> Totals:
    compiled = jax.jit(function, **settings).lower(*(jax.ShapeDtypeStruct(shape, F32) for shape in shapes)).compile()
    return walk(parse(compiled.as_text()), NO_TIME)


def stack(weights, x):
    """Products one after the other, in a loop."""
    return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0])


def test_a_loop_s_body_counts_as_often_as_it_runs():
    layers, rows, width = 7, 16, 128
    found = totals(jax.grad(stack, argnums=(0, 1)), (layers, width, width), (rows, width))
    assert found.flops == 3 * layers * 2 * rows * width**2  # forward, and two products backward
    assert found.notes == ()


def test_loops_within_loops_multiply():
    def outer(weights, x):
        return jax.lax.scan(lambda x, _: (jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0], None), x, None, 5)[0]

    assert totals(outer, (3, 32, 32), (8, 32)).flops == 5 * 3 * 2 * 8 * 32 * 32


def test_a_loop_whose_end_is_unknown_is_told():
    def until(x):
        return jax.lax.while_loop(lambda x: jnp.max(x) < 9.0, lambda x: x @ x, x)

    found = totals(until, (8, 8))
    assert found.flops == 2 * 8**3
    assert "unknown: counted once" in found.notes[0]


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, "SAME", 1), (2, "VALID", 1), (1, "VALID", 4)])
def test_convolutions_as_the_compiler_counts_them(stride: int, padding: str, groups: int):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    x, kernel = jax.ShapeDtypeStruct((2, 9, 9, 8), F32), jax.ShapeDtypeStruct((3, 3, 8 // groups, 16), F32)
    lowered = jax.jit(convolve).lower(x, kernel)
    assert walk(parse(lowered.compile().as_text()), NO_TIME).flops == lowered.cost_analysis()["flops"]


def test_a_product_in_a_tpu_s_disguise():
    # As the TPU compiler writes (2, 16, 8, 4) @ (2, 16, 4, 8): a convolution whose dilation has holes between the 2 × 16 batches.
    line = (
        "ENTRY %e (a: f32[2,8,16,4], b: f32[2,8,16,4]) -> f32[2,16,8,8] {\n"
        "  %a = f32[2,8,16,4]{3,2,1,0} parameter(0)\n"
        "  %b = f32[2,8,16,4]{3,2,1,0} parameter(1)\n"
        "  ROOT %c = f32[2,16,8,8]{3,2,1,0} convolution(%a, %b), window={size=2x16 stride=1x15 lhs_dilate=2x16}, "
        "dim_labels=0b1f_0o1i->01bf\n}\n"
    )
    one = parse(line).entry.root
    image = kernel = ArrayShape("f32", (2, 8, 16, 4))
    assert convolution_flops(one, image, kernel) == 2 * 2 * 16 * 8 * 8 * 4


KERNEL = """
ENTRY %e (q: bf16[2,16,1024,128], k: bf16[2,16,1024,128], v: bf16[2,16,1024,128]) -> bf16[2,16,1024,128] {
  %q = bf16[2,16,1024,128]{3,2,1,0} parameter(0)
  %k = bf16[2,16,1024,128]{3,2,1,0} parameter(1)
  %v = bf16[2,16,1024,128]{3,2,1,0} parameter(2)
  %NAME.1 = bf16[2,16,1024,128]{3,2,1,0} custom-call(%q, %k, %v), custom_call_target="tpu_custom_call", kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512, \\"block_kv_dkv\\": 256, \\"block_kv_dq\\": 1024}"
}}, metadata={op_name="jit(step)/attention"}
  ROOT %r = bf16[2,16,1024,128]{3,2,1,0} copy(%NAME.1)
}
"""


@pytest.mark.parametrize(
    ("name", "products", "share"),
    [("splash_mha_fwd", 2, 3 / 4), ("splash_mha_dkv_no_residuals", 4, 5 / 8), ("splash_mha_dq", 3, 1)],
)
def test_a_kernel_of_attention_counts_the_blocks_under_the_diagonal(name: str, products: int, share: float):
    entry = parse(KERNEL.replace("NAME", name)).entry
    assert [one.operation for one in entry.instructions[-2:]] == ["custom-call", "copy"]
    scores = 2 * 16 * 1024 * 1024 * 128
    assert custom_call_flops(entry, entry.instructions[-2]) == share * products * 2 * scores


def test_a_kernel_of_narrow_heads_has_positions_last():
    turned = KERNEL.replace("16,1024,128", "16,32,1024").replace('\\"block_q\\"', '\\"k_layout\\": 2, \\"block_q\\"')
    entry = parse(turned.replace("NAME", "splash_mha_fwd")).entry
    assert custom_call_flops(entry, entry.instructions[-2]) == 3 / 4 * 2 * 2 * (2 * 16 * 1024 * 1024 * 32)


def test_a_slice_in_a_fusion_within_a_fusion_and_named_memory():
    text = """
%inner (p: f32[8,64,128], i: s32[]) -> f32[64,128] {
  %p = f32[8,64,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %s = f32[1,64,128]{2,1,0} dynamic-slice(%p, %i, %z, %z), dynamic_slice_sizes={1,64,128}
  ROOT %b = f32[64,128]{1,0} bitcast(%s)
}
%outer (q: f32[8,64,128], j: s32[]) -> f32[64,128] {
  %q = f32[8,64,128]{2,1,0} parameter(0)
  %j = s32[] parameter(1)
  %f = f32[64,128]{1,0} fusion(%q, %j), kind=kLoop, calls=%inner
  ROOT %n = f32[64,128]{1,0} negate(%f)
}
ENTRY %e (a: f32[8,64,128], k: s32[]) -> f32[64,128] {
  %a = f32[8,64,128]{2,1,0} parameter(0)
  %k = s32[] parameter(1)
  %m = f32[8,64,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %o = f32[64,128]{1,0} fusion(%a, %k), kind=kLoop, calls=%outer
}
"""
    module = parse(text)
    layer, index = 64 * 128 * 4, 4
    moved = [hbm_bytes(module, module.entry, one) for one in module.entry.instructions]
    assert moved == [0, 0, 0, layer + index + layer]


def test_slices_and_updates_in_place_move_only_their_part():
    rows, width = 64, 256

    def last_of_each(table, x):
        return jax.lax.fori_loop(0, rows, lambda i, table: table.at[i].set(jnp.sin(table[i]) + x), table)

    found = totals(last_of_each, (rows, width), (width,), donate_argnums=0)
    row = width * 4
    # A row read, a row written, x read, 64 times: not the table, which is 64 times a row.
    assert rows * 3 * row <= found.bytes < rows * 6 * row


def test_memory_of_the_chip_s_own_is_no_traffic():
    text = (
        "ENTRY %e (a: f32[8,128]) -> f32[8,128] {\n"
        "  %a = f32[8,128]{1,0:T(8,128)} parameter(0)\n"
        "  %b = f32[8,128]{1,0:T(8,128)S(1)} copy(%a)\n"
        "  ROOT %c = f32[8,128]{1,0:T(8,128)S(1)} negate(%b)\n}\n"
    )
    module = parse(text)
    moved = [hbm_bytes(module, module.entry, one) for one in module.entry.instructions]
    assert moved == [0, 8 * 128 * 4, 0]


def test_exchanges_are_counted_with_their_bytes():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split = (NamedSharding(mesh, P("a", "b")), NamedSharding(mesh, P("b")))
    found = totals(
        lambda x, w: x @ w, (32, 64), (64, 16), in_shardings=split, out_shardings=NamedSharding(mesh, P("a"))
    )
    # Partial sums of (16, 16), on four devices each.
    assert {kind: (one.count, one.bytes) for kind, one in found.traffic.items()} == {"all-reduce": (1, 16 * 16 * 4)}


@pytest.mark.parametrize(
    ("spelling", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", (0, 1)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", (0, 2, 4, 6)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)2}", (0, 2)),
        ("source_target_pairs={{0,1},{1,2}}", (0, 1)),
        ("replica_groups={}", ()),
    ],
)
def test_groups_in_every_spelling(spelling: str, group: tuple[int, ...]):
    assert first_group(f", channel_id=1, {spelling}, to_apply=%add") == group


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        parse("hello")


def test_sizes_of_types():
    assert [ArrayShape(dtype, (4,)).bytes for dtype in ("bf16", "pred", "s4", "f8e4m3fn", "token")] == [8, 4, 2, 4, 0]
    assert np.dtype(np.float32).itemsize * 4 == ArrayShape("f32", (4,)).bytes
