"""The command line as a user meets it: the preset `debug` from nothing to a results file, again, and with mistakes."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from generalist.cli.average import average
from generalist.cli.main import main
from generalist.eval.results import file as report
from generalist.inference.generalist import Generalist
from generalist.run import named_weights

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`train.py` in a folder of its own, on one device."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    env = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400, check=False, env=env)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which `train.py debug` has run, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    done = train(folder, "debug")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_everything_is_recorded_trained_and_evaluated(trained: tuple[Path, str]):
    folder, printed = trained
    results = report.load(folder / "runs/debug/results.json")
    assert set(results["control"]) == {"metaworld", "babyai", "atari", "classic", "fetch"}
    assert set(results["naming"]) == {"drawings", "names"} and "prose" in results["language"]
    assert results["failed"] == {}
    assert results["command"] == "train.py debug" or results["command"] == ["train.py", "debug"]
    lines = [json.loads(line) for line in (folder / "runs/debug/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20
    assert {
        f"loss/{name}" for name in ("metaworld", "babyai", "atari", "classic", "fetch", "emoji", "prose")
    } <= set().union(*lines)
    for word in ("recording", "training", "evaluation"):
        assert word in printed


def test_a_second_command_reuses_the_recordings_and_goes_on_with_more_steps(trained: tuple[Path, str]):
    folder, _ = trained
    more = train(folder, "debug", "--training.steps", "24")
    assert more.returncode == 0, more.stdout[-2000:] + more.stderr[-2000:]
    assert "5 of 5 tasks are recorded already" in more.stdout
    assert "continuing from the checkpoint of step 20" in more.stdout
    assert json.loads((folder / "runs/debug/metrics.jsonl").read_text().splitlines()[-1])["step"] == 24
    assert json.loads((folder / "runs/debug/results.json").read_text())["step"] == 24


def test_a_run_becomes_a_folder_that_tells_nothing_of_its_makers_machine(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs, out = trained[0] / "runs", tmp_path / "weights"
    command = ["export", str(out), "--run", "debug", "--runs", str(runs), "--bfloat16"]
    assert main(command) == 0
    assert f"{out}: step" in capsys.readouterr().out.replace("\n", "")
    for file in out.rglob("*"):
        assert str(trained[0]).encode() not in file.read_bytes()
    whole, rounded = Generalist.from_run(named_weights.run_settings(runs / "debug")), Generalist.load(out)
    for path, leaf in dict(rounded.arrays()).items():
        np.testing.assert_allclose(leaf, dict(whole.arrays())[path], rtol=2**-8)
    assert main(command) == 1 and "exists already" in capsys.readouterr().out
    assert main([*command[:1], str(tmp_path / "other"), "--run", "none", "--runs", str(runs)]) == 1
    assert "no run in" in capsys.readouterr().out and not (tmp_path / "other").exists()


def test_a_run_begins_with_weights_and_learns_a_new_task(trained: tuple[Path, str], tmp_path: Path):
    folder, out = trained[0], tmp_path / "weights"
    assert main(["export", str(out), "--run", "debug", "--runs", str(folder / "runs")]) == 0
    begun = ["debug", "--name", "more", "--training.start", "runs/debug", "--training.steps", "1"]
    begun += ["--training.learning-rate", "1e-9"]
    others = [f"--data.{suite}.weight=0" for suite in ("metaworld", "atari", "fetch", "emoji", "prose")]
    few = ["--data.babyai.evaluation-episodes", "1", "--data.classic.evaluation-episodes", "1"]
    done = train(folder, *begun, *others, *few, "--data.classic.tasks", "acrobot")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    before, after = Generalist.load(out), Generalist.from_run(named_weights.run_settings(folder / "runs/more"))
    assert after.layouts.keys() == before.layouts.keys() | {"classic/acrobot"}
    old, new = dict(before.arrays()), dict(after.arrays())
    path = "tensor_embedder/projection/kernel"
    assert new[path].shape[0] == old[path].shape[0] + 6  # what acrobot observes
    np.testing.assert_allclose(new[path][: len(old[path])], old[path], atol=1e-5)
    for name in ("blocks/attention/qkv/kernel", "frame_embedder/convolutions/0/kernel"):
        np.testing.assert_allclose(new[name], old[name], atol=1e-5)
    mean = dict(average(before, after, 0.5, []).arrays())[path]
    np.testing.assert_allclose(mean[: len(old[path])], old[path], atol=1e-5)
    np.testing.assert_array_equal(mean[len(old[path]) :], new[path][len(old[path]) :])
    with pytest.raises(ValueError, match="classic/acrobot are missing in NEW"):
        average(after, before, 0.5, [])
    other = train(folder, "debug", "--name", "other", "--training.start", str(out), "--model.width", "64")
    assert other.returncode == 1 and "has model.width = 32, not 64: leave these settings out" in other.stdout
    assert not (folder / "runs/other").exists()


def test_the_mean_of_two_sets_of_weights(trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, new, mean = tmp_path / "weights", tmp_path / "new", tmp_path / "mean"
    assert main(["export", str(out), "--run", "debug", "--runs", str(trained[0] / "runs")]) == 0
    old = Generalist.load(out)
    dataclasses.replace(old, params=jax.tree.map(lambda leaf: leaf + 1, old.params)).save(new)
    command = ["average", str(out), str(new), str(mean), "--share", "0.25", "--keep", "frame_embedder"]
    assert main(command) == 0
    before, after = dict(old.arrays()), dict(Generalist.load(mean).arrays())
    for path, leaf in after.items():
        more = 1 if path.startswith("frame_embedder") else 0.25
        np.testing.assert_allclose(leaf, before[path] + more, atol=1e-5)
    capsys.readouterr()
    for wrong, message in (
        ([], "exists already"),
        (["--share", "2"], "--share must be from 0 to 1, got 2.0"),
        (["--keep", "frames"], "--keep frames: no parameter's path begins so"),
    ):
        assert main([*command[:3], str(mean if not wrong else tmp_path / "other"), *wrong]) == 1
        assert message in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["poket"], "unknown preset 'poket'. Did you mean 'pocket'?"),
        (["debug", "--model.heads", "3", "--model.kv-heads", "2"], "model.heads (3)"),
        (["debug", "--data.atari.shift", "-1"], "shift must be at least 0, got -1"),
        (
            ["debug", "--data.atari.shift", "2", "--tokens.images", "patches"],
            "data.atari.shift moves frames, but tokens.images = patches has none: leave it out",
        ),
        (["debug", "--data.atari.recast"], "data.atari.recast: atari has no equivalent versions of an episode"),
        (["debug", "--data.atari.tasks", "pnog"], "did you mean 'atari/pong'"),
        (["debug", "--training.fsdp-axis", "3", "--data.metaworld.weight", "-1"], "data.metaworld.weight"),
    ],
)
def test_mistakes_are_said_before_anything_is_done(tmp_path: Path, arguments: list[str], message: str):
    done = train(tmp_path, *arguments)
    assert done.returncode in (1, 2)
    printed = done.stdout + done.stderr
    assert message in re.sub(r"[\s│]+", " ", printed)
    assert "Traceback" not in printed
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()


def test_other_settings_for_the_same_run_are_refused(trained: tuple[Path, str]):
    folder, _ = trained
    done = train(folder, "debug", "--model.width", "64")
    assert done.returncode == 1 and "model.width = 32, not 64" in " ".join(done.stdout.split())


def test_help_shows_every_setting(tmp_path: Path):
    done = train(tmp_path, "--help")
    assert done.returncode == 0
    for setting in ("--training.steps", "--data.SUITE.weight", "--model.width", "--data.emoji.naming-choices"):
        assert setting in done.stdout
