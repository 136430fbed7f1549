"""A profiler's trace of a few steps."""

from pathlib import Path

import jax

TRACED = 5  # steps in a trace


class Trace:
    """A profiler's trace of a few steps, once everything is compiled.

    Args:
        folder: gets the trace.
        first: the run's first step, which compiles.
    """

    def __init__(self, folder: Path, first: int):
        self.folder, self.begin, self.end = folder, first + 2, first + 2 + TRACED
        self.running = False

    def after(self, step: int) -> None:
        """To be called when a step is done."""
        if step == self.begin:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif step == self.end:
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
