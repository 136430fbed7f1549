"""Every command with what does not fit: one line with a remedy, before anything is computed."""

import multiprocessing
import threading
import time
from pathlib import Path

import pytest
from rich.table import Table

from generalist.cli.main import main
from generalist.config.run import TrainingConfig
from generalist.contrastive.config import ContrastiveConfig, check_effective
from generalist.system.console import open_console


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "export file/weights --run debug",
            "FOLDER: file is a file, not a folder: name another folder",
        ),
        ("export weights --run none", "no run in runs/none: train it first, or name another one"),
        ("average nowhere shipped mean", "no weights in nowhere (there is no config.json in it)"),
        ("average shipped shipped file", "file exists already: name another folder, or delete it"),
        ("eval control --out folder", "folder exists already: name another file with --out"),
        ("eval control --out file/scores.json", "--out: file is a file, not a folder"),
        ("eval control --seed -1", "--seed must be at least 0, got -1"),
        ("eval control --episodes 0", "--episodes must be at least 1, got 0"),
        ("eval control --agents 0", "an agent is model, goal, whole, a number of demonstrations, or nearest, got '0'"),
        ("eval control --weights nowhere", "no weights in nowhere"),
        ("eval again folder", "folder is a folder: name the results file in it"),
        ("eval again file", "file is damaged, or no results file (Expecting value"),
        ("eval again nowhere --workers 0", "--workers must be at least 1, got 0"),
        ("eval compare folder file", "there is no results file folder/results.json: train.py writes one"),
        (
            "eval compare shots.json shots.json",
            "shots.json has results of generalist eval fewshot, where those of agents",
        ),
        ("eval report file/none", "there is no results file file/none"),
        ("eval report file --out folder", "--out folder is a folder: name a file"),
        ("eval fewshot --out file/shots.json", "--out: file is a file, not a folder"),
        ("dagger file --tasks babyai/GoTo", "FOLDER: file is a file, not a folder"),
        ("plan debug --devices cpu:8 --json folder", "--json folder is a folder: name a file"),
        ("plan debug --devices cpu:8 --training.start nowhere", "no weights in nowhere"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "shots.json").write_text('{"new_words": {}}')
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(command.split()) == 1
    line, hint = capsys.readouterr().out.splitlines()
    assert line.startswith(f"error: {message}") and "GENERALIST_TRACEBACK=1" in hint
    assert sorted(tmp_path.rglob("*")) == before


def test_a_worker_that_died_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def kill_the_first() -> None:
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.1)
        workers[0].kill()

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    words = ["eval", "control", "--tasks", "classic/cartpole", "--workers", "1", "--out", str(tmp_path / "scores.json")]
    assert main(words) == 1
    killer.join()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("error"))
    assert line.startswith(
        "error: the process that played classic/cartpole died (exit code -9); run the same command again"
    )


def test_tables_are_whole_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table(*(f"model, {number} demonstrations" for number in range(10)))
    table.add_row(*["100.0 [100, 100]"] * 10)
    open_console().print(table)
    text = capsys.readouterr().out
    assert text.count("100.0 [100, 100]") == 10 and "model, 9 demonstrations" in text and "…" not in text


def test_settings_without_effect_are_refused():
    check_effective(ContrastiveConfig())
    with pytest.raises(
        ValueError, match=r"training.start has no effect on contrastive pretraining, since .*: leave it out"
    ):
        check_effective(ContrastiveConfig(training=TrainingConfig(start="weights")))
    with pytest.raises(
        ValueError, match=r"best_metric = loss/prose is not a metric of this run; there are: loss, gradient_norm"
    ):
        check_effective(ContrastiveConfig(training=TrainingConfig(keep_best=1, best_metric="loss/prose")))


@pytest.mark.parametrize("name", ["", "..", "../other", "/tmp/run"])
def test_a_run_stays_in_the_folder_of_runs(name: str):
    with pytest.raises(ValueError, match="name must be that of a folder under `runs`, such as pocket"):
        ContrastiveConfig(name=name)
