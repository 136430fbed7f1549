"""The time limit of an expert."""

import signal
import time

import pytest

from generalist.system.time_limit import OutOfTime, time_limit


def work(seconds: float) -> int:
    """Uses so much processor time."""
    end, rounds = time.process_time() + seconds, 0
    while time.process_time() < end:
        rounds += 1
    return rounds


def test_a_block_that_takes_too_long_is_ended_and_a_quick_one_is_not() -> None:
    with pytest.raises(OutOfTime, match=r"within 0\.05 s"), time_limit(0.05):
        work(10.0)
    with time_limit(5.0):
        assert work(0.05)
    work(0.1)  # nothing is left behind


def test_a_profiler_does_not_end_it() -> None:
    """Profilers, such as the one that comes with libtpu, send SIGPROF every few milliseconds."""
    seen: list[int] = []
    before = signal.signal(signal.SIGPROF, lambda signum, frame: seen.append(signum))
    signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)
    try:
        with time_limit(5.0):
            work(0.1)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert seen
