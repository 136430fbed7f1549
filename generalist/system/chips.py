"""The table of accelerators with their makers' published figures; training's utilisation and `generalist plan` read it."""

import dataclasses
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as JAX counts them."""

    name: str
    kind: str = ""
    """Its name in JAX (`device_kind`) as a regular expression for the whole name: a longer one is often another chip."""
    flops: float
    """Peak of dense bfloat16 products, FLOP/s."""
    memory: float
    """Main memory, bytes."""
    bandwidth: float
    """Bandwidth of main memory, bytes/s."""
    link: float = 0.0
    """Bandwidth of one link to a neighbour, bytes/s in each direction; 0: it has no links."""
    wraps: int = 0
    """A side of a slice that is a multiple of this number closes to a ring; 0: no side does."""


# Google's documentation of each (cloud.google.com/tpu/docs: v4, v5e, v5p, v6e). Links: a chip's published interconnect bandwidth
# (v4 2400, v5e 1600, v5p 4800, v6e 3200 Gbit/s; v6e's page said 3584 before) over its links (v4, v5p 6: a 3-D torus; v5e, v6e
# 4: a 2-D one). A v4 or v5p chip has two cores that JAX shows as one device.
TPUS = {
    chip.name: chip
    for chip in (
        Chip(name="v4", kind="TPU v4", flops=275e12, memory=32 * GIB, bandwidth=1228e9, link=50e9, wraps=4),
        Chip(name="v5e", kind="TPU v5( lite|e)", flops=197e12, memory=16 * GIB, bandwidth=819e9, link=50e9, wraps=16),
        Chip(name="v5p", kind="TPU v5p?", flops=459e12, memory=95 * GIB, bandwidth=2765e9, link=100e9, wraps=4),
        Chip(name="v6e", kind="TPU v6( lite|e)", flops=918e12, memory=32 * GIB, bandwidth=1640e9, link=100e9, wraps=16),
    )
}
# Known for utilisation only: the planner knows no slices of it. JAX shows each of a chip's two cores as a device.
TPU_V3 = Chip(name="v3", kind="TPU v3", flops=123e12 / 2, memory=16 * GIB, bandwidth=900e9 / 2)
# NVIDIA's data sheets: dense bfloat16 peak (half of the one with sparsity), memory and its bandwidth.
GPUS = {
    chip.name: chip
    for chip in (
        Chip(
            name="a100",
            kind=r"NVIDIA A100(-SXM4?|-PCIE)?[- ]\d+GB( PCIe)?",
            flops=312e12,
            memory=80 * GIB,
            bandwidth=2039e9,
        ),
        Chip(name="h100", kind="NVIDIA H100 80GB HBM3", flops=989e12, memory=80 * GIB, bandwidth=3350e9),
        Chip(name="h100-pcie", kind="NVIDIA H100 PCIe", flops=756e12, memory=80 * GIB, bandwidth=2000e9),
        Chip(name="h100-nvl", kind="NVIDIA H100 NVL", flops=835e12, memory=94e9, bandwidth=3900e9),
        Chip(name="h200", kind="NVIDIA H200", flops=989e12, memory=141e9, bandwidth=4800e9),
        Chip(name="h200-nvl", kind="NVIDIA H200 NVL", flops=835e12, memory=141e9, bandwidth=4800e9),
        Chip(name="l4", kind="NVIDIA L4", flops=121e12, memory=24 * GIB, bandwidth=300e9),
        Chip(name="l40s", kind="NVIDIA L40S", flops=362e12, memory=48 * GIB, bandwidth=864e9),
        Chip(name="rtx3090", kind="NVIDIA GeForce RTX 3090", flops=71e12, memory=24 * GIB, bandwidth=936e9),
        Chip(name="rtx4090", kind="NVIDIA GeForce RTX 4090", flops=165e12, memory=24 * GIB, bandwidth=1008e9),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip with that name in JAX; None if its figures are not in the table (a CPU, a variant of a chip)."""
    # No guess from a similar name: a variant may have half the bandwidth, and utilisation would be wrong without notice.
    known = (*TPUS.values(), TPU_V3, *GPUS.values())
    return next((chip for chip in known if chip.kind and re.fullmatch(chip.kind, device_kind)), None)
