"""The loop on real drawings and prose: stopped and resumed equals uninterrupted, bit for bit."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from generalist.config.data import mixed
from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.data.sources.recorded import Recorded
from generalist.experiment.prepare import prepare
from generalist.training.checkpoint import Checkpoints
from generalist.training.token_trainer import make_trainer
from generalist.training.tokens import train

ROBOT = Path(__file__).parents[1] / "fixtures" / "formats" / "rlds_tfrecord" / "small_bridge"


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def config_of(folder: Path, name: str, data_folder: Path, steps: int) -> Config:
    base = debug()
    data = dataclasses.replace(base.data, folder=data_folder, frames=16, only=("emoji", "prose"))
    training = dataclasses.replace(base.training, steps=steps, checkpoint_every=4, log_every=2)
    return dataclasses.replace(base, name=name, runs=folder, data=data, training=training)


def robot(folder: Path, name: str, data_folder: Path, steps: int) -> Config:
    """A run on recorded episodes with parallel actions of seven dimensions."""
    base = config_of(folder, name, data_folder, steps)
    data = dataclasses.replace(
        base.data, sources=mixed(recorded=Recorded(path=str(ROBOT), weight=1.0)), only=("recorded",), frames=64
    )
    return dataclasses.replace(base, data=data, tokens=dataclasses.replace(base.tokens, actions="parallel"))


def run(config: Config) -> None:
    console = Console(quiet=True)
    prepared = prepare(config, console)
    spec = prepared.tokenizers.model_spec()
    train(config, spec, prepared.batch_spec, prepared.iterator, prepared.sources, console)


def final_params(config: Config) -> list[np.ndarray]:
    prepared = prepare(config, Console(quiet=True))
    weights = list(prepared.sources.values())
    trainer = make_trainer(prepared.tokenizers.model_spec(), config.training, weights=weights)
    checkpoints = Checkpoints(config.checkpoints, config.training)
    state, _ = checkpoints.restore(trainer.abstract_state)
    checkpoints.close()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.mark.slow
@pytest.mark.parametrize("make", [config_of, robot])
def test_resumed_equals_uninterrupted(
    make: Callable[..., Config], tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, parts = (make(tmp_path, name, data_folder, 8) for name in ("whole", "parts"))
    run(whole)
    from generalist.training import loop

    real = loop.Checkpoints.save

    def save_and_die(self: Checkpoints, *arguments) -> None:
        real(self, *arguments)
        self.wait()
        raise RuntimeError("killed")

    monkeypatch.setattr(loop.Checkpoints, "save", save_and_die)
    with pytest.raises(RuntimeError, match="killed"):
        run(parts)
    monkeypatch.undo()
    run(parts)
    for left, right in zip(final_params(whole), final_params(parts), strict=True):
        np.testing.assert_array_equal(left, right)
    lines = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    kinds = {"loss/continuous", "loss/recorded"} if make is robot else {"loss/text", "loss/emoji", "loss/prose"}
    assert {"loss", "mfu", "padding", "waiting", "tokens_per_second"} | kinds <= lines[0].keys()


@pytest.mark.slow
def test_other_settings_are_refused(tmp_path: Path, data_folder: Path):
    from generalist.run.folder import check_same_settings

    config = config_of(tmp_path, "run", data_folder, 2)
    prepare(config, Console(quiet=True))
    (Path(config.checkpoints) / "1").mkdir(parents=True)
    assert check_same_settings(dataclasses.replace(config, training=dataclasses.replace(config.training, steps=9)))
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, width=64))
    with pytest.raises(ValueError, match=r"model.width = 32, not 64"):
        check_same_settings(other)
