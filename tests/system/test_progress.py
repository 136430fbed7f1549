"""Progress in a log: lines instead of a bar, and none of a terminal's control characters."""

import io
import time

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn

from generalist.system.progress import Progress, counted


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
