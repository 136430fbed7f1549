"""A run's folder and a folder of weights of the last version without format numbers, and the weights that ship, which are of it
too: they give the numbers that they gave then (tests/fixtures/make_versions.py)."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.cli.main import main
from generalist.config.presets import debug
from generalist.config.versions import FORMAT
from generalist.envs import recording
from generalist.envs.registry import get
from generalist.eval.parts.control import Control
from generalist.experiment.inherit import parse
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.run.folder import check_same_settings
from generalist.run.named_weights import run_settings
from generalist.run.tokenizers import Tokenizers

ROOT = Path(__file__).parent.parent
OLD = ROOT / "tests/fixtures/versions"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
TASK = "classic/cartpole"
NOW = {"--evaluation.classic-episodes": "--data.classic.evaluation-episodes"}
"""Options that have another name since."""
SETTINGS = [NOW.get(word, word) for word in EXPECTED["settings"]]
"""The command that began the run, in today's words."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with the old run and its recording; it is the current one."""
    shutil.copytree(OLD / "run", tmp_path / "runs/old")
    shutil.copytree(OLD / "episodes", tmp_path / "data/episodes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.slow
def test_an_old_run_goes_on_with_the_loss_that_it_would_have_had(folder: Path):
    # Today's expert plays other episodes: the old ones pass for today's, so that the next step sees the data that it saw then.
    today = recording.fingerprint(get(TASK), 2, 0)
    changed(folder / "data/episodes" / TASK / "1.0.0/metadata.json", lambda one: one.update(fingerprint=today))
    # One device, as then: sums over several differ in their last digits.
    env = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"}
    command = [sys.executable, str(ROOT / "train.py"), "debug", *SETTINGS, "--training.steps", "5"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "continuing from the checkpoint of step 4" in done.stdout and "recording again" not in done.stdout
    last = json.loads((folder / "runs/old/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 5
    np.testing.assert_allclose(last["loss"], EXPECTED["loss"], rtol=1e-5)


def test_old_weights_act_as_they_did():
    expected = EXPECTED["policy"]
    policy = ControlPolicy(Generalist.load(OLD / "weights"), [TASK])
    policy.reset([0], ["balance the pole"], [7])
    for observation, action, logits in zip(
        *(expected[name] for name in ("observations", "actions", "logits")), strict=True
    ):
        assert policy.act([np.array(observation, np.float32)]) == [action]
        # Bit-identical on the machine that made them; other processors round otherwise.
        np.testing.assert_allclose(policy.logits[0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_shipped_weights_score_as_they_did(tmp_path: Path):
    tasks, out = list(EXPECTED["shipped"]), tmp_path / "scores.json"
    command = ["eval", "control", "--tasks", *tasks, "--episodes", "2", "--seed", "1000000", "--workers", "1"]
    assert main([*command, "--out", str(out)]) == 0
    found = {
        task: [[episode["seed"], episode["score"], episode["steps"]] for episode in one["episodes"]]
        for suite in json.loads(out.read_text())["control"].values()
        for task, one in suite["tasks"].items()
    }
    assert found == EXPECTED["shipped"]


def test_what_is_written_now_carries_the_number_and_how_its_layouts_act(tmp_path: Path):
    weights = Generalist.load(OLD / "weights")
    weights.save(tmp_path / "new")
    for name in ("config.json", "tokenizers.json", "model.json"):
        assert json.loads((tmp_path / "new" / name).read_text())["format"] == FORMAT
        assert "format" not in json.loads((OLD / "weights" / name).read_text())
    # The settings of the suite are not looked at any more.
    changed(tmp_path / "new/config.json", lambda one: one["data"]["classic"].update(steps=3, hide_actions=0.0))
    layout = Generalist.load(tmp_path / "new").layouts[TASK]
    assert layout.acting == weights.layouts[TASK].acting == weights.config.data.suite_of(TASK).acting
    assert layout.acting.temperature == 0.5 and layout.acting.steps == 8


@pytest.mark.parametrize("name", ["config.json", "tokenizers.json", "model.json"])
def test_newer_weights_are_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(OLD / "weights", tmp_path / "new")
    changed(tmp_path / "new" / name, lambda one: one.update(format=FORMAT + 1))
    assert main(["prompt", "a", "--weights", str(tmp_path / "new")]) == 1
    shown = capsys.readouterr().out.replace("\n", " ")
    assert f"{name} has format {FORMAT + 1}" in shown and "update the package" in shown


def test_a_newer_run_is_refused(folder: Path):
    config = parse(debug(), SETTINGS, prog="train.py")
    assert check_same_settings(config)
    for name, read in (("config.json", check_same_settings), ("tokenizers.json", Generalist.from_run)):
        shutil.copyfile(OLD / "run" / name, folder / "runs/old" / name)
        changed(folder / "runs/old" / name, lambda one: one.update(format=FORMAT + 1))
        with pytest.raises(ValueError, match=rf"{name} has format {FORMAT + 1}.*: update the package"):
            read(config)
        shutil.copyfile(OLD / "run" / name, folder / "runs/old" / name)


def test_an_old_run_is_compared_by_what_was_done_before_a_setting_existed(folder: Path):
    config = parse(debug(), SETTINGS, prog="train.py")

    def without(settings: dict[str, Any]) -> None:
        del settings["training"]["average"], settings["data"]["shards"], settings["cluster"]

    changed(folder / "runs/old/config.json", without)
    assert check_same_settings(config)
    # Defaults of what the run does not learn from may have changed.
    changed(folder / "runs/old/config.json", lambda one: one["data"]["prose"].update(megabytes=9.0))
    assert check_same_settings(config)
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, average="sources"))
    with pytest.raises(ValueError, match=r"training\.average = tokens, not sources"):
        check_same_settings(other)
    changed(folder / "runs/old/config.json", lambda one: one["training"].update(humour=1.0))
    with pytest.raises(ValueError, match=r"unknown setting training\.humour.*another folder with --name"):
        check_same_settings(config)


def test_a_command_that_goes_on_changes_the_temperature(folder: Path):
    """Also of an old run, whose layouts do not say how they are acted in."""
    run = Path("runs/old")
    stored = run_settings(run)
    warm = stored.data.with_sources(classic=dataclasses.replace(stored.data.sources["classic"], temperature=0.9))
    for _ in range(2):
        layouts = [Tokenizers.load(run, dataclasses.replace(stored, data=data)).layouts for data in (stored.data, warm)]
        assert [one[TASK].acting.temperature for one in layouts] == [0.5, 0.9]
        Tokenizers.load(run, stored).save(run)  # a run of today


def test_what_was_played_at_another_temperature_is_played_again():
    """Parts of an evaluation are kept by their settings."""
    weights = Generalist.load(OLD / "weights")
    (part,) = Control().jobs(weights)
    layout = weights.layouts[TASK]
    warm = dataclasses.replace(layout, acting=dataclasses.replace(layout.acting, temperature=0.9))
    tokenizers = dataclasses.replace(weights.tokenizers, layouts={TASK: warm})
    (again,) = Control().jobs(dataclasses.replace(weights, tokenizers=tokenizers))
    assert part.settings != again.settings
