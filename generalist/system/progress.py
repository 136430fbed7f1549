"""Progress that shows everywhere: a bar on a terminal, a line from time to time in a log."""

import contextlib
import datetime
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

LINE_EVERY = 10.0  # seconds between lines without a terminal
SETTLING = 5.0  # seconds over which the estimate of the whole duration must stay
SETTLED = 1.25  # within this factor


class Progress(RichProgress):
    """rich's progress bars; without a terminal, where rich is silent, the same texts as plain lines."""

    def __init__(self, *columns: Any, **settings: Any):
        super().__init__(*columns, **settings)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        super().start()
        if not self.console.is_terminal and not self.console.quiet and self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._write_lines, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        # Before rich stops: a line must not be printed into what follows.
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        super().stop()

    def _write_lines(self) -> None:
        wait = 1.0  # the first line comes soon: something is happening
        while not self._ended.wait(wait):
            wait = LINE_EVERY
            for task in self.tasks:
                if task.started and not task.finished:
                    texts = [column(task) for column in self.columns if not isinstance(column, str)]
                    line = " ".join(text.plain for text in texts if isinstance(text, Text))
                    self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class TimeLeft(ProgressColumn):
    """The time that a task still takes; `estimating` until the rate has settled.

    The first steps of most tasks are no guide to the rest: processes start, a program compiles, quick items come first. The
    estimate is shown once the whole duration that it implies has stayed within a factor of `SETTLED` for `SETTLING` seconds.
    """

    max_refresh = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._implied: dict[TaskID, deque[tuple[float, float]]] = {}
        self._settled: set[TaskID] = set()

    def render(self, task: Task) -> Text:
        """`0:12:30`, or `estimating`."""
        if task.finished:
            return Text(_clock(0.0), style="progress.remaining")
        left, elapsed = task.time_remaining, task.elapsed
        if left is None or elapsed is None or not self._has_settled(task.id, elapsed, elapsed + left):
            return Text("estimating", style="progress.remaining")
        return Text(_clock(left), style="progress.remaining")

    def _has_settled(self, task: TaskID, now: float, whole: float) -> bool:
        if task in self._settled:
            return True
        implied = self._implied.setdefault(task, deque())
        implied.append((now, whole))
        # One estimate that is as old as the window, or older, stays: it says that there was one all the while.
        while len(implied) > 1 and implied[1][0] <= now - SETTLING:
            implied.popleft()
        durations = [duration for _, duration in implied]
        if now - implied[0][0] < SETTLING or max(durations) > SETTLED * min(durations):
            return False
        self._settled.add(task)
        del self._implied[task]
        return True


def _clock(seconds: float) -> str:
    """`h:mm:ss`."""
    return str(datetime.timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def counted(progress: RichProgress | None, text: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar beside the others for a part of the work; yields a function to be called once for each of `total` items."""
    if progress is None:
        yield lambda: None
        return
    bar = progress.add_task(text, total=total)
    try:
        yield lambda: progress.advance(bar)
    finally:
        progress.remove_task(bar)


def counting(console: Console, **settings: Any) -> Progress:
    """A display of tasks that count items: description, count and total, time spent and time left."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeLeft())
    return Progress(*columns, *times, console=console, **settings)
