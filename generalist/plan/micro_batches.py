"""`training.micro_batches = auto`: the number of micro-batches with which a step fits the memory of a device."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from generalist.config.run import Config
from generalist.plan.memory import Shapes, arithmetic
from generalist.training.sharding import AXES, ROWS, make_mesh

MARGIN = 1.7
"""How much more than by arithmetic a compiled step may need, as the tests hold it."""


def decided(config: Config, shapes: Shapes, devices: Sequence[Any] | None, limit: float | None) -> Config:
    """The settings with a number in place of `auto`: the smallest power of two with which the step fits, or, if none does, the
    largest into which the batch divides.

    Args:
        shapes: of model and batches (`generalist.run.shapes.without_data`).
        devices: all that take part; None: one GPU that need not be there.
        limit: bytes of memory of each; None: unlimited.
    """
    if config.training.micro_batches != "auto":
        return config
    mesh = dict.fromkeys(AXES, 1) if devices is None else dict(make_mesh(config.training, devices).shape)
    parts = math.prod(mesh[axis] for axis in ROWS)
    # Every device has rows in every micro-batch, and a micro-batch consists of whole shards.
    most = math.gcd(max(1, config.data.rows // parts), config.data.shards)
    for count in (2**power for power in range(most.bit_length()) if most % 2**power == 0):
        found = with_micro_batches(config, count)
        needed = arithmetic(
            found,
            *shapes,
            limit=limit,
            platform="gpu" if devices is None else devices[0].platform,
            shards=mesh["fsdp"] * mesh["tensor"],
            replicas=parts * mesh["sequence"],
        ).total
        if limit is None or MARGIN * needed <= limit:
            break
    return found


def with_micro_batches(config: Config, count: int) -> Config:
    """The settings with `count` micro-batches."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, micro_batches=count))


def device_memory() -> float | None:
    """Bytes of memory that programs may use on a device of this machine; None on a CPU.

    If there are several processes, all get the first one's: with different numbers they would compile different programs.

    Raises:
        ValueError: an accelerator does not say.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = float(stats.get("bytes_limit", 0))
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import broadcast_one_to_all

        limit = float(broadcast_one_to_all(limit))
    if not limit and jax.local_devices()[0].platform != "cpu":
        raise ValueError(
            "training.micro_batches = auto: the device does not say how much memory it has (XLA_PYTHON_CLIENT_ALLOCATOR may be "
            "why): give a number, such as --training.micro-batches 4"
        )
    return limit or None
