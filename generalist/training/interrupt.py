"""Stopping between two steps, on Ctrl-C or on the signal that a cluster sends before it takes a machine away."""

import dataclasses
import signal
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop; everything up to the last finished step is saved."""


@dataclasses.dataclass
class Interrupt:
    """Turns the first signal to stop into a flag, which the loop reads between two steps. A second signal stops at once."""

    asked: bool = False

    def __enter__(self) -> "Interrupt":
        # Python allows this in the main thread only, where the loop runs.
        self._previous = {number: signal.signal(number, self._ask) for number in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.asked:  # a step or a save that hangs must not make the process unkillable
            raise KeyboardInterrupt
        self.asked = True
