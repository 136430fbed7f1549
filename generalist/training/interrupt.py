"""Stopping between two steps: Ctrl-C, and what a cluster sends before it takes a machine away."""

import dataclasses
import signal
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The user asked to stop; everything up to the last finished step is saved."""


@dataclasses.dataclass
class Interrupt:
    """Turns the first signal to stop into a flag, so that a step is never cut in half; the second one ends at once."""

    asked: bool = False

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.signal(number, self._ask) for number in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
