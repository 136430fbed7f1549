"""Time by the roofline, memory by arithmetic, and what is said of bad input."""

import pytest

from generalist.plan.groups import Exchange, Torus
from generalist.plan.hlo import parse
from generalist.plan.roofline import Speeds, walk
from generalist.plan.target import GPU_SHARE_VARIABLES, parse_gpu, parse_slice, parse_target
from generalist.system.chips import GIB, TPUS

V5E = parse_slice("v5e:16x16")
TORUS = Torus(slice=V5E, places=[(number // 16, number % 16) for number in range(256)])
ROW, ALL = tuple(range(16)), ()
LINK = 50e9


@pytest.mark.parametrize(
    ("kind", "group", "seconds"),
    [
        ("all-gather", ROW, 15 / 16 / 2),  # one closed side: two links
        ("all-gather", ALL, 255 / 256 / 4),  # two closed sides
        ("reduce-scatter", ALL, 255 / 256 / 4),
        ("all-reduce", ROW, 2 * 15 / 16 / 2),
        ("all-reduce", (0, 1, 2, 3), 2 * 3 / 4),  # a part of a side is no ring: one link
        ("all-to-all", ROW, 16 / 8),
        ("collective-permute", (0, 1), 1),
        ("all-gather", (5,), 0),
    ],
)
def test_exchanges_on_a_torus(kind: str, group: tuple[int, ...], seconds: float):
    assert TORUS.seconds(Exchange(kind=kind, bytes=LINK, group=group)) == pytest.approx(seconds)


def test_a_side_that_does_not_close_has_half_the_links():
    line = Torus(slice=parse_slice("v5e:4x4"), places=[(number // 4, number % 4) for number in range(16)])
    assert line.seconds(Exchange(kind="all-gather", bytes=LINK, group=(0, 1, 2, 3))) == pytest.approx(3 / 4)


PROGRAM = """
%body (p: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %p = (s32[], f32[64,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[64,64]{1,0} get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %start = (f32[64,64]{1,0}, f32[128,64]{1,0}) all-gather-start(%x), channel_id=1, replica_groups=[1,2]<=[2], dimensions={0}
  %y = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done = f32[128,64]{1,0} all-gather-done(%start)
  %z = f32[64,64]{1,0} all-reduce(%y), channel_id=2, replica_groups=[1,2]<=[2], to_apply=%add
  ROOT %t = (s32[], f32[64,64]{1,0}) tuple(%next, %z)
}
%condition (q: (s32[], f32[64,64])) -> pred[] {
  %q = (s32[], f32[64,64]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %end = s32[] constant(10)
  ROOT %less = pred[] compare(%j, %end), direction=LT
}
ENTRY %main (a: f32[64,64]) -> f32[64,64] {
  %a = f32[64,64]{1,0} parameter(0)
  %begin = s32[] constant(4)
  %init = (s32[], f32[64,64]{1,0}) tuple(%begin, %a)
  %loop = (s32[], f32[64,64]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %r = f32[64,64]{1,0} get-tuple-element(%loop), index=1
}
"""
PRODUCT, ARRAY, TRIPS = 2 * 64**3, 64 * 64 * 4, 6  # from 4 to 10


@pytest.mark.parametrize(
    ("flops", "bandwidth", "gather", "body"),
    [
        (
            PRODUCT,
            1e12,
            0.5,
            1 + 3,
        ),  # the product takes a second, the started exchange runs beside it, the other is waited for
        (PRODUCT, 1e12, 2.0, 2 + 3),  # the started exchange takes longer than the product
        (PRODUCT * 10, ARRAY, 0.5, 3 + 3),  # memory: two operands and a result
    ],
)
def test_what_overlaps_and_what_is_waited_for(flops: float, bandwidth: float, gather: float, body: float):
    def seconds(one: Exchange) -> float:
        return gather if one.kind == "all-gather" else 3.0

    found = walk(parse(PROGRAM), Speeds(flops=flops, bandwidth=bandwidth, seconds=seconds))
    # The counter's own addition moves a few bytes.
    assert found.seconds == pytest.approx(TRIPS * body, rel=1e-2)
    assert found.flops == TRIPS * PRODUCT
    gathered, reduced = found.traffic["all-gather"], found.traffic["all-reduce"]
    assert (gathered.count, gathered.bytes, gathered.hidden) == (TRIPS, TRIPS * 2 * ARRAY, TRIPS * gather)
    assert (reduced.count, reduced.bytes, reduced.hidden) == (TRIPS, TRIPS * ARRAY, 0)


MOVING = """
HloModule moving

FileNames
1 "/somewhere/generalist/model/attend.py"

FunctionNames
1 "attend"

FileLocations
1 {file_name_id=1 function_name_id=1 line=120 end_line=120 column=8 end_column=20}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%body (p: bf16[64,1024]) -> bf16[1024,64] {
  %p = bf16[64,1024]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %t = bf16[1024,64]{1,0:T(8,128)(2,1)} transpose(%p), dimensions={1,0}
}
ENTRY %main (a: bf16[64,1024]) -> bf16[1024,64] {
  %a = bf16[64,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %part = ((bf16[64,1024]{1,0:T(8,128)(2,1)}), bf16[16,1024]{1,0:T(8,128)(2,1)S(1)}, s32[]) slice-start(%a), slice={[0:16]}
  ROOT %r = bf16[1024,64]{1,0:T(8,128)(2,1)} fusion(%a), calls=%body, metadata={op_name="jit(f)/swap" stack_frame_id=1}
}
"""


def test_memory_traffic_by_place_with_the_padding_of_tiles():
    found = walk(parse(MOVING), Speeds(flops=1e12, bandwidth=1e9, seconds=lambda _: 0.0))
    # Of 128 lanes the result fills 64, so twice its bytes are written; of the array that is sliced only the slice is read.
    fusion, part = 64 * 1024 * 2 + 2 * 64 * 1024 * 2, 16 * 1024 * 2
    assert {place: one.bytes for place, one in found.moved.items()} == {
        "slice-start: the compiler's own": part,
        "fusion to transpose: jit(f)/swap (model/attend.py:120)": fusion,
    }
    assert found.moved["fusion to transpose: jit(f)/swap (model/attend.py:120)"].seconds == pytest.approx(fusion / 1e9)
    assert found.bytes == fusion + part


def test_loops_repeat_what_they_move():
    found = walk(parse(PROGRAM), Speeds(flops=1e12, bandwidth=1e12, seconds=lambda _: 0.0)).moved
    assert (found["product: the compiler's own"].count, found["product: the compiler's own"].bytes) == (
        TRIPS,
        TRIPS * 3 * ARRAY,
    )
    assert found["product: the compiler's own"].seconds == 0  # its products take longer


@pytest.mark.parametrize(
    ("topology", "devices", "message"),
    [
        ("v5:4x4", None, "unknown TPU 'v5' .* Did you mean v5"),
        ("v5e:4x4x4", None, "v5e has 2 sides; write v5e:16x16"),
        ("v5p:0x4x4", None, "v5p has 3 sides; write v5p:4x4x8"),
        (None, None, "either --topology, such as v5e:16x16, or --devices"),
        ("v5e:4x4", "cpu:8", "either --topology"),
        (None, "cpu:x", "number of simulated devices, such as cpu:8"),
        (None, "h10", "Did you mean h100"),
        (None, "gpu:0GiB", "gpu:24GiB"),
    ],
)
def test_what_is_no_machine_is_refused(topology: str | None, devices: str | None, message: str):
    with pytest.raises(ValueError, match=message):
        parse_target(topology, devices)


def test_machines(monkeypatch: pytest.MonkeyPatch):
    for name in GPU_SHARE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert parse_target("v5p:4x4x8", None).count == 128
    assert parse_target(None, "cpu:8").memory is None
    assert parse_gpu("gpu:24GiB").memory == 24 * GIB
    assert parse_gpu("gpu:24").memory == parse_gpu("rtx4090").memory
    assert parse_target(None, "gpu:24GB").name == "gpu:24GB"
    assert parse_target(None, "gpu:24GiB").memory == 0.75 * 24 * GIB
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".9")
    assert parse_target(None, "h100").memory == 0.9 * 80 * GIB
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "90%")
    with pytest.raises(ValueError, match="XLA_CLIENT_MEM_FRACTION must be a number above 0, such as 0.75, got '90%'"):
        _ = parse_target(None, "h100").memory
    # What Google states for a pod of 256: 51.2 TB/s of all-reduce on v5e.
    assert TPUS["v5e"].link * 4 * 256 == pytest.approx(51.2e12)
