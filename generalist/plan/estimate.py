"""The figures of a plan from compiled programs: roofline time, tokens/s, utilisation, memory against the device's."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

from flax import nnx

from generalist.config.run import Config
from generalist.data.batch import BatchSpec
from generalist.model.config import ModelSpec
from generalist.model.transformer import count_parameters
from generalist.model.tuned import create_tuned, divided
from generalist.model.tuning import Tuning
from generalist.plan.groups import Torus
from generalist.plan.hlo import parse
from generalist.plan.program import (
    Memory,
    OutOfMemory,
    Program,
    abstract_batch,
    compile_encoder,
    compile_step,
    make_planned_trainer,
)
from generalist.plan.roofline import Speeds, Totals, walk
from generalist.plan.target import Target
from generalist.training.flops import model_flops
from generalist.vision.encoder import VisionEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of parameters."""

    trained: int
    frozen: int
    encoder: int
    """Of the frozen encoder, which runs as a separate program."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A plan's figures; times are None for devices without a known speed."""

    mesh: dict[str, int]
    rows: int
    length: int
    counts: Counts
    fits: bool
    memory: Memory | None
    """Of one device; None if the compiler ran out of it."""
    needed: float | None
    """Bytes that a device needs; None if unknown."""
    limit: float | None
    """Bytes that a device has; None if unlimited."""
    model_flops: float = 0.0
    """Of a step of the whole mesh, by arithmetic (`training.flops.model_flops`)."""
    totals: Totals = Totals()
    """Of one device, including the encoder."""
    encoder_seconds: float | None = None
    """The encoder's part of these seconds."""
    seconds: float | None = None
    """Seconds per step."""
    tokens_per_second: float | None = None
    """Positions of whole batches per second, padding included."""
    utilisation: float | None = None
    """Model FLOPs as a fraction of the peak of all devices."""
    compile_seconds: float = 0.0
    trouble: str = ""
    """The compiler's message if it ran out of memory."""

    def plain(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return dataclasses.asdict(self)


@functools.cache
def abstract_parameters(spec: ModelSpec, tuning: Tuning) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's trained and frozen parameters as nested shapes; nothing is allocated."""
    # Cached, since a search asks for it once per candidate, and tracing a large model takes seconds.
    model = nnx.eval_shape(lambda: create_tuned(spec, 0, tuning))
    return divided(nnx.to_pure_dict(nnx.state(model, nnx.Param)), spec.config, tuning)


def count(spec: ModelSpec, tuning: Tuning, encoder: VisionEncoder | None) -> Counts:
    """Numbers of a model's parameters."""
    trained, frozen = abstract_parameters(spec, tuning)
    seen = 0 if encoder is None else count_parameters(encoder.params)
    return Counts(trained=count_parameters(trained), frozen=count_parameters(frozen), encoder=seen)


def speeds_of(target: Target, devices: Any) -> Speeds:
    """A device's peak rates. Simulated devices have none: every time is 0."""
    if target.chip is None or target.slice is None:
        return Speeds(flops=math.inf, bandwidth=math.inf, seconds=lambda _: 0.0)
    sides = len(target.slice.shape)
    # A device's last coordinate is its core; the sides of the slice come first.
    # Partition i of a program runs on the i-th device of the mesh.
    torus = Torus(slice=target.slice, places=[tuple(device.coords[:sides]) for device in devices])
    return Speeds(flops=target.chip.flops, bandwidth=target.chip.bandwidth, seconds=torus.seconds)


def estimate(
    config: Config,
    shapes: tuple[ModelSpec, BatchSpec, VisionEncoder | None],
    target: Target,
    devices: Any,
    hlo: Path | None = None,
) -> Estimate:
    """Compiles the step (and the frozen encoder) for the target and measures the programs.

    Args:
        shapes: the result of `generalist.run.shapes.without_data`.
        devices: the result of `open_devices`.
        hlo: where to write the step's compiled program.
    """
    # The trainer of a real run, so that a plan cannot drift from it.
    spec, batch_spec, encoder = shapes
    trainer = make_planned_trainer(config, spec, devices)
    mesh = trainer.mesh
    known: dict[str, Any] = {
        "mesh": dict(mesh.shape),
        "rows": batch_spec.rows,
        "length": batch_spec.length,
        "counts": count(spec, config.training.tuning, encoder),
        "limit": target.memory,
    }
    try:
        step = compile_step(trainer, abstract_batch(config, trainer, batch_spec, encoder))
        seen = compile_encoder(config, encoder, batch_spec, mesh) if encoder is not None else None
    # Not a failure of the plan but its result: the size that is needed.
    except OutOfMemory as error:
        return Estimate(**known, fits=False, memory=None, needed=error.needed, trouble=str(error))
    if hlo is not None:
        hlo.write_text(step.text, encoding="utf-8")
    flops = model_flops(spec, batch_spec, *abstract_parameters(spec, config.training.tuning))
    return _measured(known, flops, step, seen, target, speeds_of(target, mesh.devices.flat), batch_spec)


def _measured(
    known: dict[str, Any],
    flops: float,
    step: Program,
    seen: Program | None,
    target: Target,
    speeds: Speeds,
    batch: BatchSpec,
) -> Estimate:
    """The figures of compiled programs, `seen` being the encoder's, for a step of `flops` FLOPs by arithmetic."""
    totals = walk(parse(step.text), speeds)
    memory, encoder_seconds = step.memory, None
    if seen is not None:
        of_encoder = walk(parse(seen.text), speeds)
        totals, encoder_seconds = totals + of_encoder, of_encoder.seconds
        # The encoder's parameters stay in memory with the step's; its activations are freed before the step begins.
        memory = dataclasses.replace(
            memory,
            frozen=memory.frozen + seen.memory.frozen,
            batch=memory.batch + seen.memory.batch,
            code=memory.code + seen.memory.code,
            temporary=max(memory.temporary, seen.memory.temporary),
        )
    # Simulated devices have infinite speed, and a time of 0: None says that it is unknown.
    timed = target.chip is not None and totals.seconds > 0
    seconds = totals.seconds if timed else None
    return Estimate(
        **known,
        fits=target.memory is None or memory.total <= target.memory,
        memory=memory,
        needed=memory.total,
        model_flops=flops,
        totals=totals,
        encoder_seconds=encoder_seconds if timed else None,
        seconds=seconds,
        tokens_per_second=batch.rows * batch.length / seconds if seconds else None,
        # By the model's FLOPs and not the program's: recomputation is not progress (MFU; PaLM, appendix B).
        utilisation=flops / seconds / (target.count * speeds.flops) if seconds else None,
        compile_seconds=step.seconds + (seen.seconds if seen is not None else 0.0),
    )
