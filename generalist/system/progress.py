"""Progress that is seen everywhere: a bar on a terminal, a line now and then in a log."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Progress(RichProgress):
    """rich's progress bars; where the console is no terminal, which rich leaves silent, the same texts as plain lines."""

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


@contextlib.contextmanager
def counted(progress: RichProgress | None, text: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar beside the others while something takes its time; what it gives is called once for each of `total`."""
    if progress is None:
        yield lambda: None
        return
    bar = progress.add_task(text, total=total)
    try:
        yield lambda: progress.advance(bar)
    finally:
        progress.remove_task(bar)


def counting(console: Console, **settings: Any) -> Progress:
    """A display of tasks that count: what, how many of how many, time spent and time left."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *times, console=console, **settings)
