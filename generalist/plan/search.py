"""A search over meshes and rows per step: many are ranked by arithmetic, the best few are compiled."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from generalist.config.run import Config, TrainingConfig
from generalist.data.batch import BUDGETS, BatchSpec
from generalist.model.config import ModelSpec
from generalist.model.transformer import count_parameters
from generalist.plan.estimate import Estimate, abstract_parameters, estimate
from generalist.plan.memory import FULL, HALF, Shapes, arithmetic, with_rows
from generalist.plan.target import Target
from generalist.run.shapes import batch_spec
from generalist.training.flops import model_flops
from generalist.training.sharding import AXES, make_mesh

ROWS = (0.25, 0.5, 1.0, 2.0)
"""Fractions of the preset's rows that are tried."""
MICRO_BATCHES = (1, 2, 4, 8)
LARGEST_SPLIT = 16  # devices over which heads or positions are split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings worth compiling."""

    config: Config
    shapes: Shapes
    seconds: float
    """Seconds per step, by arithmetic."""

    @property
    def tokens_per_second(self) -> float:
        """Positions per second, by arithmetic."""
        batch = self.shapes[1]
        return batch.rows * batch.length / self.seconds

    @property
    def name(self) -> str:
        training, data = self.config.training, self.config.data
        axes = {axis: getattr(training, f"{axis}_axis") for axis in AXES}
        mesh = " × ".join(f"{axis} {size}" for axis, size in axes.items() if size > 1) or "one device"
        parts = f" in {training.parts} micro-batches" if training.parts > 1 else ""
        return f"{mesh}, {data.rows} rows{parts}"

    @property
    def settings(self) -> str:
        """The settings as options of `train.py`."""
        training, data = self.config.training, self.config.data
        budgets = {name: getattr(data, name) for name in ("rows", "shards", *BUDGETS)}
        axes = {f"{axis}-axis": getattr(training, f"{axis}_axis") for axis in AXES}
        axes["micro-batches"] = training.parts
        given = [f"--training.{name} {size}" for name, size in axes.items()]
        return " ".join([*given, *(f"--data.{name} {size}" for name, size in budgets.items() if size)])


def candidates(config: Config, shapes: Shapes, target: Target, devices: Sequence[Any]) -> list[Candidate]:
    """Meshes, rows and micro-batches that fit by arithmetic, the fastest first."""
    tried = itertools.product(meshes(config, devices), ROWS)
    found = [candidate(config, shapes, target, mesh, int(config.data.rows * share)) for mesh, share in tried]
    return sorted((one for one in found if one is not None), key=lambda one: -one.tokens_per_second)


def candidate(config: Config, shapes: Shapes, target: Target, mesh: dict[str, int], rows: int) -> Candidate | None:
    """The candidate with the fewest micro-batches that fit by arithmetic, which is the fastest; None if none fits."""
    spec, batch, encoder = shapes
    training, parts = on_mesh(config.training, mesh), mesh["data"] * mesh["fsdp"]
    # More micro-batches gather the weights more often, so the first that fits is the fastest.
    for micro in MICRO_BATCHES:
        if rows < 1 or rows % (parts * micro):
            continue
        # One shard per device and micro-batch: rows then never look for their payloads on another device.
        own = dataclasses.replace(
            with_rows(config, rows, parts * micro), training=dataclasses.replace(training, micro_batches=micro)
        )
        sized = batch_spec(own, spec, batch.image_shape, batch.image_dtype)
        needed = arithmetic(
            own,
            spec,
            sized,
            encoder,
            limit=target.memory,
            platform=target.platform,
            shards=mesh["fsdp"] * mesh["tensor"],
            replicas=parts * mesh["sequence"],
        )
        if needed.fits:
            return Candidate(config=own, shapes=(spec, sized, encoder), seconds=step_seconds(own, spec, sized, target))
    return None


def meshes(config: Config, devices: Sequence[Any]) -> Iterator[dict[str, int]]:
    """Sizes of the four axes that multiply to the number of devices and can be laid along the sides of the slice. Heads must be
    divisible by the tensor axis, positions by the sequence axis."""
    count = len(devices)
    sizes = [size for size in range(1, count + 1) if count % size == 0]
    for data, tensor, sequence in itertools.product(sizes, sizes, sizes):
        others = data * tensor * sequence
        # Query heads are a multiple of the key-value heads, so what divides these divides both.
        if (
            count % others
            or tensor > LARGEST_SPLIT
            or sequence > LARGEST_SPLIT
            or config.model.kv_heads % tensor
            or config.data.length % (sequence * max(1, config.training.loss_chunks))
        ):
            continue
        mesh = {"data": data, "fsdp": count // others, "tensor": tensor, "sequence": sequence}
        try:
            make_mesh(on_mesh(config.training, mesh), devices)
        except ValueError:  # no way to lay it along the links
            continue
        yield mesh


def on_mesh(training: TrainingConfig, mesh: dict[str, int]) -> TrainingConfig:
    """The settings with these sizes of the mesh axes."""
    axes: dict[str, Any] = {f"{axis}_axis": size for axis, size in mesh.items()}
    return dataclasses.replace(training, **axes)


def step_seconds(config: Config, spec: ModelSpec, batch: BatchSpec, target: Target) -> float:
    """Seconds per step by arithmetic: the longer of products and gathering weights, plus the sums that must be waited for."""
    training, chip = config.training, target.chip
    parameters = abstract_parameters(spec, training.tuning)
    weights, flops = count_parameters(parameters), model_flops(spec, batch, *parameters)
    if chip is None or not chip.link:
        return flops  # without speeds any order will do
    # Remat runs the forward pass twice, so weights are gathered three times instead of twice.
    passes = 2 if config.model.remat == "none" else 3
    compute = flops * (4 / 3 if passes == 3 else 1) / (target.count * chip.flops)  # forward again: 4 instead of 3 parts
    data, fsdp, tensor, sequence = (getattr(training, f"{axis}_axis") for axis in AXES)
    ring, split = 4 * chip.link, 2 * chip.link  # two sides of a slice, or one, each a ring
    gathered = training.parts * passes * HALF * weights / tensor / ring if fsdp > 1 else 0.0
    # Gradients are reduce-scattered over fsdp, and what is left of them all-reduced over data.
    summed = training.parts * HALF * weights / tensor / ring * ((fsdp > 1) + 2 * (data > 1) / fsdp)
    # Bytes of the residual stream on one device, summed after each sub-layer over the tensor axis.
    stream = HALF * spec.config.layers * batch.rows * batch.length / (data * fsdp * sequence)
    summed += (tensor > 1) * 2 * passes * 2 * stream * spec.config.width / split
    # With positions split, every device gathers the keys and values of the whole sequence.
    heads = 2 * spec.config.kv_heads * spec.config.key_size
    summed += (sequence > 1) * 2 * passes * stream * sequence * heads / tensor / split
    # The optimizer reads and writes weights, gradients and both moments once.
    traffic = 6 * FULL * weights / (fsdp * tensor) / chip.bandwidth
    return max(compute, gathered) + summed + traffic


def search(
    config: Config,
    shapes: Shapes,
    target: Target,
    devices: Sequence[Any],
    tries: int,
    say: Callable[[str], None],
) -> list[tuple[Candidate, Estimate]]:
    """Compiles the best `tries` candidates; the fastest that fits comes first.

    Raises:
        ValueError: no candidate fits by arithmetic.
    """
    # Arithmetic orders thousands in seconds; a compilation takes minutes.
    ranked = candidates(config, shapes, target, devices)
    if not ranked:
        raise ValueError(
            f"by arithmetic {config.name} fits no mesh of {target.name}: choose a larger slice or fewer --data.rows"
        )
    say(f"{len(ranked)} meshes and batches may fit by arithmetic; compiling the best {min(tries, len(ranked))}")
    found = []
    for number, one in enumerate(ranked[:tries], 1):
        say(f"{number} of {min(tries, len(ranked))}: {one.name}")
        result = estimate(one.config, one.shapes, target, devices)
        outcome = "does not fit" if not result.fits else f"{result.tokens_per_second or 0:,.0f} tokens/s"
        say(f"{number} of {min(tries, len(ranked))}: {one.name}: {outcome}, {result.compile_seconds:.0f} s to compile")
        found.append((one, result))
    return sorted(found, key=lambda pair: (not pair[1].fits, -(pair[1].tokens_per_second or 0)))
