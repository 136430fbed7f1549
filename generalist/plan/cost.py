"""The cost of one instruction: matrix FLOPs, and bytes moved between the chip and its main memory (HBM).

Only the FLOPs of matrix products and convolutions count, since only those run on the matrix units. Bytes are those of operands
and results outside a fusion; what stays within it, or in the chip's own memory, is not moved.
"""

import dataclasses
import json
import math
import re

import numpy as np

from generalist.plan.hlo import ArrayShape, Computation, Instruction, Module

FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
        *("opt-barrier", "iota", "domain", "add-dependency", "get-dimension-size"),
    )
)
"""Operations that move no data."""
WITHOUT_TRAFFIC = ("AllocateBuffer", "ConcatBitcast")
"""Calls that only name memory: to be written by others, or slices side by side that are read as one array."""
SLICES = ("dynamic-slice", "slice", "gather")
# Matrix products in the Pallas attention kernels, each of 2 · queries · keys · head size FLOPs. Forward: scores and mixing.
# Backward: the scores again, then the gradients of values, weights, keys and queries.
ATTENTION_PRODUCTS = {"dkv": 4, "dq": 3, "fwd": 2}
FUSED_BACKWARD = 5  # one kernel for both gradients computes the scores once


def flops(module: Module, computation: Computation, one: Instruction) -> float:
    """Matrix FLOPs of an instruction and of the computations it calls; loops and conditionals are handled by `roofline`."""
    if one.operation == "dot":
        left = computation.operands(one)[0].shapes[0]
        # Each element of the result is a sum over the contracted dimensions: one multiplication and one addition per term.
        # Batch dimensions are among those of the result, so they need no care.
        return 2.0 * _elements(one.shapes[0]) * math.prod(left.dims[dim] for dim in one.sizes("lhs_contracting_dims"))
    if one.operation == "convolution":
        return convolution_flops(one, *(operand.shapes[0] for operand in computation.operands(one)[:2]))
    if one.operation == "custom-call":
        return custom_call_flops(computation, one)
    # Anything else runs on the vector units, unless it contains one of the above.
    return sum(flops(module, body, part) for body in inside(module, one) for part in body.instructions)


def inside(module: Module, one: Instruction) -> list[Computation]:
    """The computations that run as one operation: those of a fusion, or of a call that is started and awaited (SparseCore)."""
    return module.called(one, "calls", "to_apply") if one.operation in ("fusion", "async-start", "call-start") else []


def convolution_flops(one: Instruction, image: ArrayShape, kernel: ArrayShape) -> float:
    """FLOPs of a convolution, without products with padding or with the holes of dilation: batched matrix products on a TPU are
    convolutions with much of both."""
    # Such as dim_labels=b01f_01io->b01f: batch, features and spatial dimensions of image, kernel and result.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels is not None, one.attributes
    images, kernels, outputs = labels.groups()
    # Such as window={size=3x3 stride=2x2 pad=1_1x1_1}; attributes that have their default in every dimension are left out.
    window = one.attribute("window", r"\{([^}]*)\}") or ""
    spatial = sorted(label for label in kernels if label.isdigit())
    given = {name: values.split("x") for name, values in re.findall(r"(\w+)=([\w\-]+)", window)}
    valid = 1
    for index, label in enumerate(spatial):
        # `at`: for every output and kernel position the input position; valid where it is inside and not in a hole.

        def value(name: str, default: str, index: int = index) -> str:
            return given[name][index] if name in given else default

        low = int(value("pad", "0_0").split("_")[0])
        stride, hole, gap = (int(value(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
        inside, outside = image.dims[images.index(label)], one.shapes[0].dims[outputs.index(label)]
        at = (
            np.arange(outside)[:, None] * stride + np.arange(int(value("size", "1")))[None] * gap - low
        )  # (outputs, kernel)
        valid *= int(((at >= 0) & (at % hole == 0) & (at // hole < inside)).sum())
    # Groups of features need no factor: the kernel has the input features of one group. Groups of the batch, which appear in
    # gradients of grouped convolutions, divide it.
    groups = int(one.attribute("batch_group_count", r"(\d+)") or 1)
    batch, features = image.dims[images.index("b")] // groups, one.shapes[0].dims[outputs.index("f")]
    return 2.0 * valid * batch * features * kernel.dims[kernels.index("i")]


def custom_call_flops(computation: Computation, one: Instruction) -> float:
    """FLOPs of a Pallas kernel: its own estimate if it states one, else those of attention by its operands' shapes and by the
    blocks that a causal mask leaves. Blocks that are empty because of segments depend on the data and are counted."""
    if one.attribute("custom_call_target", r'"([^"]*)"') != "tpu_custom_call":
        return 0.0
    # Kernels of JAX's library state a cost in newer versions; the names are for older ones.
    stated = re.search(r'"cost_estimate":(\{[^}]*\})', one.attributes)
    if stated:
        return float(json.loads(stated.group(1)).get("flops", 0))
    name = " ".join((one.name, one.attribute("op_name", r'"([^"]*)"') or "", one.attribute("kernel_name") or ""))
    products = next((count for kind, count in ATTENTION_PRODUCTS.items() if kind in name), 0)
    # Queries and keys come first among the operands of three or more dimensions; masks and segment ids have other types.
    arrays = [
        shape
        for operand in computation.operands(one)
        for shape in operand.shapes
        if shape.dtype in ("bf16", "f32") and len(shape.dims) >= 3
    ]
    if not products or len(arrays) < 2:
        return 0.0
    if "dkv" in name and "fused" in name:
        products = FUSED_BACKWARD
    query, key = arrays[:2]  # (..., queries, head size) and (..., keys, head size)
    # Narrow heads come transposed: (..., head size, keys), QKVLayout.SEQ_MINOR of JAX's kernels.
    keys = key.dims[-1 if re.search(r"k_layout\W+2\b", one.attributes) else -2]
    return _causal_share(one, name, keys) * products * 2.0 * _elements(query) * keys


def _causal_share(one: Instruction, name: str, length: int) -> float:
    """Fraction of the blocks of scores that a causal kernel computes; blocks on the diagonal count as whole."""
    suffix = next((f"_{kind}" for kind in ("dkv", "dq") if kind in name), "")
    # Of b × b blocks those on and below the diagonal are computed: b (b + 1) / 2.
    stated = re.search(rf"block_kv{suffix}\W+(\d+)", one.attributes)
    blocks = max(1, length // int(stated.group(1))) if stated else length
    return (blocks + 1) / (2 * blocks)


def is_counted(one: Instruction) -> bool:
    """Whether an instruction's FLOPs are known; False for Pallas kernels of an unknown kind."""
    if one.attribute("custom_call_target", r'"([^"]*)"') != "tpu_custom_call":
        return True
    return "cost_estimate" in one.attributes or any(kind in one.attributes + one.name for kind in ATTENTION_PRODUCTS)


def hbm_bytes(module: Module, computation: Computation, one: Instruction) -> float:
    """Bytes that an instruction reads from main memory and writes to it. Slices read only what they take; updates in place write
    only what they change."""
    operands = computation.operands(one)
    # "-done" only waits: its "-start" was counted.
    if one.operation in FREE or one.operation.endswith("-done"):
        return 0.0
    if one.operation == "fusion":
        # Within a fusion nothing touches main memory: only its operands and results do.
        (body,) = module.called(one, "calls")
        read = sum(_read(module, body, index, operand) for index, operand in enumerate(operands))
        return read + sum(_written(module, body, shape, part) for shape, part in _results(body, one))
    if one.attribute("custom_call_target", r'"([^"]*)"') in WITHOUT_TRAFFIC:
        return 0.0
    # The larger side may be a whole array of which a slice is copied, or the other way round. Where both sides are in main
    # memory, what is read is also written.
    if one.operation in ("copy-start", "slice-start"):
        sides = one.shapes[:2]
        return min(shape.bytes for shape in sides) * sum(shape.space == 0 for shape in sides)
    # Twice: what is read is also written.
    if one.operation in SLICES:
        return 2 * sum(map(_outside, one.shapes))
    if one.operation == "dynamic-update-slice":
        return 2 * sum(map(_outside, operands[1].shapes))  # its operands: target, update, start indices
    return sum(_outside(shape) for operand in operands for shape in operand.shapes) + sum(map(_outside, one.shapes))


def place(module: Module, one: Instruction, *, multiplies: bool) -> str:
    """What an instruction does and where in the model it comes from: `transpose: jit(step)/... (model/attend.py:120)`."""
    kind = one.operation
    if multiplies and kind in ("fusion", "convolution", "dot"):
        kind = "product"
    elif kind == "fusion":
        (body,) = module.called(one, "calls")
        kind = f"fusion to {_source(body, body.root.name).operation}".removesuffix(" to tuple")
    asked = one.attribute("op_name", r'"([^"]*)"') or "the compiler's own"
    line = module.lines.get(one.attribute("stack_frame_id", r"(\d+)") or "", "")
    return f"{kind}: {asked}" + (f" ({line})" if line else "")


@dataclasses.dataclass(frozen=True)
class _Use:
    """How a part of a fusion is used: bytes that are moved, and whether all of it is read."""

    moved: float
    whole: bool


def _read(module: Module, body: Computation, index: int, operand: Instruction) -> float:
    """Bytes of an operand that a fusion reads: all, or only the slices that it takes."""
    # An operand that no instruction reads is not moved.
    if index not in body.parameters:
        return 0.0
    whole = sum(map(_outside, operand.shapes))
    # A scan over layers slices the stacked parameters in every trip: counted as whole, they would be read L times too often.
    uses = [_use(module, body, user, body.parameters[index].name) for user in _through(body, body.parameters[index])]
    if any(use.whole for use in uses):
        return whole
    return min(whole, sum(use.moved for use in uses))


def _through(body: Computation, part: Instruction) -> list[Instruction]:
    """The instructions that read a part, looking through bitcasts."""
    found = []
    for user in body.users.get(part.name, []):
        found += _through(body, user) if user.operation == "bitcast" and not user.root else [user]
    return found


def _use(module: Module, body: Computation, user: Instruction, name: str) -> _Use:
    if user.operation in SLICES:
        return _Use(user.bytes, False)
    # A fusion within the fusion may be the one that takes the slice.
    if user.operation == "fusion":
        (inner,) = module.called(user, "calls")
        places = [index for index, part in enumerate(body.operands(user)) if _source(body, part.name).name == name]
        return _Use(sum(_read(module, inner, index, body.by_name[name]) for index in places), False)
    # The target of an update in place is not read.
    if user.operation == "dynamic-update-slice" and _source(body, user.operands[0]).name == name:
        return _Use(0.0, False)
    # Buffers of a collective that overlaps with the fusion only pass through it.
    passing = user.operation == "tuple" or is_collective(user) or user.operation in ("custom-call", "scatter")
    return _Use(0.0, user.operation == "scatter" or not passing)


def _source(body: Computation, name: str) -> Instruction:
    """The instruction that a name refers to, looking through bitcasts."""
    part = body.by_name[name]
    while part.operation == "bitcast":
        part = body.by_name[part.operands[0]]
    return part


def _results(body: Computation, one: Instruction) -> list[tuple[ArrayShape, Instruction]]:
    """A fusion's results, each with the part of its body that produces it."""
    if body.root.operation != "tuple":
        return [(shape, body.root) for shape in one.shapes]
    return list(zip(one.shapes, body.operands(body.root), strict=False))


def _written(module: Module, body: Computation, shape: ArrayShape, part: Instruction) -> float:
    """Bytes of a fusion's result that are written: none if it only passes through, and only the changed part of an update."""
    source = _source(body, part.name)
    if source.operation == "parameter" or is_collective(source) or source.operation == "custom-call":
        return 0.0
    if source.operation == "dynamic-update-slice":
        return min(_outside(shape), body.by_name[source.operands[1]].bytes)
    if source.operation == "fusion":
        (inner,) = module.called(source, "calls")
        if inner.root.operation != "tuple":
            return _written(module, inner, shape, inner.root)
    return _outside(shape)


def is_collective(one: Instruction) -> bool:
    """Whether an instruction exchanges data between devices."""
    return one.operation.removesuffix("-start") in COLLECTIVES


COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")


def _outside(shape: ArrayShape) -> float:
    """Bytes that an array occupies in main memory, padding included; 0 if it is in the chip's own."""
    return shape.bytes * shape.padding if shape.space == 0 else 0.0


def _elements(shape: ArrayShape) -> int:
    return math.prod(shape.dims)
