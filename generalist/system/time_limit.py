"""A limit on the processor time of a block."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class OutOfTime(Exception):
    """An expert thought too long."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupts the block after so much processor time (a busy machine does not count); main thread only.

    By the timer of user time: that of all time belongs to profilers, such as libtpu's, whose signals would end the block at once.

    Raises:
        OutOfTime: in the block.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"no answer within {seconds} s")

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
