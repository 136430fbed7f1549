"""Where metrics go: one line on the screen with the time left, JSONL, TensorBoard."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from generalist.data.batch import BatchSpec
from generalist.model.config import ModelSpec
from generalist.model.embedders import PATCH
from generalist.model.transformer import count_parameters
from generalist.system.progress import Progress, TimeLeft

# Dense bfloat16 peaks in FLOP/s a chip, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v3": 123e12 / 2,  # JAX counts a core as a device
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops() -> float:
    """FLOP/s of all devices: from the data sheet, or measured by a matrix product in float32 where there is none (a CPU).

    Simulated CPU devices share one processor, which is measured once.
    """
    device = jax.devices()[0]
    for name, peak in PEAK_FLOPS.items():
        if device.device_kind.startswith(name):
            return peak * jax.device_count()
    size = 2048
    matrix = jax.device_put(np.ones((size, size), np.float32), device)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    best = min(_seconds(lambda: product(matrix).block_until_ready()) for _ in range(5))
    return 2 * size**3 / best


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def model_flops(spec: ModelSpec, batch: BatchSpec, params: Any) -> float:
    """FLOPs of one training step by arithmetic, whatever the program really does: recomputation and padding's share count as
    the shapes say. A matrix parameter costs 6 a position that passes through it (2 forward, 4 backward; 2 where it is frozen),
    causal attention
    12 · width of all heads · length / 2 a position and layer (scores and mixing).
    """
    config = spec.config
    trunk = count_parameters(params["blocks"]) + config.width * spec.vocabulary.size
    attention = 6 * config.layers * batch.length * config.heads * config.head_size
    frozen = config.trunk != "none" and config.trunk_frozen
    total = batch.rows * batch.length * ((4.0 if frozen else 6.0) * trunk + attention)
    if spec.projection_width:
        total += 6.0 * batch.tensors * count_parameters(params["tensor_embedder"])
    if spec.frames:
        channels, cells = config.frame_channels, config.frame_size / 4
        stem = cells**2 * 48 * channels
        convolutions = (cells / 2) ** 2 * 9 * channels * 2 * channels + (cells / 4) ** 2 * 9 * (2 * channels) ** 2
        total += 6.0 * batch.frames * (stem + convolutions + count_parameters(params["frame_embedder"]["out"]))
    if spec.channels:
        total += 6.0 * _visual_products(spec, batch, params["visual"])
    if spec.patches:
        channels = config.patch_channels
        block = PATCH**2 * (3 * channels + 2 * 9 * channels**2)
        total += 6.0 * batch.patches * (block + count_parameters(params["patch_embedder"]["out"]))
    return total


def _visual_products(spec: ModelSpec, batch: BatchSpec, params: Any) -> float:
    """Products of the resampler and of the gated layers in one forward pass, at their budgets; the frozen encoder's, which
    are no training, are left out."""
    vision = spec.config.vision
    gated = params["gated"]
    layers = gated["attention_gate"].shape[0]
    visual = batch.rows * batch.row_images * vision.latents
    positions = batch.rows * batch.length
    keys = count_parameters(gated["key_value"])
    scores = 2 * layers * positions * batch.row_images * vision.latents * math.prod(vision.cross_attention)
    resampled = count_parameters(params["resampler"]["layers"]) * batch.images * vision.latents
    return positions * (count_parameters(gated) - keys) + visual * keys + scores + resampled


def forget_later(path: Path, step: int) -> None:
    """Takes out of a metrics file what a killed process wrote after the checkpoint of `step`, from which it is done again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:  # cut off
            continue
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class Metrics:
    """Shows and stores what a run measures. Of several processes only the first one does.

    Args:
        folder: gets `metrics.jsonl` and `tensorboard/`.
        total: steps of the run.
        start: step at which this process begins.
    """

    def __init__(self, folder: Path, total: int, start: int, console: Console):
        self._file = self._board = None
        if jax.process_index() == 0:
            from tensorboardX import SummaryWriter  # slow to import, and only training needs it

            forget_later(folder / "metrics.jsonl", start)
            self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeft(),
            TextColumn("{task.fields[status]}"),
            console=console,
            refresh_per_second=2,
        )
        self._task = self.progress.add_task("training", total=total, completed=start, status="compiling")

    def __enter__(self) -> "Metrics":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()
        if self._board is not None and self._file is not None:
            self._board.close()
            self._file.close()

    def advance(self, step: int, status: str | None = None) -> None:
        """Moves the bar; `status` is the short text beside it."""
        fields: dict[str, Any] = {} if status is None else {"status": status}
        self.progress.update(self._task, completed=step, **fields)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of JSON and one TensorBoard point a value."""
        if self._board is None or self._file is None:
            return
        self._file.write(
            json.dumps({"step": step, **{name: round(float(value), 6) for name, value in values.items()}}) + "\n"
        )
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, float(value), step)

    def say(self, line: str) -> None:
        """A line above the bar that stays."""
        self.progress.console.print(line, highlight=False)
