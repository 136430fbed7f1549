"""Where metrics go: a progress line on the screen, a JSONL file, TensorBoard."""

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
    """Removes the lines after `step` from a metrics file: a process that was killed wrote them after its last checkpoint, and
    the resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:  # the process was killed while it wrote this line
            continue
    # Replaced as a whole, so that a kill at this moment does not lose the lines that are kept.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class Metrics:
    """Shows and stores the metrics of a run. If there are several processes, only the first does.

    Args:
        folder: of the run; gets `metrics.jsonl` and `tensorboard/`.
        total: steps of the run.
        start: step after which this process begins.
        console: of the progress line.
    """

    def __init__(self, folder: Path, total: int, start: int, console: Console):
        self._file = self._board = None
        if jax.process_index() == 0:
            from tensorboardX import SummaryWriter  # slow to import, and only training needs it

            # Both records are cut back to the checkpoint: `purge_step` does for TensorBoard what `forget_later` does here.
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
        """Moves the progress bar to `step`. `status`: text beside the bar; None leaves it as it is."""
        fields: dict[str, Any] = {} if status is None else {"status": status}
        self.progress.update(self._task, completed=step, **fields)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Stores one line of JSON, and one point per value for TensorBoard."""
        if self._board is None or self._file is None:
            return
        self._file.write(
            json.dumps({"step": step, **{name: round(float(value), 6) for name, value in values.items()}}) + "\n"
        )
        self._file.flush()  # for whoever follows the file, and so that a kill loses no finished line
        for name, value in values.items():
            self._board.add_scalar(name, float(value), step)

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        self.progress.console.print(line, highlight=False)
