"""Progress in a log: lines instead of a bar, and none of a terminal's control characters."""

import io
import time

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from generalist.system.progress import Progress, TimeLeft, counted


def test_a_log_gets_lines():
    out = io.StringIO()
    with Progress(TextColumn("{task.description}"), MofNCompleteColumn(), console=Console(file=out, width=80)) as bar:
        task = bar.add_task("recording", total=5)
        bar.advance(task, 2)
        time.sleep(1.2)
        assert "recording 2/5" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_bar_beside_the_others_is_gone_afterwards():
    with Progress(console=Console(quiet=True)) as bars:
        with counted(bars, "reading", 2) as read:
            read()
            assert [(task.description, task.completed, task.total) for task in bars.tasks] == [("reading", 1, 2)]
        assert not bars.tasks
    with counted(None, "reading", 2) as read:
        read()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(steps: list[tuple[float, float]], total: float) -> list[str]:
    """What the column says after each (seconds, completed)."""
    clock, column = Clock(), TimeLeft()
    with RichProgress(column, console=Console(quiet=True), get_time=clock, auto_refresh=False) as bars:
        bar = bars.add_task("playing", total=total)
        texts = []
        for clock.now, completed in steps:
            bars.update(bar, completed=completed)
            texts.append(column(bars.tasks[0]).plain)
        return texts


def test_the_time_left_is_told_once_the_rate_has_settled():
    steady = shown([(float(second), float(second)) for second in range(1, 11)], total=100)
    assert steady[:5] == ["estimating"] * 5 and steady[-1] == "0:01:30"
    # Three slow items first, as processes start; then ten times as fast.
    slow_start = [(2.0, 1.0), (4.0, 2.0), (6.0, 3.0), *((6.0 + second, 3.0 + 5 * second) for second in range(1, 40))]
    texts = shown(slow_start, total=1000)
    first = next(index for index, text in enumerate(texts) if text != "estimating")
    hours, minutes, seconds = map(int, texts[first].split(":"))
    told = 3600 * hours + 60 * minutes + seconds
    truth = (1000 - slow_start[first][1]) / 5
    assert first > 10 and truth / 1.5 < told < 1.5 * truth, "never the thirty minutes of the first items"


def test_the_time_left_of_what_is_done_is_none():
    assert shown([(1.0, 5.0)], total=5) == ["0:00:00"]
