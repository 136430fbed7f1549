"""A search over meshes and rows a step: many are ranked by arithmetic, the best few are compiled."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from generalist.config import Config
from generalist.data.batch import BatchSpec
from generalist.model.config import ModelSpec
from generalist.plan.estimate import Estimate, abstract_parameters, estimate
from generalist.plan.memory import FULL, HALF, arithmetic, with_rows
from generalist.plan.target import Target
from generalist.shapes import batch_spec
from generalist.training.metrics import model_flops
from generalist.vision.encoder import VisionEncoder

Shapes = tuple[ModelSpec, BatchSpec, VisionEncoder | None]
ROWS = (0.25, 0.5, 1.0, 2.0)
"""Of the preset's rows, what is tried."""
LARGEST_TENSOR_AXIS = 16
RECOMPUTED = 4 / 3  # products of a step that computes each block's forward pass twice, against one that does not
SPARE = 1.5  # how far arithmetic may be above what the compiler then needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings worth compiling."""

    config: Config
    shapes: Shapes
    seconds: float
    """A step's, by arithmetic."""

    @property
    def tokens_per_second(self) -> float:
        """By arithmetic."""
        batch = self.shapes[1]
        return batch.rows * batch.length / self.seconds

    @property
    def name(self) -> str:
        training = self.config.training
        return (
            f"data {training.data_axis} × fsdp {training.fsdp_axis} × tensor {training.tensor_axis}, "
            f"{self.config.data.rows} rows"
        )


def candidates(config: Config, shapes: Shapes, target: Target) -> list[Candidate]:
    """Meshes and rows that fit by arithmetic, the fastest first."""
    spec, batch, encoder = shapes
    found = []
    for mesh, share in itertools.product(meshes(config, target.count), ROWS):
        rows = int(config.data.rows * share)
        if rows < 1 or rows % (mesh[0] * mesh[1]):
            continue
        data, fsdp, tensor = mesh
        training = dataclasses.replace(config.training, data_axis=data, fsdp_axis=fsdp, tensor_axis=tensor)
        sized = dataclasses.replace(with_rows(config, rows), training=training)
        own = (spec, batch_spec(sized, spec, batch.image_shape, batch.image_dtype), encoder)
        needed = arithmetic(sized, *own, limit=target.memory, shards=fsdp * tensor, replicas=data * fsdp)
        if needed.limit is None or needed.total <= SPARE * needed.limit:
            found.append(Candidate(config=sized, shapes=own, seconds=step_seconds(sized, own, target)))
    return sorted(found, key=lambda one: -one.tokens_per_second)


def meshes(config: Config, count: int) -> Iterator[tuple[int, int, int]]:
    """Sizes of (data, fsdp, tensor) that multiply to `count`; heads must divide among the tensor axis."""
    sizes = [size for size in range(1, count + 1) if count % size == 0]
    for data, tensor in itertools.product(sizes, sizes):
        if count % (data * tensor) == 0 and tensor <= LARGEST_TENSOR_AXIS and config.model.kv_heads % tensor == 0:
            yield data, count // (data * tensor), tensor


def step_seconds(config: Config, shapes: Shapes, target: Target) -> float:
    """A step's time by arithmetic: products at the peak or gathering weights, whichever is longer, and the sums that must be
    waited for."""
    spec, batch, _ = shapes
    training, chip = config.training, target.chip
    params = abstract_parameters(spec)
    weights = sum(math.prod(leaf.shape) for leaf in _leaves(params))
    if chip is None or not chip.link:
        return model_flops(spec, batch, params)
    data, fsdp, tensor = training.data_axis, training.fsdp_axis, training.tensor_axis
    compute = model_flops(spec, batch, params) * (RECOMPUTED if config.model.remat else 1) / (target.count * chip.flops)
    ring = 4 * chip.link  # two sides of a slice, each a ring
    passes = 3 if config.model.remat else 2
    gathered = passes * HALF * weights / tensor / ring if fsdp > 1 else 0.0
    summed = HALF * weights / tensor / ring * ((fsdp > 1) + 2 * (data > 1) / fsdp)
    rows = batch.rows / (data * fsdp)
    layer = rows * batch.length * spec.config.width * HALF
    split = 2 * passes * spec.config.layers * 2 * layer / (2 * chip.link) if tensor > 1 else 0.0
    traffic = FULL * 6 * weights / (fsdp * tensor) / chip.bandwidth
    return max(compute, gathered) + summed + split + traffic


def search(
    config: Config,
    shapes: Shapes,
    target: Target,
    devices: Sequence[Any],
    tries: int,
    say: Callable[[str], None],
) -> list[tuple[Candidate, Estimate]]:
    """Compiles the best few candidates; the fastest that fits comes first.

    Raises:
        ValueError: by arithmetic, none comes near fitting.
    """
    ranked = candidates(config, shapes, target)
    if not ranked:
        raise ValueError(
            f"by arithmetic no mesh of {target.name} comes near fitting {config.name}: name a larger slice, or fewer --data.rows"
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


def _leaves(tree: Any) -> Iterator[Any]:
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else (value,)
