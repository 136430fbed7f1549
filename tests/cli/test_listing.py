"""`generalist tasks` and `generalist runs`, the example of `generalist prompt`, and the names of the package itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from generalist.cli.main import main
from generalist.config.plain import plain
from generalist.config.presets import preset
from generalist.system.files import write_json


def make_run(folder: Path, settings: dict[str, Any], steps: tuple[str, ...] = ()) -> Path:
    """A run's folder with settings and checkpoints of the given names."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", settings)
    for step in steps:
        (folder / "checkpoints" / step).mkdir(parents=True)
    return folder


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The printed rows, by their first word."""
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.strip()}


def test_tasks_are_listed_with_their_scores(capsys: pytest.CaptureFixture[str]):
    assert main(["tasks", "fetch/*", "babyai/GoTo"]) == 0
    shown = rows(capsys)
    assert shown["fetch/push"] == "push the cube to the goal 0.04 1 50"
    assert shown["babyai/GoTo"].startswith("go to the object") or shown["babyai/GoTo"]
    assert shown["4"] == "tasks" and len([name for name in shown if "/" in name]) == 4


def test_an_unknown_task_points_to_the_list(capsys: pytest.CaptureFixture[str]):
    assert main(["tasks", "atari/pongg"]) == 1
    assert "did you mean 'atari/pong'? (`generalist tasks` lists them)" in capsys.readouterr().out


def test_runs_are_listed_with_preset_checkpoint_and_headline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pocket, debug = plain(preset("pocket")), plain(preset("debug"))
    scored = make_run(tmp_path / "scored", pocket, ("200", "1000", "1200.orbax-checkpoint-tmp-7"))
    tasks = {name: {"percent": {"value": value}} for name, value in (("a/b", 70.0), ("a/c", 50.0), ("a/d", 99.0))}
    write_json(scored / "results.json", {"step": 1000, "control": {"a": {"tasks": tasks}}})
    changed = {**debug, "training": {**debug["training"], "steps": 7, "checkpoints": "gs://bucket/run"}}
    make_run(tmp_path / "deep" / "er", changed)
    towers = make_run(tmp_path / "eyes", {"towers": {}, "training": {}}, ("5",))
    make_run(towers / "encoder", {"model_type": "siglip"})  # no run, but settings of its weights
    make_run(tmp_path / "broken", {})
    (tmp_path / "broken/config.json").write_text("{")
    assert main(["runs", str(tmp_path)]) == 0
    shown = rows(capsys)
    assert shown["scored"] == "pocket 1,000 2 of 3 tasks above half of their expert, step 1,000"
    assert shown["deep/er"] == "debug, 2 settings changed in gs://bucket/run none"
    assert shown["eyes"] == "contrastive 5 none"
    assert shown["broken"] == "config.json is damaged"
    assert not any("encoder" in name for name in shown)


def test_a_run_that_is_not_there_points_to_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", str(tmp_path)]) == 1
    assert f"no run in {tmp_path}: make one with `train.py`" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "out"), "--run", "none", "--runs", str(tmp_path)]) == 1
    assert f"name another one (`generalist runs {tmp_path}` lists them)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prompt"], "--example brings its own prompt"),
        (["prompt", "--example", "text"], "--example brings its own prompt: leave the parts and --queries out"),
        (["tasks", "--all"], "generalist tasks does not know --all"),
        (["runs", "--all"], "generalist runs does not know --all"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 1
    assert message in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line_of_eval_loads_neither_jax_nor_statistics():
    code = (
        "import sys, generalist.cli.eval\n"
        "print(sorted({'jax', 'flax', 'scipy', 'generalist.inference'} & sys.modules.keys()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


@pytest.mark.slow
def test_the_package_alone_imports_nothing_heavy():
    code = """
import json, sys
import generalist
heavy = sorted({"jax", "flax", "numpy", "gymnasium", "generalist.inference"} & sys.modules.keys())
listed = [name for name in generalist.__all__ if name in dir(generalist)]
from generalist import AgentPrompt, ControlPolicy, Generalist
modules = [one.__module__ for one in (AgentPrompt, ControlPolicy, Generalist)]
try:
    generalist.Generalists
except AttributeError as error:
    print(json.dumps([heavy, listed, modules, str(error)]))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy, listed, modules, error = json.loads(printed)
    assert heavy == [] and listed == ["AgentPrompt", "ControlPolicy", "Generalist"]
    assert modules == [f"generalist.inference.{name}" for name in ("prompt", "policy", "generalist")]
    assert error == "module 'generalist' has no attribute 'Generalists'; it has AgentPrompt, ControlPolicy, Generalist"
