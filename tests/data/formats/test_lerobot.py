"""LeRobot's data sets: those that LeRobot itself has written, and others that differ in every way they may, or may not."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from generalist.data.formats.columns import decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, Opening
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.lerobot_v2 import LeRobotV2
from generalist.data.formats.lerobot_v3 import LeRobotV3
from tests.data.formats.coded_videos import code
from tests.data.formats.lerobot_sets import FPS, LENGTHS, VERSIONS, Written, check_episode

FIXTURES = Path(__file__).parents[2] / "fixtures" / "formats"


# What LeRobot itself has written.


@pytest.mark.parametrize(("name", "kind"), [("lerobot_v3", LeRobotV3), ("lerobot_v21", LeRobotV2)])
def test_sets_that_lerobot_wrote(name: str, kind: type[EpisodeSet]) -> None:
    data = open_episodes(FIXTURES / name, Opening())
    truth = json.loads((FIXTURES / name / "truth.json").read_text())
    assert type(data) is kind and data.rate == 20 and not data.unread and not data.broken()
    assert data.lengths.tolist() == [one["length"] for one in truth]
    assert data.fields["observation.state"].names == ("s0", "s1", "s2", "s3")
    for index, wanted in enumerate(truth):
        episode = data.read(
            index, ["observation.images.front", "observation.images.wrist", "observation.state", "task"]
        )
        front = episode.columns["observation.images.front"]
        assert len(front) == len(episode) == wanted["length"]
        assert abs(decode(front[:1]).mean() - wanted["front_mean_first"]) < 0.2
        assert abs(decode(front[-1:]).mean() - wanted["front_mean_last"]) < 0.2
        assert decode(episode.columns["observation.images.wrist"]).shape == (wanted["length"], 64, 64, 3)
        np.testing.assert_array_equal(episode.columns["observation.state"][-1], np.float32(wanted["state_last"]))
        assert set(episode.columns["task"]) == {("balance the pole", "keep it up")[index % 2]}


def test_both_versions_of_the_same_episodes() -> None:
    """Numbers are the same, and images more like those of the same steps than like the same ones backwards."""
    old, new = (open_episodes(FIXTURES / name, Opening()) for name in ("lerobot_v21", "lerobot_v3"))
    assert set(old.fields) == set(new.fields)
    for index in range(len(old)):
        one, other = (data.read(index, list(old.fields)) for data in (old, new))
        for key, field in old.fields.items():
            if field.kind != "image":
                np.testing.assert_array_equal(one.columns[key], other.columns[key])
            else:
                images, others = (decode(episode.columns[key]).astype(np.float32) for episode in (one, other))
                assert np.abs(images - others).mean() < 0.8 * np.abs(images - others[::-1]).mean()


# What the tests have written.


@VERSIONS
def test_every_value_of_every_episode(version: str, whole: dict[str, Path]) -> None:
    data = open_episodes(whole[version], Opening())
    assert data.format == {"v2": "LeRobot v2.1", "v3": "LeRobot v3.0"}[version]
    assert data.lengths.tolist() == list(LENGTHS) and data.lengths.dtype == np.int64 and data.rate == FPS
    for index in (2, 0, 3, 1, 1):
        check_episode(data, index)
    assert set(data.unread) == {"depth", "old depth", "sound", "language_events"}
    assert "depth maps" in data.unread["depth"] and "'audio'" in data.unread["sound"]
    assert data.fields["side"].shape == (32, 64, 3) and data.fields["observation.image"].shape == (4, 4, 3)
    assert data.fields["observation.state"].names == ("x", "y", "z") and data.fields["task"].kind == "text"


@VERSIONS
def test_only_what_is_wanted_is_read(version: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / version
    shutil.copytree(whole[version], folder)
    shutil.rmtree(folder / "videos")
    data = open_episodes(folder, Opening())
    assert set(data.read(1, ["action"]).columns) == {"action"}
    episode = data.read(1, ["action", "front"])  # which is not decoded yet
    with pytest.raises(BrokenRecord, match=r"\.mp4, episode 1: the video can't be read"):
        decode(episode.columns["front"])


@VERSIONS
def test_files_and_places(version: str, whole: dict[str, Path]) -> None:
    data = open_episodes(whole[version], Opening())
    files = [str(file.relative_to(whole[version])) for file in data.files]
    assert len(set(files)) == len(files) == {"v2": 3 + 4 * 3, "v3": 4 + 3 + 2 + 2}[version]
    assert all(file.exists() for file in data.files) and files[0] == "meta/info.json"
    file = {"v2": "data/chunk-000/episode_000002.parquet", "v3": "data/chunk-001/file-000.parquet"}[version]
    assert data.where(2) == f"{whole[version] / file}, episode 2"


@VERSIONS
def test_through_a_stored_index(version: str, whole: dict[str, Path], tmp_path: Path) -> None:
    for _ in range(2):
        data = open_episodes(whole[version], Opening(index=tmp_path))
        check_episode(data, 3)
    assert len(list(tmp_path.iterdir())) == {"v2": 1, "v3": 2}[version]


@VERSIONS
def test_through_fsspec(version: str, whole: dict[str, Path]) -> None:
    from upath import UPath

    memory = UPath(f"memory://lerobot-{version}")
    for file in whole[version].rglob("*"):
        if file.is_file():
            (memory / file.relative_to(whole[version]).as_posix()).write_bytes(file.read_bytes())
    check_episode(open_episodes(memory, Opening()), 1)


@VERSIONS
def test_travels_to_other_processes(version: str, whole: dict[str, Path]) -> None:
    check_episode(pickle.loads(pickle.dumps(open_episodes(whole[version], Opening()))), 2)


def test_one_row_group_per_file(written: Written) -> None:
    written.row_groups, written.data_files = False, ((0, 1, 2, 3),)
    data = open_episodes(written.v3(), Opening())
    for index in (3, 0, 1, 2):
        check_episode(data, index)


@VERSIONS
def test_episodes_listed_out_of_order_or_with_gaps(version: str, written: Written) -> None:
    numbers = [7, 2, 9, 4]
    for number, content in zip(numbers, written.rows, strict=True):
        content["episode_index"] = [number] * len(content["index"])
    written.lists["episode_index"] = numbers
    folder = written.version(version)
    if version == "v2":
        files = {
            new: folder / f"data/chunk-{old // 3:03d}/episode_{old:06d}.parquet" for old, new in enumerate(numbers)
        }
        contents = {new: file.read_bytes() for new, file in files.items()}
        for number, content in contents.items():
            file = folder / f"data/chunk-{number // 3:03d}/episode_{number:06d}.parquet"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
    data = open_episodes(folder, Opening())
    assert data.lengths.tolist() == [LENGTHS[1], LENGTHS[3], LENGTHS[0], LENGTHS[2]]
    for index, number, written_as in ((0, 2, 1), (1, 4, 3), (2, 7, 0), (3, 9, 2)):
        episode = data.read(index, ["action", "episode_index"])
        assert set(episode.columns["episode_index"][:, 0].tolist()) == {number}
        assert episode.columns["action"][0, 0] == written_as
        if version == "v3":
            images = decode(data.read(index, ["front"]).columns["front"])
            assert [code(image) >> 8 for image in images] == [written_as] * LENGTHS[written_as]


@VERSIONS
def test_splits(version: str, written: Written) -> None:
    written.info["splits"] = {"train": "0:3", "val": "3:4"}
    folder = written.version(version)
    assert open_episodes(folder, Opening()).lengths.tolist() == list(LENGTHS[:3])
    data = open_episodes(folder, Opening(split="val"))
    assert len(data) == 1
    check_episode(data, 0, episode=3)
    with pytest.raises(ValueError, match="has no split 'test': name one of train, val"):
        open_episodes(folder, Opening(split="test"))


def test_version_2_0(written: Written) -> None:
    written.info |= {"codebase_version": "v2.0"}
    written.info["data_path"] = (
        "data/chunk-{episode_chunk:03d}/train-{episode_index:05d}-of-{total_episodes:05d}.parquet"
    )
    folder = written.v2()
    for file in (folder / "data").glob("*/*.parquet"):
        file.rename(file.with_name(f"train-{int(file.stem[-6:]):05d}-of-00004.parquet"))
    check_episode(open_episodes(folder, Opening()), 3)


def test_tasks_named_otherwise(written: Written) -> None:
    folder = written.v3()
    file = folder / "meta" / "tasks.parquet"
    pq.write_table(pq.read_table(file).rename_columns(["task_index", "task"]), file)
    check_episode(open_episodes(folder, Opening()), 0)


@VERSIONS
def test_without_tasks_or_videos(version: str, written: Written) -> None:
    for key in ("front", "side", "task_index"):
        del written.info["features"][key]
    written.info["video_path"] = None
    folder = written.version(version)
    for file in (folder / "meta").glob("tasks*"):
        file.unlink()
    data = open_episodes(folder, Opening())
    assert "task" not in data.fields and len(data.read(1, ["action"])) == LENGTHS[1]


def test_neither_torch_nor_tensorflow_is_imported(whole: dict[str, Path]) -> None:
    program = """if True:
        import sys
        from generalist.data.formats.detect import open_episodes
        from generalist.data.formats.episodes import Opening
        for folder in sys.argv[1:]:
            data = open_episodes(folder, Opening())
            data.read(0, list(data.fields)).columns["front"].decode()
        assert not {"torch", "tensorflow", "datasets", "pandas"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-W", "error", "-c", program, *map(str, whole.values())], check=True)


def test_missing_package(whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    data = open_episodes(whole["v3"], Opening())
    data.read(0, ["action"])
    with pytest.raises(ImportError, match=r"pip install 'generalist\[formats\]'"):
        data.read(0, ["action", "front"])
