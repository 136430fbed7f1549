"""A limit on the CPU time of a block."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class OutOfTime(Exception):
    """An expert exceeded its time limit."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupts the block after `seconds` of CPU time, so that a busy machine does not count; works in the main thread only.

    Uses the timer of user time: the one of total time belongs to profilers such as libtpu's, whose signals would end the block.

    Raises:
        OutOfTime: raised inside the block.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"no answer within {seconds} s")

    # A context manager for both cases keeps the callers free of a branch.
    if seconds is None:
        yield
        return
    # Restored below: limits may be nested in code that has its own handler.
    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
