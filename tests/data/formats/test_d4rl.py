"""D4RL's flat HDF5 files, written by h5py in their published layout."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from generalist.data.formats import d4rl
from generalist.data.formats.columns import decode
from generalist.data.formats.d4rl import D4rl
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import Opening
from generalist.data.formats.faults import BrokenRecord

ROWS = 12
TERMINALS = (2, 7)
TIMEOUTS = (4, 7)


def flags(rows: int, ends: tuple[int, ...]) -> np.ndarray:
    return np.isin(np.arange(rows), ends)


def content(rows: int = ROWS) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "actions": rng.normal(size=(rows, 2)).astype(np.float32),
        "rewards": np.arange(rows, dtype=np.float32),
        "terminals": flags(rows, TERMINALS),
        "timeouts": flags(rows, TIMEOUTS),
        "infos/qpos": rng.normal(size=(rows, 4)),
        "infos/image": rng.integers(256, size=(rows, 6, 5, 1), dtype=np.uint8),
        "metadata/policy/weight": np.zeros((7, 7)),
        "metadata/algorithm": "SAC",
    }


def write(path: Path, **other: Any) -> Path:
    """A file, with some arrays other than they are."""
    with h5py.File(path, "w") as file:
        for key, values in (content() | other).items():
            if values is not None:
                file[key] = values
    return path


def test_read_as_published(tmp_path: Path, read_all: Any) -> None:
    path = write(tmp_path / "hopper.hdf5")
    episodes = open_episodes(path, Opening())
    assert isinstance(episodes, D4rl) and episodes.files == [path] and episodes.broken() == {}
    assert episodes.lengths.tolist() == [3, 2, 3, 4], "ends at 2 (terminal), 4 (timeout), 7 (both), and a tail"
    assert {key: field.kind for key, field in episodes.fields.items() if field.kind != "number"} == {
        "infos/image": "image"
    }
    assert set(episodes.fields) == {key for key in content() if not key.startswith("metadata")}
    assert episodes.where(1) == f"{path}, rows from 3 on"
    read = read_all(path)
    for key in episodes.fields:
        np.testing.assert_array_equal(np.concatenate([one[key] for one in read]), content()[key], strict=True)
    frames = episodes.read(3, ["infos/image"]).columns["infos/image"]
    np.testing.assert_array_equal(decode(frames[1:3]), content()["infos/image"][9:11])


@pytest.mark.parametrize(
    ("terminals", "timeouts", "expected"),
    [
        ((), (), [12]),
        ((11,), (), [12]),
        ((), (11,), [12]),
        ((0,), (11,), [1, 11]),
        (range(12), (), [1] * 12),
        ((5,), None, [6, 6]),
    ],
)
def test_where_episodes_end(tmp_path: Path, terminals: Any, timeouts: Any, expected: list[int]) -> None:
    both = {
        "terminals": flags(ROWS, tuple(terminals)),
        "timeouts": timeouts if timeouts is None else flags(ROWS, timeouts),
    }
    assert open_episodes(write(tmp_path / "a.hdf5", **both), Opening()).lengths.tolist() == expected


@pytest.mark.parametrize("block", [1, 5, 12])
def test_ends_are_looked_for_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(d4rl, "BLOCK", block)
    assert open_episodes(write(tmp_path / "a.hdf5"), Opening()).lengths.tolist() == [3, 2, 3, 4]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_flags_of_other_types_in_a_column(tmp_path: Path, dtype: Any) -> None:
    path = write(tmp_path / "a.hdf5", terminals=flags(ROWS, TERMINALS).astype(dtype)[:, None])
    assert open_episodes(path, Opening()).lengths.tolist() == [3, 2, 3, 4]


def test_several_files(tmp_path: Path, read_all: Any) -> None:
    write(tmp_path / "b.hdf5", terminals=flags(ROWS, (11,)), timeouts=None)
    write(tmp_path / "a.hdf5")
    episodes = open_episodes(tmp_path, Opening())
    assert episodes.lengths.tolist() == [3, 2, 3, 4, 12]
    np.testing.assert_array_equal(episodes.read(4, ["rewards"]).columns["rewards"], content()["rewards"])
    with pytest.raises(BrokenRecord, match=r"b.hdf5, rows from 0 on has no 'timeouts'"):
        episodes.read(4, ["timeouts"])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"terminals": flags(ROWS, ()) + 0.5}, r"'terminals' holds other values than 0 and 1 in range\(0, 12\)"),
        ({"terminals": np.where(flags(ROWS, (3,)), np.nan, 0)}, "'terminals' holds other values than 0 and 1"),
        ({"terminals": flags(ROWS + 1, ())}, r"shapes terminals \(13,\), timeouts \(12,\), where one flag per step"),
        ({"terminals": np.zeros((ROWS, 2))}, r"shapes terminals \(12, 2\)"),
        ({"terminals": np.float32(0)}, r"shapes terminals \(\)"),
        ({"terminals": np.array(["a"] * ROWS, "S")}, "one flag per step is expected"),
        ({"terminals": np.zeros(0, bool), "timeouts": None}, "has no episodes"),
        ({"observations": np.zeros((ROWS - 1, 3))}, "'observations' has 11 rows, where 12 are expected"),
        ({"rewards": np.float32(1)}, "'rewards' has 0 rows, where 12 are expected"),
    ],
)
def test_what_is_refused(tmp_path: Path, other: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=rf"a.hdf5.*{expected}"):
        open_episodes(write(tmp_path / "a.hdf5", **other), Opening())


def test_other_lengths_are_values_of_the_episode(tmp_path: Path, read_all: Any) -> None:
    read = read_all(write(tmp_path / "a.hdf5", **{"infos/goal": np.arange(3.0), "rewards": np.full(ROWS, np.nan)}))
    assert all(one["infos/goal"].tolist() == [0, 1, 2] and np.isnan(one["rewards"]).all() for one in read)


def test_rows_that_no_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", terminals=None, timeouts=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("terminals", (10**12,), bool, chunks=(1000,))
    with pytest.raises(ValueError, match=r"terminals \(1000000000000,\), where one flag per step"):
        open_episodes(path, Opening())


@pytest.mark.slow
def test_damaged_files(tmp_path: Path, survives: Any) -> None:
    path = write(tmp_path / "a.hdf5")
    assert survives(path, path, 150) > 20
