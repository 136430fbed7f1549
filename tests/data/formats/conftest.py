"""Data sets of LeRobot that tests write."""

from pathlib import Path

import pytest

from tests.data.formats.lerobot_sets import Written


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "set")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By version, a data set that nobody changes."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: Written(folder / name).version(name) for name in ("v2", "v3")}
