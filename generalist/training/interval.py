"""The line of metrics: means over the steps since the last one."""

import time
from typing import Any

import jax
import numpy as np
import optax

from generalist.training.objective import Readout
from generalist.training.step import StepMetrics


class Interval:
    """The steps since the last line of metrics; read from the devices only when a line is due."""

    def __init__(self) -> None:
        self.entries: list[StepMetrics] = []
        self.waited = 0.0
        """Seconds spent waiting for data."""
        self.started = time.perf_counter()

    def summarize(self, readout: Readout, schedule: optax.Schedule, params: Any, step: int) -> dict[str, float]:
        """The line after `step`: means over the steps that were not skipped, and how many were; `waiting` is the share of time
        spent waiting for data."""
        seconds = time.perf_counter() - self.started
        fetched: list[StepMetrics] = jax.device_get(self.entries)
        # Zeros in place of skipped steps, whose sums may not be finite; so the total has its shapes even if all were skipped.
        kept = [jax.tree.map(np.zeros_like, entry) if entry.skipped else entry for entry in fetched]
        total = jax.tree.map(lambda *leaves: np.asarray(np.sum(leaves, axis=0)), *kept)
        steps, skipped = len(fetched), sum(bool(entry.skipped) for entry in fetched)
        sound = steps - skipped
        values = {
            "loss": total.loss / max(1, sound),
            "gradient_norm": total.gradient_norm / max(1, sound),
            "skipped": skipped,
            "learning_rate": schedule(step - 1),
            "waiting": self.waited / seconds,
            "step_seconds": seconds / steps,
        } | readout.values(total.parts, steps=steps, sound=sound, seconds=seconds, params=params)
        return {name: float(value) for name, value in values.items()}
