"""Batches of several processes: the same as one thread's, from any position, and an end that is told."""

import contextlib
import dataclasses
import functools
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest
from rich.console import Console

from generalist.config.data import mixed
from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.data.loaders import PLACES, LoadedBatches
from generalist.data.packing import BatchIterator
from generalist.data.sources.emoji import Emoji
from generalist.data.sources.prose import Prose
from generalist.experiment.prepare import open_streams, prepare
from generalist.system.processes import WorkerError
from generalist.training.metrics import Metrics
from generalist.training.tokens import train

SHARDS = 4
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on drawings, which come as frames, and prose, whose batches its own thread makes."""
    folder, base = tmp_path_factory.mktemp("loaders"), debug()
    data = dataclasses.replace(
        base.data,
        folder=folder / "data",
        sources=mixed(emoji=Emoji(weight=0.5), prose=Prose(weight=0.5, megabytes=0.5)),
        only=("emoji", "prose"),
        rows=8,
        length=32,
        frames=64,
        shards=SHARDS,
    )
    config = dataclasses.replace(base, runs=folder / "runs", data=data)
    prepare(config, QUIET)
    return config


def with_loaders(config: Config, loaders: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, loaders=loaders))


def several(config: Config, loaders: int) -> BatchIterator:
    """The batches of so many processes."""
    iterator = prepare(with_loaders(config, loaders), QUIET).iterator
    assert isinstance(iterator, LoadedBatches)
    return iterator


@pytest.mark.slow
@pytest.mark.parametrize("loaders", [1, 3])
def test_any_number_of_processes_makes_the_batches_of_one_thread(alone: Config, loaders: int):
    ours, theirs = prepare(alone, QUIET).iterator, several(alone, loaders)
    kept = []
    for _ in range(2 * PLACES + 1):
        kept.append((next(ours), next(theirs)))
        assert theirs.positions == ours.positions
    theirs.close()
    ours.close()
    assert any(len(one.frames) for one, _ in kept)
    for one, other in kept:  # compared at the end: a batch must not change when its place is used again
        assert one.shards == other.shards == SHARDS
        for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_it_goes_on_from_any_position_and_leaves_no_process(alone: Config):
    batches = several(alone, 2)
    for _ in range(3):
        next(batches)
    position, following = batches.positions, next(batches)
    next(batches)
    batches.go_to(position)
    for left, right in zip(jax.tree.leaves(following), jax.tree.leaves(next(batches)), strict=True):
        np.testing.assert_array_equal(left, right)
    assert len(children()) == 2
    batches.close()
    deadline = time.monotonic() + 10
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children()


@pytest.mark.slow
@pytest.mark.parametrize("failing", [False, True])
def test_training_leaves_no_process_however_it_ends(
    alone: Config, failing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = with_loaders(alone, 2)
    training = dataclasses.replace(config.training, steps=2, log_every=1, checkpoints=str(tmp_path))
    config = dataclasses.replace(config, training=training)
    packing: list[int] = []
    real = Metrics.write

    def write(self: Metrics, step: int, values: dict[str, float]) -> None:
        packing.append(len(children()))
        if failing:
            raise OSError("no space is left")
        real(self, step, values)

    monkeypatch.setattr(Metrics, "write", write)
    prepared = prepare(config, QUIET)
    spec = prepared.tokenizers.model_spec()
    with pytest.raises(OSError, match="no space") if failing else contextlib.nullcontext():
        train(config, spec, prepared.batch_spec, prepared.iterator, prepared.sources, QUIET)
    assert packing == [2] * (1 if failing else 2)
    assert not children()


@pytest.mark.slow
def test_what_fails_in_a_process_is_raised_where_the_batch_is_wanted(alone: Config, tmp_path: Path):
    elsewhere = dataclasses.replace(with_loaders(alone, 2), runs=tmp_path)
    theirs = prepare(alone, QUIET)
    batches = LoadedBatches(
        functools.partial(open_streams, elsewhere), range(SHARDS), theirs.batch_spec, pad=0, loaders=2
    )
    with pytest.raises(FileNotFoundError, match="no run in"):
        next(batches)
    batches.close()


@pytest.mark.slow
def test_a_process_that_dies_is_named(alone: Config):
    batches = several(alone, 2)
    next(batches)
    for child in children():
        os.kill(child, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"makes batches died \(exit code -9.*fewer data.loaders"):
        for _ in range(100):
            next(batches)
    batches.close()


def test_more_processes_than_shards_are_refused(alone: Config):
    with pytest.raises(ValueError, match=r"data.loaders = 5 .* data.shards = 4.* raise data.shards"):
        with_loaders(alone, 5)
    spec = prepare(alone, QUIET).batch_spec
    with pytest.raises(ValueError, match=r"data.loaders = 3 .* 2 shards .* that this process makes"):
        LoadedBatches(functools.partial(open_streams, alone), [1, 3], spec, pad=0, loaders=3)
    with pytest.raises(ValueError, match=r"data.loaders must not be negative, got -1"):
        with_loaders(alone, -1)


def children() -> list[int]:
    """Processes of this one that pack."""
    started = psutil.Process().children(recursive=True)
    return [child.pid for child in started if "spawn_main" in " ".join(child.cmdline())]
