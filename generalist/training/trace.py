"""A profiler's trace of a few steps."""

from pathlib import Path

import jax

TRACED = 5  # steps in a trace


class Trace:
    """A profiler's trace of a few steps, after everything is compiled.

    Args:
        folder: where the trace is written.
        first: first step of this process, in which the step is compiled.
    """

    def __init__(self, folder: Path, first: int):
        self.folder, self.begin, self.end = folder, first + 2, first + 2 + TRACED
        self.running = False

    def after(self, step: int) -> None:
        """Begins or ends the trace where it is due; called after every step."""
        if step == self.begin:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif step == self.end:
            self.close()

    def close(self) -> None:
        """Ends the trace and writes it, if it has begun: a run may stop in the middle."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
