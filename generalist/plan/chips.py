"""What accelerators can do, as their makers publish it, and how a slice of them is wired."""

import dataclasses
import difflib
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as JAX counts them."""

    name: str
    flops: float
    """Peak of dense bfloat16 products, FLOP/s."""
    memory: float
    """Main memory, bytes."""
    bandwidth: float
    """Of main memory, bytes/s."""
    link: float = 0.0
    """Of one link to a neighbour, bytes/s in each direction; 0: it has none."""
    wraps: int = 0
    """A side of a slice that is a multiple of this closes to a ring; 0: none does."""


# Google's documentation of each (cloud.google.com/tpu/docs: v4, v5e, v5p, v6e). Links: a chip's published interconnect bandwidth
# (v4 2400, v5e 1600, v5p 4800, v6e 3200 Gbit/s; v6e's page said 3584 before) over its links (v4, v5p 6: a 3-D torus; v5e, v6e
# 4: a 2-D one). A v4 or v5p chip has two cores that JAX shows as one device.
TPUS = {
    chip.name: chip
    for chip in (
        Chip(name="v4", flops=275e12, memory=32 * GIB, bandwidth=1228e9, link=50e9, wraps=4),
        Chip(name="v5e", flops=197e12, memory=16 * GIB, bandwidth=819e9, link=50e9, wraps=16),
        Chip(name="v5p", flops=459e12, memory=95 * GIB, bandwidth=2765e9, link=100e9, wraps=4),
        Chip(name="v6e", flops=918e12, memory=32 * GIB, bandwidth=1640e9, link=100e9, wraps=16),
    )
}
# NVIDIA's data sheets: dense bfloat16 peak, memory and its bandwidth.
GPUS = {
    chip.name: chip
    for chip in (
        Chip(name="a100", flops=312e12, memory=80 * GIB, bandwidth=2039e9),
        Chip(name="h100", flops=989e12, memory=80 * GIB, bandwidth=3350e9),
        Chip(name="h200", flops=989e12, memory=141e9, bandwidth=4800e9),
        Chip(name="l4", flops=121e12, memory=24 * GIB, bandwidth=300e9),
        Chip(name="l40s", flops=362e12, memory=48 * GIB, bandwidth=864e9),
        Chip(name="rtx3090", flops=71e12, memory=24 * GIB, bandwidth=936e9),
        Chip(name="rtx4090", flops=165e12, memory=24 * GIB, bandwidth=1008e9),
    )
}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB|G)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """TPU chips side by side."""

    chip: Chip
    shape: tuple[int, ...]
    """Chips along each side."""

    @property
    def name(self) -> str:
        """As the TPU compiler spells it, `v5e:16x16`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def parse_slice(text: str) -> Slice:
    """`v5e:16x16` → the slice.

    Raises:
        ValueError: no such chip, or its sides are no numbers.
    """
    name, _, sides = text.partition(":")
    if name not in TPUS:
        near = difflib.get_close_matches(name, TPUS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown TPU {name!r} in --topology {text}.{hint} There are: {', '.join(TPUS)}")
    flat = name in ("v5e", "v6e")
    example = "16x16" if flat else "4x4x8"
    if not re.fullmatch("x".join([r"[1-9]\d*"] * (2 if flat else 3)), sides):
        raise ValueError(
            f"--topology {text}: a slice of {name} has {2 if flat else 3} sides; write {name}:{example} for one"
        )
    return Slice(chip=TPUS[name], shape=tuple(map(int, sides.split("x"))))


def parse_gpu(text: str) -> Chip:
    """`h100` or `gpu:24GiB` → one GPU; one known by its memory alone has no speed.

    Raises:
        ValueError: neither a known name nor an amount of memory.
    """
    name = text.removeprefix("gpu:").lower()
    if name in GPUS:
        return GPUS[name]
    found = _MEMORY.fullmatch(name)
    if not found or not text.startswith("gpu:") or not float(found.group(1)):
        near = difflib.get_close_matches(name, GPUS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"unknown --devices {text!r}.{hint} Write cpu:8, gpu:24GiB, or a GPU's name: {', '.join(GPUS)}"
        )
    memory = float(found.group(1)) * (1e9 if found.group(2) == "gb" else GIB)
    return Chip(name=f"gpu:{found.group(1)} GiB", flops=0.0, memory=memory, bandwidth=0.0)
