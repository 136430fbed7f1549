"""Where metrics go: one line on the screen with the time left, JSONL, TensorBoard."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from generalist.system.progress import Progress, TimeLeft


def forget_later(path: Path, step: int) -> None:
    """Takes out of a metrics file what a killed process wrote after the checkpoint of `step`, from which it is done again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:  # cut off
            continue
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class Metrics:
    """Shows and stores what a run measures. Of several processes only the first one does.

    Args:
        folder: gets `metrics.jsonl` and `tensorboard/`.
        total: steps of the run.
        start: step at which this process begins.
    """

    def __init__(self, folder: Path, total: int, start: int, console: Console):
        self._file = self._board = None
        if jax.process_index() == 0:
            from tensorboardX import SummaryWriter  # slow to import, and only training needs it

            forget_later(folder / "metrics.jsonl", start)
            self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeft(),
            TextColumn("{task.fields[status]}"),
            console=console,
            refresh_per_second=2,
        )
        self._task = self.progress.add_task("training", total=total, completed=start, status="compiling")

    def __enter__(self) -> "Metrics":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()
        if self._board is not None and self._file is not None:
            self._board.close()
            self._file.close()

    def advance(self, step: int, status: str | None = None) -> None:
        """Moves the bar; `status` is the short text beside it."""
        fields: dict[str, Any] = {} if status is None else {"status": status}
        self.progress.update(self._task, completed=step, **fields)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of JSON and one TensorBoard point a value."""
        if self._board is None or self._file is None:
            return
        self._file.write(
            json.dumps({"step": step, **{name: round(float(value), 6) for name, value in values.items()}}) + "\n"
        )
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, float(value), step)

    def say(self, line: str) -> None:
        """A line above the bar that stays."""
        self.progress.console.print(line, highlight=False)
