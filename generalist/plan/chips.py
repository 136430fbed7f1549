"""Published figures of accelerators, and the wiring of a TPU slice."""

import dataclasses
import difflib
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device, as JAX counts devices."""

    name: str
    flops: float
    """Peak of dense bfloat16 matrix products, FLOP/s."""
    memory: float
    """Main memory, bytes."""
    bandwidth: float
    """Bandwidth of main memory, bytes/s."""
    link: float = 0.0
    """Bandwidth of one link to a neighbour, bytes/s in each direction; 0: no links."""
    wraps: int = 0
    """A side of a slice closes to a ring if it is a multiple of this; 0: never."""


# Figures from Google's documentation (cloud.google.com/tpu/docs: v4, v5e, v5p, v6e). A link has the chip's interconnect bandwidth
# (v4 2400, v5e 1600, v5p 4800, v6e 3200 Gbit/s; v6e's page said 3584 before) divided by its number of links (v4, v5p 6: a 3-D
# torus; v5e, v6e 4: a 2-D one). A v4 or v5p chip has two cores that JAX shows as one device.
TPUS = {
    chip.name: chip
    for chip in (
        Chip(name="v4", flops=275e12, memory=32 * GIB, bandwidth=1228e9, link=50e9, wraps=4),
        Chip(name="v5e", flops=197e12, memory=16 * GIB, bandwidth=819e9, link=50e9, wraps=16),
        Chip(name="v5p", flops=459e12, memory=95 * GIB, bandwidth=2765e9, link=100e9, wraps=4),
        Chip(name="v6e", flops=918e12, memory=32 * GIB, bandwidth=1640e9, link=100e9, wraps=16),
    )
}
# Figures from NVIDIA's data sheets. Theirs often give the peak with sparsity, which is twice the dense one used here.
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
    """A grid of TPU chips."""

    chip: Chip
    shape: tuple[int, ...]
    """Number of chips along each side."""

    @property
    def name(self) -> str:
        """The name that the TPU compiler uses, such as `v5e:16x16`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def count(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)


def parse_slice(text: str) -> Slice:
    """The slice of a name such as `v5e:16x16`.

    Raises:
        ValueError: the chip is unknown, or its sides are not numbers.
    """
    name, _, sides = text.partition(":")
    if name not in TPUS:
        near = difflib.get_close_matches(name, TPUS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown TPU {name!r} in --topology {text}.{hint} Known are {', '.join(TPUS)}")
    # The inference chips are wired as a 2-D torus, the others as a 3-D one.
    flat = name in ("v5e", "v6e")
    example = "16x16" if flat else "4x4x8"
    if not re.fullmatch("x".join([r"[1-9]\d*"] * (2 if flat else 3)), sides):
        raise ValueError(
            f"--topology {text}: a slice of {name} has {2 if flat else 3} sides; write {name}:{example} for one"
        )
    return Slice(chip=TPUS[name], shape=tuple(map(int, sides.split("x"))))


def parse_gpu(text: str) -> Chip:
    """One GPU from `h100` or `gpu:24GiB`; a GPU given by its memory alone has no speed.

    Raises:
        ValueError: the text is neither a known name nor an amount of memory.
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
    # "G" and no unit mean GiB, as sizes of GPU memory are usually given.
    memory = float(found.group(1)) * (1e9 if found.group(2) == "gb" else GIB)
    return Chip(name=f"gpu:{found.group(1)} GiB", flops=0.0, memory=memory, bandwidth=0.0)
