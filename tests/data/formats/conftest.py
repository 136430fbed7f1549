"""Data sets of LeRobot that tests write; reading all of a data set, and damaging a file in many ways."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from generalist.data.formats.columns import decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, Opening
from tests.data.formats.lerobot_sets import Written


def read_all(place: Path, opening: Opening = Opening()) -> list[dict[str, Any] | str]:
    """Every field of every episode of a data set, checked against its fields; the reason for one that can't be read."""
    episodes = open_episodes(place, opening)
    assert all(number >= len(episodes) or not episodes.lengths[number] for number in episodes.broken())
    return [read_one(episodes, index) for index in range(len(episodes))]


def read_one(episodes: EpisodeSet, index: int) -> dict[str, Any] | str:
    """Every field of an episode; the reason if it can't be read."""
    try:
        episode = episodes.read(index, list(episodes.fields))
        columns = {key: decode(column) for key, column in episode.columns.items()}
    except ValueError as error:
        assert str(episodes.place) in str(error)
        return str(error)
    assert len(episode) == episodes.lengths[index]
    for key, column in columns.items():
        field = episodes.fields[key]
        assert column.shape == (len(episode), *field.shape) and (column.dtype == object) == (field.kind == "text")
    return columns | dict(episode.values)


@pytest.fixture(name="read_all")
def _read_all() -> Callable[..., list[dict[str, Any] | str]]:
    return read_all


@pytest.fixture
def damaged() -> Callable[[bytes, int], Iterator[bytes]]:
    """A file's content, damaged in so many ways: bits flipped, numbers made large, parts zeroed, cut off."""

    def versions(content: bytes, count: int) -> Iterator[bytes]:
        chance = random.Random(0)
        for _ in range(count):
            version = bytearray(content)
            how = chance.choice(["bit", "bit", "byte", "large", "zero", "cut"])
            for at in chance.sample(range(len(content)), chance.choice([1, 1, 2, 8])):
                if how == "bit":
                    version[at] ^= 1 << chance.randrange(8)
                elif how == "byte":
                    version[at] = chance.randrange(256)
                elif how == "large":
                    version[at : at + 8] = chance.choice([b"\xff" * 4, b"\xff" * 8, (1 << 40).to_bytes(8, "little")])
                elif how == "zero":
                    version[at : at + 16] = bytes(16)
            yield bytes(version[: chance.randrange(len(content))] if how == "cut" else version)

    return versions


@pytest.fixture
def survives(damaged: Any) -> Callable[[Path, Path, int], int]:
    """Damages a file of a data set in so many ways: each time it must be read, or refused by the name of the data set. Returns
    how often something was refused."""

    def check(place: Path, file: Path, count: int) -> int:
        refused = 0
        for version in damaged(file.read_bytes(), count):
            file.write_bytes(version)
            try:
                refused += any(isinstance(one, str) for one in read_all(place))
            except (ValueError, FileNotFoundError) as error:
                assert str(place) in str(error)
                refused += 1
        return refused

    return check


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "set")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By version, a data set that nobody changes."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: Written(folder / name).version(name) for name in ("v2", "v3")}
