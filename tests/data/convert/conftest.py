"""Small data sets that are converted, and the comparison of two of them."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from generalist.data.convert.convert import convert
from generalist.data.convert.report import Report
from generalist.data.convert.source import Settings
from generalist.data.formats.columns import Frames, decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, Opening, RawEpisode

FIXTURES = Path(__file__).parents[2] / "fixtures" / "formats"
Convert = Callable[..., Report]
WriteRlds = Callable[..., Path]
CheckSame = Callable[..., None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices are kept with the test."""
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def bridge() -> Path:
    """RLDS as TensorFlow wrote it: seven episodes, two cameras, JPEG."""
    return FIXTURES / "rlds_tfrecord" / "small_bridge"


@pytest.fixture(name="convert", scope="session")
def run_convert() -> Convert:
    """Converts in this process, and compares every value."""

    def run(source: Path, target: Path, to: Any, *, workers: int = 1, verify: bool = True, **options: Any) -> Report:
        own = {key: options.pop(key) for key in ("unreadable", "replace") if key in options}
        settings = Settings(source=str(source), to=to, **options)
        return convert(settings, target, workers=workers, verify=verify, console=Console(quiet=True), **own)

    return run


@pytest.fixture(scope="session")
def write_rlds() -> WriteRlds:
    """Writes a set of RLDS in an ArrayRecord file; features and values of episodes as TFDS has them."""

    def write(folder: Path, features: Any, episodes: Sequence[Mapping[str, Any]]) -> Path:
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        from generalist.envs.rlds import ShardWriter, write_info

        folder.mkdir(parents=True)
        serializer, file = ExampleSerializer(features.get_serialized_info()), "made-train.array_record-00000-of-00001"
        writer = ShardWriter(folder / file)
        for episode in episodes:
            writer.write(serializer.serialize_example(episode))
        writer.close()
        shards = [(len(episodes), (folder / file).stat().st_size)]
        write_info(folder, name="made", features=features, description="", shards=shards, metadata={})
        return folder

    return write


def png(image: np.ndarray) -> bytes:
    """An image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def open_set(path: Path) -> EpisodeSet:
    """A data set, without a kept index."""
    return open_episodes(path, Opening())


def column(raw: RawEpisode, key: str) -> np.ndarray:
    """The values of a field as rows, images decoded; those of the episode once."""
    values = raw.columns[key] if key in raw.columns else raw.values[key]
    if isinstance(values, list | Frames):
        return decode(values)
    array = np.asarray(values)
    array = array.astype(object) if array.dtype.kind == "U" else array
    return array.reshape(len(raw) if key in raw.columns else 1, -1)


@pytest.fixture(scope="session")
def check_same() -> CheckSame:
    """Whether two data sets have the same episodes, whose fields may have other names; of episodes with steps alone."""

    def check(first: Path, second: Path, names: Mapping[str, str]) -> None:
        before, after = open_set(first), open_set(second)
        numbers = np.flatnonzero(before.lengths).tolist()
        assert before.lengths[numbers].tolist() == after.lengths.tolist()
        for place, number in enumerate(numbers):
            one, other = before.read(number, [*names]), after.read(place, [*names.values()])
            for key, new in names.items():
                wanted, got = column(one, key), column(other, new)
                assert wanted.dtype == got.dtype, key
                # What is of the episode may stand at every step.
                np.testing.assert_array_equal(np.broadcast_to(wanted, got.shape), got, err_msg=key)

    return check
