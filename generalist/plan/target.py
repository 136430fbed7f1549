"""The target of a plan: a TPU slice that need not be present, simulated CPU devices, or one GPU's memory."""

import dataclasses
import difflib
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from generalist.system.chips import GIB, GPUS, TPUS, Chip
from generalist.system.xla_flags import given_flags

RESERVED = 0.25 * GIB
"""Bytes of a TPU's main memory that the runtime reserves: the compiler fills 15.75 of 16 GiB."""
GPU_SHARE = 0.75
"""The part of a GPU's memory that JAX lets programs fill, where none of the variables says otherwise."""
GPU_SHARE_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # the second is the older name
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The devices that a plan is made for."""

    name: str
    """The name that the user gave."""
    platform: str
    """tpu, cpu or gpu."""
    count: int
    chip: Chip | None = None
    """None for simulated devices, which have no limit of memory and no speed."""
    slice: Slice | None = None
    """Wiring of TPUs; None for others."""

    @property
    def memory(self) -> float | None:
        """Bytes per device that a program may fill; None without a limit.

        Raises:
            ValueError: as `gpu_share`.
        """
        if self.chip is None:
            return None
        return self.chip.memory - RESERVED if self.slice is not None else self.chip.memory * gpu_share()


def gpu_share() -> float:
    """The part of a GPU's memory that programs may fill.

    Raises:
        ValueError: the variable that sets it is no number above 0.
    """
    name = next((name for name in GPU_SHARE_VARIABLES if os.environ.get(name)), None)
    if name is None:
        return GPU_SHARE
    try:
        share = float(os.environ[name])
    except ValueError:
        share = 0.0
    if not share > 0:
        raise ValueError(f"{name} must be a number above 0, such as {GPU_SHARE}, got {os.environ[name]!r}")
    return share


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
    flat = name in ("v5e", "v6e")  # wired as a two-dimensional torus; the others have three dimensions
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
    # 24 and 24G are taken as GiB, which is what makers mean by a card's gigabytes; only GB is taken literally.
    memory = float(found.group(1)) * (1e9 if found.group(2) == "gb" else GIB)
    return Chip(name=text, flops=0.0, memory=memory, bandwidth=0.0)


def parse_target(topology: str | None, devices: str | None) -> Target:
    """The target of `--topology v5e:16x16`, `--devices cpu:8`, `--devices gpu:24GiB` or `--devices h100`.

    Raises:
        ValueError: both or neither are given, or one is unknown.
    """
    # No default: a plan for the wrong machine looks as convincing as one for the right machine.
    if (topology is None) == (devices is None):
        raise ValueError("give either --topology, such as v5e:16x16, or --devices, such as cpu:8, gpu:24GiB or h100")
    if topology is not None:
        found = parse_slice(topology)
        return Target(name=found.name, platform="tpu", count=found.count, chip=found.chip, slice=found)
    assert devices is not None
    if devices == "cpu" or devices.startswith("cpu:"):
        count = devices.removeprefix("cpu").removeprefix(":") or "1"
        if not re.fullmatch(r"[1-9]\d{0,3}", count):
            raise ValueError(f"--devices {devices}: write the number of simulated devices, such as cpu:8")
        return Target(name=devices, platform="cpu", count=int(count))
    chip = parse_gpu(devices)
    return Target(name=chip.name, platform="gpu", count=1, chip=chip)


def prepare_environment(target: Target) -> None:
    """Sets environment variables that JAX reads on import. Programs are only compiled here, never run on an accelerator."""
    os.environ["JAX_PLATFORMS"] = (
        "cpu"  # otherwise JAX would claim the memory of an accelerator that happens to be here
    )
    # Once JAX has started, the number of devices is fixed: `open_devices` reports it if it is too small.
    if target.platform == "cpu" and "jax" not in sys.modules:
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", given_flags())
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={target.count}".strip()
    if target.slice is not None:
        # Without a TPU there is no metadata server to query and no device to lock; the other variables only silence warnings.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        # A program for devices that are not there can't be loaded from the cache of compiled programs: JAX would warn.
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        quiet = {
            "TPU_ACCELERATOR_TYPE": f"{target.slice.chip.name}-{target.count}",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "TPU_STDERR_LOG_LEVEL": "3",
            "TPU_MIN_LOG_LEVEL": "3",
        }
        for name, value in quiet.items():
            os.environ.setdefault(name, value)


def open_devices(target: Target) -> Sequence[Any]:
    """The target's devices, as JAX describes them.

    Raises:
        ImportError: libtpu is not installed.
        ValueError: the TPU compiler does not know the slice, or too few devices are simulated.
    """
    import jax

    if target.slice is None:
        found = jax.devices("cpu")
        if len(found) < target.count:
            raise ValueError(
                f"--devices {target.name}, but JAX was started with {len(found)} devices: "
                f"set XLA_FLAGS=--xla_force_host_platform_device_count={target.count} before JAX is imported"
            )
        return found[: target.count]
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "planning for a TPU needs its compiler: pip install 'generalist[tpu]', or uv sync --extra tpu"
        ) from error
    from jax.experimental import topologies

    # Makes the two cores of a v4 chip one device, as later chips are by default.
    settings: dict[str, Any] = {"chip_config_name": "megacore"} if target.slice.chip.name == "v4" else {}
    if target.slice.count == 1:
        settings["chips_per_host_bounds"] = (1, 1, 1)  # by default a host has 2 × 2 chips
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=target.name, **settings).devices
    except Exception as error:  # the plugin raises errors of several kinds
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the TPU compiler does not know the slice {target.name}: {reason}") from error
