"""What a command names is looked at before anything is recorded, and a run that never took a step is in nobody's way."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from generalist.config.plain import plain
from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.contrastive.config import ContrastiveConfig
from generalist.data.source import Source
from generalist.data.sources.control import BabyAI
from generalist.data.sources.grids import Grids
from generalist.data.sources.scenes import Scenes
from generalist.experiment import pipeline as experiment
from generalist.experiment.beforehand import check
from generalist.experiment.inherit import parse
from generalist.inference.generalist import Generalist
from generalist.run.folder import begin_anew, check_same_settings, forget, has_begun
from generalist.system.files import write_json

ROOT = Path(__file__).parents[2]
SILENT = Console(quiet=True)


def changed(config: Config, part: str, **settings: Any) -> Config:
    """With other settings of `model`, `data`, `training` or `evaluation`."""
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **settings)})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """`debug` in a folder of its own."""
    return changed(dataclasses.replace(debug(), runs=tmp_path / "runs"), "data", folder=tmp_path / "data")


def command(tmp_path: Path, *arguments: str) -> Config:
    """`train.py debug` with arguments."""
    folders = ("--runs", str(tmp_path / "runs"), "--data.folder", str(tmp_path / "data"))
    return parse(debug(), [*folders, *arguments], prog="train.py debug")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.documents.path", "no.jsonl", "--data.documents.weight", "1"], "there is no no.jsonl"),
        (
            ["--training.start", "nowhere"],
            "no weights in nowhere .* name a folder of `generalist export`, a run's folder",
        ),
        (["--data.dagger", "nowhere"], "data.dagger: nowhere holds no data set"),
        (["--data.own.demonstrations", "nowhere"], "nowhere holds no data set: record one"),
        (["--model.vision.encoder", "nowhere", "--tokens.documents", "encoder"], "there is no folder nowhere"),
        (["--data.emoji.naming-choices", "5000"], "naming_choices must be from 2 to 85, .* got 5000"),
        (
            ["--training.keep-best", "1", "--training.best-metric", "los"],
            "best_metric = los is not a metric of this run; ",
        ),
        (["--training.fsdp-axis", "3", "--training.data-axis", "3"], "does not cover the 8 devices"),
        (["--data.shards", "3"], "data.rows = 8 must be a multiple of data.shards = 3"),
        (["--data.classic.episodes", "0"], "data.SUITE.episodes must be at least 1, got 0"),
        (["--data.atari.evaluation-episodes", "0"], "data.SUITE.evaluation_episodes must be at least 1, got 0"),
        (["--data.atari.tasks", "pnog"], "did you mean 'atari/pong'"),
        (["--training.checkpoints", __file__], "training.checkpoints: .* is a file: name a folder"),
        (["--runs", __file__], "is a file, so .* can.t be a folder"),
    ],
)
def test_what_a_command_names_is_checked_first(tmp_path: Path, arguments: list[str], message: str):
    with pytest.raises((ValueError, OSError, SystemExit), match=message):
        try:
            experiment.run(command(tmp_path, *arguments), ["train.py", "debug"], SILENT)
        except SystemExit as error:  # of a setting that a dataclass refuses, tyro makes a page
            raise ValueError(str(error.__context__)) from error
    assert not (tmp_path / "data").exists() and not (tmp_path / "runs").exists()


def test_nothing_is_recorded_for_the_check(config: Config):
    assert check(config, SILENT) is None
    assert not config.data.folder.exists() and not config.folder.exists()


def begun(config: Config) -> None:
    """What a run leaves that is killed after a few steps, before its first checkpoint."""
    for name in ("tensorboard", "checkpoints/10.orbax-checkpoint-tmp"):
        (config.folder / name).mkdir(parents=True)
    (config.folder / "metrics.jsonl").write_text('{"step": 5}\n')
    write_json(config.folder / "config.json", plain(config))


def test_a_run_without_a_checkpoint_refuses_no_other_setting(config: Config):
    begun(config)
    other = changed(config, "model", width=64)
    assert not check_same_settings(other)
    forget(other)
    assert not config.folder.exists()


def test_that_a_run_begins_anew_is_told(config: Config):
    begun(config)
    console = Console(record=True, width=200)
    for _ in range(2):
        begin_anew(config, console)
    assert console.export_text() == f"{config.folder} ended before its first checkpoint: it begins anew\n"


def test_what_has_a_checkpoint_or_scores_is_never_forgotten(config: Config, tmp_path: Path):
    elsewhere = changed(config, "training", checkpoints=str(tmp_path / "elsewhere"))
    for one, step in ((config, config.folder / "checkpoints" / "10"), (elsewhere, tmp_path / "elsewhere" / "10")):
        begun(one)
        step.mkdir(parents=True)
        for now in (
            config,
            elsewhere,
        ):  # where checkpoints are may change, and the run's own settings tell where they were
            assert has_begun(now.folder, now.training.checkpoints)
            forget(now)
            assert (config.folder / "metrics.jsonl").exists()
        with pytest.raises(ValueError, match=r"model.width = 32, not 64"):
            check_same_settings(changed(one, "model", width=64))
        step.rmdir()
        assert not has_begun(config.folder)
        forget(config)
    begun(config)
    (config.folder / "results.json").write_text("{}")
    forget(config)
    assert (config.folder / "config.json").exists()


def test_what_is_of_its_user_stays_in_the_folder(config: Config):
    begun(config)
    (config.folder / "notes.txt").write_text("mine")
    (config.folder / "checkpoints" / "epoch=3.ckpt").touch()
    forget(config)
    left = sorted(path.name for path in config.folder.rglob("*"))
    assert left == ["checkpoints", "epoch=3.ckpt", "notes.txt"]


def test_a_damaged_run_is_named(config: Config):
    begun(config)
    (config.folder / "checkpoints" / "10").mkdir()
    (config.folder / "config.json").write_text("{")
    for content in ("{", "[]", '{"architectures": ["of another program"]}'):
        (config.folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json is damaged .* or train in another folder with --name"):
            check_same_settings(config)


def test_a_run_of_another_kind_is_named(config: Config):
    begun(config)
    (config.folder / "checkpoints" / "10").mkdir()
    towers = ContrastiveConfig(runs=config.runs, name=config.name)
    with pytest.raises(ValueError, match="holds a run of the generalist, not of contrastive: train in another folder"):
        check_same_settings(towers)


@pytest.mark.slow
def test_the_model_is_that_of_the_weights(make_model: Callable[..., Any], tmp_path: Path):
    weights = make_model("encoder")
    wide = dataclasses.replace(weights.config.model, remat="block")
    weights = weights.with_config(dataclasses.replace(weights.config, model=wide))
    weights.save(tmp_path / "weights")
    start = ("--training.start", str(tmp_path / "weights"))
    config = command(tmp_path, *start)
    assert config.model == dataclasses.replace(weights.config.model, remat=debug().model.remat)
    assert config.tokens == weights.config.tokens and config.tokens.documents == "encoder"
    assert check(config, SILENT) is not None
    for arguments, message in (
        (("--model.width", "64"), r"model.width = 32, not 64: leave these settings out"),
        (("--model.heads", "1", "--model.activation", "gelu"), r"heads = 2, not 1; model.activation = geglu, not gelu"),
        (("--model.layers", "3"), r"model.layers = 2, not 3"),
        (("--model.vision.latents", "3"), r"model.vision.latents = 2, not 3"),
        (("--model.vision.size", "64"), r"model.vision.size = 32, not 64"),
        (("--tokens.discrete-values", "128"), r"tokens.discrete_values = 64, not 128"),
    ):
        with pytest.raises(ValueError, match=message):
            check(command(tmp_path, *start, *arguments), SILENT)
    # What the weights do not have may be as one likes, and they may be deepened (generalist/experiment/warm_start.py).
    check(command(tmp_path, *start, "--model.layers", "4", "--model.vision.every", "4"), SILENT)
    check(command(tmp_path, *start, "--model.patch-channels", "64"), SILENT)


def test_a_run_that_has_begun_needs_its_weights_no_more(make_model: Callable[..., Any], tmp_path: Path):
    make_model("encoder").save(tmp_path / "weights")
    start = ("--training.start", str(tmp_path / "weights"))
    config = command(tmp_path, *start)
    begun(config)
    (config.folder / "checkpoints" / "10").mkdir()
    (tmp_path / "weights").rename(tmp_path / "moved")
    again = command(tmp_path, *start)
    assert again == config and check_same_settings(again) and check(again, SILENT) is None
    with pytest.raises(FileNotFoundError, match="no weights in"):
        command(tmp_path, *start, "--name", "another")
    # Of a run that began otherwise, what differs first is what it began with, not the model that comes of it.
    with pytest.raises(ValueError, match=r"training.start = .*weights, not shipped: use the same setting"):
        check_same_settings(command(tmp_path, "--training.start", "shipped"))


def test_weights_have_the_same_names_everywhere(make_model: Callable[..., Any], tmp_path: Path):
    make_model("frame").save(tmp_path / "weights")
    assert Generalist.load(tmp_path / "weights").step == 0
    shipped = Generalist.load("shipped")
    assert shipped.step == Generalist.load().step
    assert command(tmp_path, "--training.start", "shipped").model == shipped.config.model
    with pytest.raises(FileNotFoundError, match=r"no weights in nowhere .*, a run's folder .*, or `shipped`"):
        Generalist.load("nowhere")


def test_saved_weights_can_be_read_by_whoever_may_read_new_files(make_model: Callable[..., Any], tmp_path: Path):
    make_model("frame").save(tmp_path / "weights")
    (tmp_path / "new").touch()
    modes = {file.name: file.stat().st_mode for file in [*(tmp_path / "weights").iterdir(), tmp_path / "new"]}
    assert set(modes.values()) == {modes["new"]}, modes
    assert json.loads((tmp_path / "weights" / "model.json").read_text())["step"] == 0


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_step_leaves_nothing(tmp_path: Path):
    others = [f"--data.{suite}.weight=0" for suite in ("metaworld", "babyai", "atari", "fetch", "emoji", "prose")]
    small = ["debug", *others, "--data.classic.episodes", "1"]
    for arguments, message in (
        (["--data.classic.tasks", "acrobot", "--tokens.discrete-values", "2"], "discrete"),
        (
            ["--data.length", "4"],
            "more than the 4 that fit into a shard of a batch",
        ),  # once the tokenizers are written
    ):
        words = [sys.executable, str(ROOT / "train.py"), *small, *arguments]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1 and message in done.stdout, done.stdout + done.stderr
        assert (tmp_path / "data").exists() and not (tmp_path / "runs" / "debug").exists()


def test_two_data_sets_of_one_name_must_agree(tmp_path: Path):
    for folder, width in (("a", 2), ("b", 2), ("c", 3)):
        place = tmp_path / folder / "set"
        place.mkdir(parents=True)
        for number in range(2):
            values = np.arange(4 * width, dtype=np.float32).reshape(4, width)
            np.savez(place / f"{number}.npz", **{"observation/state": values, "action": values})
    for other, fits in (("b", True), ("c", False)):
        mixture = tmp_path / f"{other}.yaml"
        lines = [f"{name}: {{kind: recorded, path: {tmp_path / name / 'set'}}}" for name in ("a", other)]
        mixture.write_text("\n".join(lines))
        found = command(tmp_path, "--data.mixture", str(mixture))
        if fits:
            check(found, SILENT)
            continue
        with pytest.raises(ValueError, match="the sources a and c are both recorded/set.*rename one of the folders"):
            check(found, SILENT)


@pytest.mark.parametrize("source", [Scenes(weight=1.0), Grids(weight=1.0), BabyAI(places=0.5)])
def test_a_run_that_points_without_ids_for_places_is_refused_at_once(source: Source):
    base = debug()
    with pytest.raises(ValueError, match=rf"data\.{source.kind}.* tokens.locations is 0: set it to 1024"):
        dataclasses.replace(base, data=base.data.with_sources(**{source.kind: source}))
