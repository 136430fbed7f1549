"""The parts of an evaluation: one that fails leaves the others alone, and finished ones are kept."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from generalist.eval.results.file import Parts
from generalist.eval.run import Part, _compute


def fails(progress: Progress) -> Any:
    raise RuntimeError("the process that played classic/cartpole died")


def test_a_failing_part_leaves_the_others_alone_and_is_tried_again(tmp_path: Path) -> None:
    kept, console = Parts(folder=tmp_path), Console(record=True, width=120)
    parts = [
        Part(name="control", settings={}, compute=fails),
        Part(name="naming", settings={}, compute=lambda progress: {"accuracy": 1}),
    ]
    done, failed = _compute(parts, kept, console)
    assert done == {"naming": {"accuracy": 1}}
    assert failed == {"control": "RuntimeError: the process that played classic/cartpole died"}
    mended = [
        Part(name="control", settings={}, compute=lambda progress: 2),
        Part(name="naming", settings={}, compute=fails),
    ]
    assert _compute(mended, kept, console) == ({"control": 2, "naming": {"accuracy": 1}}, {})
    assert "evaluation 2/2: naming, kept" in console.export_text()
