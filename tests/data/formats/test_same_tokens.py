"""The same episodes give the same tokens in whatever format they are; a mixture of all formats goes on bit for bit."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from generalist.config.data import DataConfig, read_source
from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.data.batch import Batch
from generalist.data.episodes import EpisodeCache
from generalist.data.mixture import mix
from generalist.data.packing import BatchIterator
from generalist.data.source import Reading, Stored
from generalist.data.sources.recorded import Recorded
from generalist.experiment.learn import learn_tokenizers
from generalist.experiment.prepare import open_sources, prepare
from generalist.tokenizers.sequence import Sequence
from tests.data.formats.same_episodes import EPISODES, TEXT, WRITERS


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("same")
    return {name: write(folder / name) for name, write in WRITERS.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path_factory.mktemp("cache")))


def sequences(path: Path, folder: Path) -> list[Sequence]:
    """One window of every stretch of the training episodes, each with the generator of its number."""
    source = Recorded(path=str(path), instruction=TEXT, steps=4, heldout=0.2)
    base = debug()
    config = dataclasses.replace(base, data=dataclasses.replace(base.data, folder=folder, sources={"recorded": source}))
    stored = Stored(folder=folder, corrections=(), cache=EpisodeCache(16))
    tokenizers = learn_tokenizers(config, stored)
    reading = Reading(assembler=tokenizers.assembler, layouts=tokenizers.layouts, length=config.data.length)
    (examples,) = source.open(stored, reading)
    return [examples.example(index, np.random.default_rng(index)) for index in range(len(examples))]


def test_instruction_longer_than_a_row_is_refused_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "told"
    folder.mkdir()
    for number in range(4):
        told = "pick the cup " * (100 if number == 2 else 1)
        arrays = {"observation/state": np.ones((5, 2), np.float32), "action": np.ones((5, 1), np.float32)}
        np.savez(folder / f"{number}.npz", instruction=told, **arrays)
    with pytest.raises(
        ValueError, match=r"the instruction 'pick the cup .* exceeds a row of data.length = 128: raise that"
    ):
        sequences(folder, tmp_path)


@pytest.mark.slow
def test_one_set_of_episodes_gives_the_same_tokens_in_every_format(written: dict[str, Path], tmp_path: Path) -> None:
    found = {name: sequences(path, tmp_path) for name, path in written.items()}
    expected = found.pop("npz")
    assert len(expected) > len(EPISODES)
    for name, several in found.items():
        assert len(several) == len(expected), name
        for ours, theirs in zip(several, expected, strict=True):
            for field in dataclasses.fields(Sequence):
                np.testing.assert_array_equal(
                    getattr(ours, field.name), getattr(theirs, field.name), f"{name}: {field.name}"
                )


def mixture(written: dict[str, Path], folder: Path, shards: int) -> Config:
    """Eight sources: every format."""
    sources = {
        name: read_source(
            name, {"kind": "recorded", "path": str(path), "instruction": TEXT, "steps": 4, "weight": 0.1 + number}
        )
        for number, (name, path) in enumerate(written.items())
    }
    base = debug()
    data = DataConfig(
        folder=folder, sources=sources, rows=4, length=96, tensors=64, frames=64, row_images=0, images=0, shards=shards
    )
    return dataclasses.replace(base, name="all", runs=folder / "runs", data=data)


def assert_same(one: Batch, other: Batch) -> None:
    for field in dataclasses.fields(Batch):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), field.name)


@pytest.mark.slow
def test_a_mixture_of_all_formats_goes_on_bit_for_bit(written: dict[str, Path], tmp_path: Path) -> None:
    named = {name: path.rename(path.with_name(f"{path.stem}_{name}{path.suffix}")) for name, path in written.items()}
    try:
        config = mixture(named, tmp_path, shards=2)
        prepared = prepare(config, Console(quiet=True))
        whole = [next(prepared.iterator) for _ in range(12)]
        sources = {int(number) for batch in whole for number in np.unique(batch.source[batch.segment > 0])}
        assert sources == set(range(8))
        chance = random.Random(0)
        for _ in range(3):  # killed at a random batch, and started anew
            begun = prepare(config, Console(quiet=True)).iterator
            stop = chance.randrange(1, 11)
            for number in range(stop):
                assert_same(next(begun), whole[number])
            positions = begun.positions
            begun.close()
            again = prepare(config, Console(quiet=True)).iterator
            again.go_to(positions)
            for number in range(stop, 12):
                assert_same(next(again), whole[number])
            again.close()
        # Two processes: each makes its own shard of the same batches.
        stored = Stored(folder=tmp_path, corrections=(), cache=EpisodeCache(16))
        for own in (0, 1):
            streams = mix(
                open_sources(config, prepared.tokenizers, stored), seed=config.training.seed, own=(own,), shards=2
            )
            pad = prepared.tokenizers.assembler.vocabulary.pad
            half = BatchIterator(streams, prepared.batch_spec, pad)
            for batch in whole[:4]:
                rows = slice(2 * own, 2 * own + 2)
                np.testing.assert_array_equal(next(half).tokens, batch.tokens[rows])
            half.close()
        prepared.iterator.close()
    finally:
        for name, path in named.items():
            path.rename(written[name])


@pytest.mark.slow
def test_neither_tensorflow_nor_torch_is_imported(written: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from generalist.data.recorded import Dataset, RecordedEpisodes, opened\n"
        "from generalist.data.episodes import EpisodeCache\n"
        "for path in sys.argv[1:]:\n"
        "    dataset = Dataset(path=path)\n"
        "    RecordedEpisodes(dataset, EpisodeCache(8), heldout=0.2)[0].window(0, 4), opened(dataset).statistics\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, written.values())], check=True)
