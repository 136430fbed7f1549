"""LeRobot's data sets: those that LeRobot itself has written, and others that differ in every way they may, or may not."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from generalist.data.formats.columns import decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, Opening
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.lerobot_info import CHECKED
from generalist.data.formats.lerobot_v2 import LeRobotV2
from generalist.data.formats.lerobot_v3 import LeRobotV3

FIXTURES = Path(__file__).parents[2] / "fixtures" / "formats"
FPS = 20
LENGTHS = (5, 9, 4, 7)
TASKS = {3: "push the block", 5: "lift the block"}
"""Numbers that are not those of the rows: LeRobot's own reader would mix the two up."""
V2_PATHS = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
V3_PATHS = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
FEATURES: dict[str, Any] = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "z"]}},
    "observation.grid": {"dtype": "int16", "shape": [2, 2], "names": None},
    "observation.image": {"dtype": "image", "shape": [3, 4, 4], "names": ["channels", "height", "width"]},
    "front": {"dtype": "video", "shape": [32, 64, 3], "names": ["height", "width", "channels"], "info": {}},
    "side": {"dtype": "video", "shape": [3, 32, 64], "names": ["height", "width", "channels"]},
    "depth": {"dtype": "video", "shape": [32, 64, 1], "names": None, "info": {"video.is_depth_map": True}},
    "old depth": {"dtype": "video", "shape": [32, 64, 3], "video_info": {"video.is_depth_map": True}},
    "sound": {"dtype": "audio", "shape": [2, 100], "names": None},
    "language_events": {"dtype": "language", "shape": [1], "names": None},
    "note": {"dtype": "string", "shape": [1], "names": None},
    "action": {"dtype": "float32", "shape": [1], "names": ["push"]},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    **{key: {"dtype": "int64", "shape": [1]} for key in ("frame_index", "episode_index", "index", "task_index")},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
}
CAMERAS = {"front": 0, "side": 1}

Rows = dict[str, list[Any]]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shown(camera: str, episode: int, step: int) -> int:
    """The number in an image."""
    return CAMERAS[camera] << 14 | episode << 8 | step


def rows(episode: int, length: int, start: int) -> Rows:
    """An episode's rows, whose values say which ones they are; `start` is the first one's number among all."""
    steps = range(length)
    return {
        "observation.state": [[episode, step, np.nan] for step in steps],
        "observation.grid": [[[episode, step], [step, -1]] for step in steps],
        "observation.image": [{"bytes": png(10 * episode + step), "path": f"frame_{step}.png"} for step in steps],
        "note": [f"{episode}.{step}" for step in steps],
        "action": [episode + step / 100 for step in steps],
        "next.done": [step == length - 1 for step in steps],
        "frame_index": list(steps),
        "episode_index": [episode] * length,
        "index": list(range(start, start + length)),
        "task_index": [3 if step < 2 else 5 for step in steps],
        "timestamp": [step / FPS for step in steps],
    }


TYPES = {
    "observation.state": pa.list_(pa.float32(), 3),
    "observation.grid": pa.list_(pa.list_(pa.int16())),
    "observation.image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    "note": pa.string(),
    "action": pa.float32(),
    "next.done": pa.bool_(),
    "timestamp": pa.float32(),
    **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), pa.int64()),
}


def table(content: Rows) -> pa.Table:
    return pa.table({key: pa.array(values, TYPES.get(key)) for key, values in content.items()})


@dataclasses.dataclass
class Written:
    """What is written to a folder; tests change it before."""

    folder: Path
    write_video: Callable[..., Path]
    coded: Callable[[int], np.ndarray]
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[Rows] = dataclasses.field(default_factory=list)
    lists: Rows = dataclasses.field(default_factory=dict)
    tasks: Any = None
    data_files: Sequence[Sequence[int]] = ((0, 1), (2,), (3,))
    """Episodes per file."""
    video_files: dict[str, Sequence[Sequence[int]]] = dataclasses.field(
        default_factory=lambda: {"front": ((0,), (1, 2, 3)), "side": ((0, 1, 2), (3,))}
    )
    row_groups: bool = True
    """One per episode, as LeRobot records; or one per file, as its script converts."""

    def __post_init__(self) -> None:
        starts = np.cumsum([0, *LENGTHS]).tolist()
        self.rows = [rows(episode, length, starts[episode]) for episode, length in enumerate(LENGTHS)]
        self.info = {"fps": FPS, "total_episodes": len(LENGTHS), "chunks_size": 3, "splits": {"train": "0:4"}}
        self.info["features"] = json.loads(json.dumps(FEATURES))
        self.lists = {
            "episode_index": list(range(len(LENGTHS))),
            "length": list(LENGTHS),
            "tasks": [list(TASKS.values())] * len(LENGTHS),
        }
        self.tasks = [{"task_index": index, "task": task} for index, task in TASKS.items()]

    def _json(self, name: str, content: Any) -> None:
        (self.folder / "meta").mkdir(parents=True, exist_ok=True)
        (self.folder / "meta" / name).write_text(json.dumps(content))

    def _lines(self, name: str, content: Sequence[Any]) -> None:
        (self.folder / "meta" / name).write_text("".join(json.dumps(one) + "\n" for one in content))

    def _images(self, camera: str, episodes: Sequence[int]) -> Iterator[np.ndarray]:
        for episode in episodes:
            yield from (self.coded(shown(camera, episode, step)) for step in range(LENGTHS[episode]))

    def _data(self, file: str, episodes: Sequence[int]) -> None:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = [table(self.rows[episode]) for episode in episodes]
        with pq.ParquetWriter(path, tables[0].schema, write_page_checksum=True) as writer:
            for one in tables if self.row_groups else [pa.concat_tables(tables)]:
                writer.write_table(one)

    def v2(self) -> Path:
        """Writes it as version 2.1."""
        self._json("info.json", {"codebase_version": "v2.1", **V2_PATHS, **self.info})
        keys = list(self.lists)
        self._lines(
            "episodes.jsonl", [dict(zip(keys, row, strict=True)) for row in zip(*self.lists.values(), strict=True)]
        )
        self._lines("tasks.jsonl", self.tasks)
        for episode in range(len(LENGTHS)):
            chunk = f"chunk-{episode // 3:03d}"
            self._data(f"data/{chunk}/episode_{episode:06d}.parquet", [episode])
            for camera in CAMERAS:
                file = self.folder / f"videos/{chunk}/{camera}/episode_{episode:06d}.mp4"
                self.write_video(file, self._images(camera, [episode]), fps=FPS)
        return self.folder

    def v3(self) -> Path:
        """Writes it as version 3.0. Files are numbered 0/0, 1/0, 2/0, ..."""
        self._json("info.json", {"codebase_version": "v3.0", **V3_PATHS, **self.info})
        stops = np.cumsum(LENGTHS).tolist()
        lists: Rows = {
            "dataset_from_index": [0, *stops[:-1]],
            "dataset_to_index": stops,
            **_files("data", self.data_files),
        }
        for number, episodes in enumerate(self.data_files):
            self._data(f"data/chunk-{number:03d}/file-000.parquet", episodes)
        for camera, files in self.video_files.items():
            lists |= _files(f"videos/{camera}", files) | _times(f"videos/{camera}", files)
            for number, episodes in enumerate(files):
                file = self.folder / f"videos/{camera}/chunk-{number:03d}/file-000.mp4"
                self.write_video(file, self._images(camera, episodes), fps=FPS)
        content = pa.table({**lists, **self.lists})
        for number, part in enumerate((content[:3], content[3:])):
            path = self.folder / f"meta/episodes/chunk-000/file-{number:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(part, path, write_page_checksum=True)
        named = pa.table({key: [task[key] for task in self.tasks] for key in ("task_index", "task")})
        pq.write_table(named.rename_columns(["task_index", "__index_level_0__"]), self.folder / "meta/tasks.parquet")
        return self.folder

    def version(self, name: str) -> Path:
        return self.v2() if name == "v2" else self.v3()


def _files(key: str, files: Sequence[Sequence[int]]) -> Rows:
    numbers = [number for number, episodes in enumerate(files) for _ in episodes]
    return {f"{key}/chunk_index": numbers, f"{key}/file_index": [0] * len(numbers)}


def _times(key: str, files: Sequence[Sequence[int]]) -> Rows:
    ends = [np.cumsum([LENGTHS[episode] for episode in episodes]) / FPS for episodes in files]
    starts = np.concatenate([[0, *end[:-1]] for end in ends])
    return {f"{key}/from_timestamp": starts.tolist(), f"{key}/to_timestamp": np.concatenate(ends).tolist()}


@pytest.fixture
def written(tmp_path: Path, write_video: Any, coded: Any) -> Written:
    return Written(tmp_path / "set", write_video, coded)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, write_video: Any, coded: Any) -> dict[str, Path]:
    """By version, a data set that nobody changes."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: Written(folder / name, write_video, coded).version(name) for name in ("v2", "v3")}


VERSIONS = pytest.mark.parametrize("version", ["v2", "v3"])


def check_episode(data: EpisodeSet, index: int, code: Callable[[np.ndarray], int], episode: int | None = None) -> None:
    """Whether all that is read of an episode is what was written."""
    episode = index if episode is None else episode
    found, length = data.read(index, list(data.fields)), LENGTHS[episode]
    steps, columns = np.arange(length), found.columns
    assert len(found) == length and set(columns) == set(data.fields)
    state = columns["observation.state"]
    assert isinstance(state, np.ndarray) and state.dtype == np.float32 and np.isnan(state[:, 2]).all()
    np.testing.assert_array_equal(state[:, :2], np.stack([np.full(length, episode), steps], 1))
    np.testing.assert_array_equal(columns["observation.grid"][:, 0, 1], steps)
    assert columns["observation.grid"].shape == (length, 2, 2) and columns["observation.grid"].dtype == np.int16
    np.testing.assert_array_equal(decode(columns["observation.image"])[:, 0, 0, 0], 10 * episode + steps)
    for camera in CAMERAS:
        images = columns[camera].decode()
        assert images.shape == (length, 32, 64, 3)
        assert list(map(code, images)) == [shown(camera, episode, step) for step in steps]
    assert columns["note"].tolist() == [f"{episode}.{step}" for step in steps]
    assert columns["next.done"].dtype == bool and columns["next.done"][:, 0].tolist() == [False] * (length - 1) + [True]
    assert columns["action"].shape == (length, 1)
    np.testing.assert_allclose(columns["action"][:, 0], episode + steps / 100, rtol=1e-6)
    assert columns["task"].tolist() == ["push the block"] * 2 + ["lift the block"] * (length - 2)
    assert columns["frame_index"].shape == (length, 1) and columns["frame_index"].dtype == np.int64
    assert columns["index"][0, 0] == sum(LENGTHS[:episode])


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
def test_every_value_of_every_episode(version: str, whole: dict[str, Path], code: Any) -> None:
    data = open_episodes(whole[version], Opening())
    assert data.format == {"v2": "LeRobot v2.1", "v3": "LeRobot v3.0"}[version]
    assert data.lengths.tolist() == list(LENGTHS) and data.lengths.dtype == np.int64 and data.rate == FPS
    for index in (2, 0, 3, 1, 1):
        check_episode(data, index, code)
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
def test_through_a_stored_index(version: str, whole: dict[str, Path], tmp_path: Path, code: Any) -> None:
    for _ in range(2):
        data = open_episodes(whole[version], Opening(index=tmp_path))
        check_episode(data, 3, code)
    assert len(list(tmp_path.iterdir())) == {"v2": 1, "v3": 2}[version]


@VERSIONS
def test_through_fsspec(version: str, whole: dict[str, Path], code: Any) -> None:
    from upath import UPath

    memory = UPath(f"memory://lerobot-{version}")
    for file in whole[version].rglob("*"):
        if file.is_file():
            (memory / file.relative_to(whole[version]).as_posix()).write_bytes(file.read_bytes())
    check_episode(open_episodes(memory, Opening()), 1, code)


def test_one_row_group_per_file(written: Written, code: Any) -> None:
    written.row_groups, written.data_files = False, ((0, 1, 2, 3),)
    data = open_episodes(written.v3(), Opening())
    for index in (3, 0, 1, 2):
        check_episode(data, index, code)


@VERSIONS
def test_episodes_listed_out_of_order_or_with_gaps(version: str, written: Written, code: Any) -> None:
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
def test_splits(version: str, written: Written, code: Any) -> None:
    written.info["splits"] = {"train": "0:3", "val": "3:4"}
    folder = written.version(version)
    assert open_episodes(folder, Opening()).lengths.tolist() == list(LENGTHS[:3])
    data = open_episodes(folder, Opening(split="val"))
    assert len(data) == 1
    check_episode(data, 0, code, episode=3)
    with pytest.raises(ValueError, match="has no split 'test': name one of train, val"):
        open_episodes(folder, Opening(split="test"))


def test_version_2_0(written: Written, code: Any) -> None:
    written.info |= {"codebase_version": "v2.0"}
    written.info["data_path"] = (
        "data/chunk-{episode_chunk:03d}/train-{episode_index:05d}-of-{total_episodes:05d}.parquet"
    )
    folder = written.v2()
    for file in (folder / "data").glob("*/*.parquet"):
        file.rename(file.with_name(f"train-{int(file.stem[-6:]):05d}-of-00004.parquet"))
    check_episode(open_episodes(folder, Opening()), 3, code)


def test_tasks_named_otherwise(written: Written, code: Any) -> None:
    folder = written.v3()
    file = folder / "meta" / "tasks.parquet"
    pq.write_table(pq.read_table(file).rename_columns(["task_index", "task"]), file)
    check_episode(open_episodes(folder, Opening()), 0, code)


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


# What is wrong with a data set.


@VERSIONS
@pytest.mark.parametrize(
    ("key", "values", "told"),
    [
        (
            "timestamp",
            {3: 0.2},
            r"in row {row3} timestamp is 0.2\d*, where 0.15 should be \(step 3 at 20 steps per second\)",
        ),
        ("timestamp", {0: float("nan")}, "in row {row0} timestamp is nan, where 0 should be"),
        ("timestamp", {1: None}, "'timestamp' has no value at position 1"),
        ("frame_index", {2: 3}, "in row {row2} frame_index is 3, where 2 should be"),
        ("episode_index", {4: 0}, "in row {row4} episode_index is 0, where 1 should be"),
        ("task_index", {5: 4}, "step 5 has the task_index 4, which is not among the tasks"),
        ("note", {5: None}, "'note' has no value at position 5"),
        ("observation.grid", {1: [[1, 2], [3]]}, "'observation.grid' has lists of other lengths than 2"),
        (
            "observation.grid",
            {1: [[1, 2]]},
            "'observation.grid' has lists of other lengths than 2, the first at position 1",
        ),
        ("observation.image", {1: {"bytes": None, "path": "../../x.png"}}, "image 1 of 'observation.image' .*outside"),
        (
            "observation.image",
            {1: {"bytes": None, "path": "frame_1.png"}},
            "image 1 of 'observation.image' can't be read",
        ),
    ],
)
def test_wrong_rows(version: str, key: str, values: dict[int, Any], told: str, written: Written, code: Any) -> None:
    for step, value in values.items():
        written.rows[1][key][step] = value
    data = open_episodes(written.version(version), Opening())
    first = 0 if version == "v2" else LENGTHS[0]
    told = told.format(**{f"row{step}": first + step for step in range(6)})
    with pytest.raises(BrokenRecord, match=r"data/\S+\.parquet, episode 1: .*" + told):
        data.read(1, list(data.fields))
    for index in (0, 2, 3):
        check_episode(data, index, code)


@VERSIONS
@pytest.mark.parametrize(
    ("feature", "told"),
    [
        ({"dtype": "float32", "shape": [4]}, "'observation.state' has lists of other lengths than 4"),
        (
            {"dtype": "float32", "shape": [3, 1]},
            "'observation.state' is stored as fixed_size_list.*, where a list of 1",
        ),
        ({"dtype": "int64", "shape": [3]}, "'observation.state' is stored as fixed_size_list.*, where int64 should be"),
        ({"dtype": "string", "shape": [1]}, "'observation.state' is stored as .*, where texts should be"),
        (
            {"dtype": "image", "shape": [4, 4, 3]},
            "'observation.state' is stored as .*, where a struct of bytes and path",
        ),
    ],
)
def test_other_types_than_described(version: str, feature: Any, told: str, written: Written) -> None:
    written.info["features"]["observation.state"] = feature
    data = open_episodes(written.version(version), Opening())
    with pytest.raises(BrokenRecord, match=f"episode 0: the field {told}"):
        data.read(0, ["observation.state"])


@VERSIONS
def test_missing_column_and_file(version: str, written: Written) -> None:
    written.info["features"]["more"] = {"dtype": "float32", "shape": [2]}
    data = open_episodes(written.version(version), Opening())
    with pytest.raises(BrokenRecord, match=r"\.parquet has 0 columns 'more', where one should be"):
        data.read(0, ["more"])
    files = len(data.files)
    next((written.folder / "data").glob("chunk-000/*0.parquet")).unlink()
    with pytest.raises(BrokenRecord, match=r"\.parquet can't be read \(.*No such file"):
        data.read(0, ["action"])
    assert len(data.files) == files - 1


@VERSIONS
@pytest.mark.parametrize(("length", "told"), [(8, "it goes on after row {last}, where it should end"), (10, ".*")])
def test_lengths_of_lists_and_rows_differ(version: str, length: int, told: str, written: Written) -> None:
    written.lists["length"][1] = length
    if version == "v3":
        start = LENGTHS[0]
        written.lists |= {"dataset_from_index": [0, start, start + 9, start + 13]}
        written.lists |= {"dataset_to_index": [start, start + length, start + 13, start + 20]}
    data = open_episodes(written.version(version), Opening())
    told = told.format(last=7 if version == "v2" else LENGTHS[0] + 7)
    with pytest.raises(BrokenRecord, match=told):
        data.read(1, ["action"])
    assert len(data.read(0, ["action"])) == LENGTHS[0]


def test_rows_of_another_file(written: Written) -> None:
    """One index for the data and a camera, as a reader of others had it, gives rows of other episodes."""
    written.lists |= {"data/chunk_index": [0, 1, 1, 1]}
    data = open_episodes(written.v3(), Opening())
    with pytest.raises(BrokenRecord, match="episode_index is 2, where 1 should be|has 4 rows, where 0 to 9 should be"):
        data.read(1, ["action"])


def test_episodes_of_version_3_that_contradict_themselves(written: Written, code: Any) -> None:
    stops = np.cumsum(LENGTHS).tolist()
    written.lists |= {"length": [5, 0, 4, 7], "dataset_to_index": [stops[0], stops[1], stops[2] + 3, stops[3]]}
    data = open_episodes(written.v3(), Opening())
    assert data.lengths.tolist() == [5, 0, 0, 7] and set(data.broken()) == {1, 2}
    assert "episode 2 has the length 4, rows 14 to 21 and the file 1/0, which can't be" in data.broken()[2]
    with pytest.raises(BrokenRecord, match="episode 1 has the length 0"):
        data.read(1, ["action"])
    for index in (0, 3):
        check_episode(data, index, code)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("from_timestamp", -1.0, "is said to show it from -1.0 to"),
        ("from_timestamp", float("nan"), "is said to show it from nan to"),
        ("to_timestamp", float("inf"), r"is said to show it from 0.0 to inf s"),
        ("to_timestamp", 1.45, r"which are 29.0 frames, where it has 9 steps: frames of something else"),
        ("file_index", -1, "is said to show it"),
    ],
)
def test_footage_that_contradicts_itself(key: str, value: float, told: str, written: Written) -> None:
    times = _times("videos/front", written.video_files["front"]) | _files("videos/front", written.video_files["front"])
    changed = times[f"videos/front/{key}"]
    changed[1] = value
    written.lists[f"videos/front/{key}"] = changed
    data = open_episodes(written.v3(), Opening())
    with pytest.raises(BrokenRecord, match=f"episode 1: .*{told}"):
        data.read(1, ["front"])
    data.read(1, ["side"])
    data.read(2, ["front"])


def test_frames_of_discarded_takes(written: Written, write_video: Any, coded: Any) -> None:
    folder = written.v2()
    file = folder / "videos/chunk-000/front/episode_000001.mp4"
    write_video(file, [coded(shown("front", 1, step)) for step in range(15)], fps=FPS)
    data = open_episodes(folder, Opening())
    with pytest.raises(
        BrokenRecord, match="episode_000001.mp4, episode 1: the video has 15 frames, where the episode has 9"
    ):
        decode(data.read(1, ["front"]).columns["front"][:2])


@VERSIONS
def test_lost_and_surplus_episodes(version: str, written: Written) -> None:
    written.info["total_episodes"] = 6
    data = open_episodes(written.version(version), Opening())
    assert set(data.broken()) == {4, 5} and "counts 6 episodes, of which 2 are not listed" in data.broken()[5]
    for total in (3, 9, 10**15):
        written.info["total_episodes"] = total
        shutil.rmtree(written.folder)
        with pytest.raises(ValueError, match=f"total_episodes {total}, where 4 are listed"):
            open_episodes(written.version(version), Opening())


@VERSIONS
@pytest.mark.parametrize(("numbers", "told"), [([0, 1, 1, 3], "lists episode 1 twice"), ([], "lists none")])
def test_episodes_listed_wrongly(
    version: str, numbers: list[int], told: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole[version], folder)
    if version == "v2":
        lines = [json.dumps({"episode_index": number, "length": LENGTHS[number]}) + "\n" for number in numbers]
        (folder / "meta/episodes.jsonl").write_text("".join(lines))
    else:
        (folder / "meta/episodes/chunk-000/file-001.parquet").unlink()
        file = folder / "meta/episodes/chunk-000/file-000.parquet"
        content = (
            pq.read_table(file)[: len(numbers)] if not numbers else pa.concat_tables([pq.read_table(file)] * 2)[:4]
        )
        told = told.replace("episode 1", "episode 0")
        pq.write_table(content, file)
    with pytest.raises(ValueError, match=told):
        open_episodes(folder, Opening())


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[1]", "[" * 100_000, "9" * 5000, '{"episode_index": 1}', '{"episode_index": true, "length": 3}'),
        *(f'{{"episode_index": 1, "length": {length}}}' for length in ("-3", "2.5", "NaN", "1e3", "null", "9" * 20)),
    ],
)
def test_lines_of_version_2(line: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole["v2"], folder)
    with (folder / "meta/episodes.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"episodes.jsonl, line 5 .*copy it again"):
        open_episodes(folder, Opening())


@VERSIONS
@pytest.mark.parametrize("name", ["tasks", "episodes"])
def test_missing_descriptions(version: str, name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole[version], folder)
    for file in list((folder / "meta").glob(f"{name}*")):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    with pytest.raises((FileNotFoundError, ValueError), match="tasks|episodes|codebase_version 'v3.0'"):
        open_episodes(folder, Opening())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"codebase_version": "v1.6"},
            r"codebase_version 'v1.6', where .* read as v3.0: convert it .*convert_dataset_v1_to_v2",
        ),
        ({"codebase_version": "v4.0"}, "codebase_version 'v4.0'"),
        ({"codebase_version": "v2.1"}, "codebase_version 'v2.1'"),
        ({"codebase_version": None}, "codebase_version None"),
        ({"codebase_version": ["v3.0"]}, "codebase_version"),
        ({"fps": 0}, "'fps' must be a number above 0, got 0"),
        ({"fps": True}, "'fps' must be a number"),
        ({"fps": "20"}, "'fps' must be a number"),
        ({"fps": float("nan")}, "'fps' must be a number"),
        ({"fps": float("inf")}, "'fps' must be a number"),
        ({"total_episodes": None}, "'total_episodes' must be a whole number"),
        ({"chunks_size": 0}, "'chunks_size' must be a whole number from 1, got 0"),
        ({"data_path": None}, "'data_path' must be a path"),
        ({"data_path": "{chunk_index.__class__}/{file_index}"}, "'data_path' must be a path"),
        ({"data_path": "{chunk_index!r}/{file_index}"}, "'data_path' must be a path"),
        ({"data_path": "{chunk_index:9999999d}"}, "'data_path' must be a path"),
        ({"data_path": "{0}"}, "nothing in braces but {chunk_index}"),
        ({"data_path": "{episode_index:06d}"}, "nothing in braces but {chunk_index}, {file_index}, {video_key}"),
        ({"video_path": "{video_key:03d}.mp4"}, "nothing in braces but"),
        ({"video_path": None}, "'video_path' must be a path"),
        ({"splits": ["train"]}, "'splits' must be an object"),
        ({"splits": {"train": "0-3"}}, "'splits.train' must be a range of episodes such as '0:50', got '0-3'"),
        ({"features": None}, "'features' must be an object"),
        ({"features": {}}, "'features.episode_index' must be a number per frame"),
    ],
)
def test_wrong_descriptions(change: Any, told: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole["v3"], folder)
    file = folder / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"{file}.* {told}"):
        open_episodes(folder, Opening())


@pytest.mark.parametrize(
    "path", ["../{chunk_index}.parquet", "/etc/{chunk_index}", "s3://bucket/{chunk_index}", "a\\{chunk_index}"]
)
@pytest.mark.parametrize("key", ["data_path", "video_path"])
def test_paths_that_lead_out_of_the_folder(key: str, path: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole["v3"], folder)
    file = folder / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: path}))
    with pytest.raises(ValueError, match=f"{file} names .*, which is outside"):
        open_episodes(folder, Opening())


@pytest.mark.parametrize(
    "feature",
    [
        *(None, [], {}, {"dtype": "float32"}, {"dtype": "float32", "shape": 3}, {"dtype": "float32", "shape": [0]}),
        *({"dtype": "float32", "shape": [-1]}, {"dtype": "float32", "shape": [2.5]}, {"dtype": "object", "shape": [1]}),
        *(
            {"dtype": ["float32"], "shape": [1]},
            {"dtype": "float32", "shape": [2**30, 2**30]},
            {"dtype": "V8", "shape": [1]},
        ),
        *(
            {"dtype": "video", "shape": [32, 64]},
            {"dtype": "video", "shape": [32, 64, 4]},
            {"dtype": "string", "shape": [2]},
        ),
        *({"dtype": "image", "shape": [10**6, 10**6, 3]}, {"dtype": "complex64", "shape": [1]}),
    ],
)
def test_features_that_are_not_read(feature: Any, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole["v2"], folder)
    file = folder / "meta" / "info.json"
    content = json.loads(file.read_text())
    content["features"]["odd"] = feature
    file.write_text(json.dumps(content))
    data = open_episodes(folder, Opening())
    assert "odd" not in data.fields and data.unread["odd"]
    assert len(data.read(0, ["action"])) == LENGTHS[0]


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    "../x",
    "\0",
    "{}",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
]


def replaced(content: Any, odd: Any) -> Iterator[Any]:
    """A description with one of its values replaced, for each."""
    yield odd
    for key, value in (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    ):
        for other in replaced(value, odd):
            changed = content.copy()
            changed[key] = other
            yield changed


@VERSIONS
def test_odd_values_anywhere_in_a_description(version: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder, refused, opened = tmp_path / "set", 0, 0
    shutil.copytree(whole[version], folder)
    file = folder / "meta" / "info.json"
    content = json.loads(file.read_text())
    keep = ("front", "note", "observation.grid", *CHECKED)
    content["features"] = {key: content["features"][key] for key in keep}
    for odd in ODD:
        for changed in replaced(content, odd):
            file.write_text(json.dumps(changed))
            try:
                data = open_episodes(folder, Opening(index=tmp_path / "index"))
                data.where(0)
                data.read(0, list(data.fields))
                opened += 1
            except ValueError:
                refused += 1
    assert opened > 100 and refused > 100


@VERSIONS
def test_damaged_files(version: str, whole: dict[str, Path], tmp_path: Path) -> None:
    """Whatever bytes of whatever file are changed, cut off or added: an error that says so, or episodes of the right form; the
    same numbers if only rows were damaged, which have checksums."""
    rng, refused, folder = np.random.default_rng(0), 0, tmp_path / "set"
    shutil.copytree(whole[version], folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    keys = ["action", "observation.state", "observation.image", "note", "task"]
    data = open_episodes(folder, Opening(index=tmp_path / "index"))
    sound = [data.read(index, keys).columns for index in range(len(data))]
    for trial in range(100):
        file = files[trial % len(files)]
        content = file.read_bytes()
        file.write_bytes(damaged(content, rng))
        try:
            data = open_episodes(folder, Opening(index=tmp_path / "index"))
            for index in range(len(data)):
                episode = data.read(index, [key for key in [*keys, "front"] if key in data.fields])
                for key, column in episode.columns.items():
                    assert len(column) == len(episode)
                    if file.parent.parent.name == "data" and key != "front":
                        np.testing.assert_array_equal(column, sound[index][key])
                decode(episode.columns["front"][:1]) if "front" in episode.columns else None
        except (ValueError, FileNotFoundError):
            refused += 1
        file.write_bytes(content)
    assert refused > 30


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut off or added."""
    changed, position = bytearray(content), int(rng.integers(len(content)))
    kind = rng.integers(3)
    if kind == 0:
        return content[:position]
    if kind == 1:
        return content[:position] + bytes(rng.integers(0, 256, 5, np.uint8)) + content[position:]
    for place in rng.integers(0, len(content), 3):
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)
