"""One line of metrics: means over the steps since the line before."""

import time
from typing import Any

import jax
import numpy as np
import optax

from generalist.training.objective import Readout
from generalist.training.step import StepMetrics


class Interval:
    """The steps since the last line of metrics. Their values stay on the devices until a line is due, so that no step waits for
    them."""

    def __init__(self) -> None:
        self.entries: list[StepMetrics] = []
        self.waited = 0.0
        """Seconds spent waiting for data."""
        self.started = time.perf_counter()

    def summarize(self, readout: Readout, schedule: optax.Schedule, params: Any, step: int) -> dict[str, float]:
        """The line of metrics after `step`.

        Args:
            readout: names what the loss measured.
            schedule: learning rate by the number of updates so far.
            params: the trained parameters after `step`.

        Returns:
            Means over the steps that were not skipped; `skipped` counts the others, and `waiting` is the share of the time
            that was spent waiting for data.
        """
        seconds = time.perf_counter() - self.started
        fetched: list[StepMetrics] = jax.device_get(self.entries)
        # Skipped steps count as zeros, since their sums may not be finite: multiplying them by 0 would still give NaN. Left out
        # instead, there would be nothing to add up in an interval without any sound step.
        kept = [jax.tree.map(np.zeros_like, entry) if entry.skipped else entry for entry in fetched]
        total = jax.tree.map(lambda *leaves: np.asarray(np.sum(leaves, axis=0)), *kept)
        steps, skipped = len(fetched), sum(bool(entry.skipped) for entry in fetched)
        sound = steps - skipped
        values = {
            "loss": total.loss / max(1, sound),
            "gradient_norm": total.gradient_norm / max(1, sound),
            "skipped": skipped,
            # Optax counts updates from 0. It does not count skipped steps, so after skips the rate in use is a little behind.
            "learning_rate": schedule(step - 1),
            "waiting": self.waited / seconds,
            "step_seconds": seconds / steps,
        } | readout.values(total.parts, steps=steps, sound=sound, seconds=seconds, params=params)
        return {name: float(value) for name, value in values.items()}
