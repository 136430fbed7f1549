"""The jobs of an evaluation: one that fails leaves the others alone, and finished ones are kept."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from generalist.eval.parts.part import Job
from generalist.eval.results.file import Parts
from generalist.eval.run import _compute


def fails(progress: Progress) -> Any:
    raise RuntimeError("the process that played classic/cartpole died")


def job(key: str, compute: Callable[[Progress], Any]) -> Job:
    return Job(part="control", key=key, settings={}, compute=compute)


def test_a_failing_job_leaves_the_others_alone_and_is_tried_again(tmp_path: Path) -> None:
    kept, console = Parts(folder=tmp_path), Console(record=True, width=120)
    jobs = [job("classic", fails), job("babyai", lambda progress: {"accuracy": 1})]
    done, failed, _ = _compute(jobs, kept, console)
    assert done == {"control-babyai": {"accuracy": 1}}
    assert failed == {"control-classic": "RuntimeError: the process that played classic/cartpole died"}
    mended = [job("classic", lambda progress: 2), job("babyai", fails)]
    assert _compute(mended, kept, console)[:2] == ({"control-classic": 2, "control-babyai": {"accuracy": 1}}, {})
    assert "evaluation 2/2: control-babyai, kept" in console.export_text()


def test_the_time_of_what_was_kept_counts(tmp_path: Path) -> None:
    kept, console = Parts(folder=tmp_path), Console(quiet=True)
    jobs = [job("classic", lambda progress: time.sleep(0.3))]
    first, again = (_compute(jobs, kept, console)[2] for _ in range(2))
    assert first == again >= 0.3
