"""The metrics file: one line a step, also of a run that was killed."""

import json
from pathlib import Path

from rich.console import Console

from generalist.training.metrics import Metrics


def test_a_resumed_run_takes_back_what_it_does_again(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (2, 4, 6)) + '{"step": 8, "lo')
    with Metrics(tmp_path, 10, 4, Console(quiet=True)) as metrics:
        metrics.write(6, {"loss": 0.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 1.0}, {"step": 6, "loss": 0.5}]
