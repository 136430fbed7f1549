"""Every format that is read, as RLDS and as LeRobot, with equal values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.data.formats.columns import Frames
from generalist.data.formats.detect import FORMATS, open_episodes
from generalist.data.formats.episodes import Opening

h5py = pytest.importorskip("h5py")
pytest.importorskip("av")
FIXTURES = Path(__file__).parents[2] / "fixtures" / "formats"


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)


def npz(folder: Path) -> Path:
    """Three episodes, whose last action is zero."""
    folder.mkdir()
    for number in range(3):
        count = 3 + number
        action = numbers(count, 2) * (np.arange(count) < count - 1)[:, None]
        arrays = {"observation/state": numbers(count, 4), "observation/camera": pixels(count), "action": action}
        np.savez(folder / f"{number}.npz", instruction=f"reach {number}", **arrays)
    return folder


def robomimic(folder: Path) -> Path:
    """Two demonstrations with next observations and states of the simulator."""
    folder.mkdir()
    with h5py.File(folder / "demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs.update(total=8, env_args=json.dumps({"env_name": "Lift"}))
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = 4
            arrays = {
                "actions": numbers(4, 7),
                "rewards": np.zeros(4),
                "dones": np.arange(4) == 3,
                "states": numbers(4, 5),
            }
            arrays |= {
                f"{group}/{name}": values for group in ("obs", "next_obs") for name, values in observed(4).items()
            }
            for name, values in arrays.items():
                demo[name] = values.astype(np.int64) if values.dtype == bool else values
    return folder / "demo.hdf5"


def observed(count: int) -> dict[str, np.ndarray]:
    return {"camera": pixels(count), "position": numbers(count, 3)}


def d4rl(folder: Path) -> Path:
    """Three episodes in one file, one of which is cut off."""
    folder.mkdir()
    with h5py.File(folder / "set.hdf5", "w") as file:
        arrays = {
            "observations": numbers(12, 3),
            "actions": numbers(12, 2),
            "rewards": numbers(12),
            "infos/qpos": numbers(12, 2),
        }
        ends = np.arange(12) % 4 == 3
        for name, values in (
            arrays | {"terminals": ends & (np.arange(12) != 7), "timeouts": np.arange(12) == 7}
        ).items():
            file[name] = values
    return folder / "set.hdf5"


SETS: dict[str, Callable[[Path], Path]] = {
    "Minari HDF5": lambda _: FIXTURES / "minari" / "hdf5",
    "Minari Arrow": lambda _: FIXTURES / "minari" / "arrow",
    "LeRobot v2.1": lambda _: FIXTURES / "lerobot_v21",
    "LeRobot v3.0": lambda _: FIXTURES / "lerobot_v3",
    "npz": npz,
    "robomimic": robomimic,
    "D4RL": d4rl,
}


def test_all_formats_are_here() -> None:
    assert len(FORMATS) == len(SETS) + 1, "RLDS has tests of its own"


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_values_are_equal_in_rlds_and_in_lerobot(tmp_path: Path, convert: Any, check_same: Any, name: str) -> None:
    source = SETS[name](tmp_path / "source")
    rate = None if name.startswith("LeRobot") else 10.0
    as_rlds = convert(source, tmp_path / "rlds", "rlds", rate=rate)
    check_same(source, tmp_path / "rlds", as_rlds.fields)
    direct = convert(source, tmp_path / "lerobot", "lerobot", rate=rate, images="png")
    check_same(source, tmp_path / "lerobot", direct.fields)
    by_rlds = convert(tmp_path / "rlds", tmp_path / "again", "lerobot", images="png")
    known = [key for key in as_rlds.fields if as_rlds.fields[key] in by_rlds.fields]
    check_same(source, tmp_path / "again", {key: by_rlds.fields[as_rlds.fields[key]] for key in known})
    assert {"action", "observation"} <= {key.split("/")[0] for key in (as_rlds.fields[key] for key in known)}


def test_what_minari_observes_after_the_last_action_stays(tmp_path: Path, convert: Any) -> None:
    import tensorflow_datasets as tfds

    source = FIXTURES / "minari" / "hdf5"
    convert(source, tmp_path / "rlds", "rlds")
    read = tfds.builder_from_directory(str(tmp_path / "rlds" / "1.0.0")).as_data_source()["train"]
    lengths = open_episodes(source, Opening()).lengths.tolist()
    with h5py.File(source / "data" / "main_data.hdf5") as file:
        for number, count in enumerate(lengths):
            steps, episode = [*read[number]["steps"]], file[f"episode_{number}"]
            assert len(steps) == count + 1
            for name in ("0", "1"):
                stored = episode[f"observations/state/_index_{name}"][()]
                np.testing.assert_array_equal([step["observation"][f"state.{name}"] for step in steps], stored)
            assert bool(steps[-1]["is_terminal"]) == bool(episode["terminations"][-1])
            assert not steps[-1]["action"]["0"].any()


def test_encoded_images_of_hdf5_are_taken_over(tmp_path: Path, convert: Any) -> None:
    key = "observations/image"
    for layout in ("hdf5", "arrow"):
        source = FIXTURES / "minari" / layout
        new = convert(source, tmp_path / layout, "rlds").fields[key]
        images = open_episodes(source, Opening()).read(0, [key]).columns[key]
        assert isinstance(images, Frames)
        stored = images.encoded
        written = open_episodes(tmp_path / layout, Opening()).read(0, [new]).columns[new]
        if stored is not None:
            assert list(stored) == written
        else:
            assert layout == "hdf5"
