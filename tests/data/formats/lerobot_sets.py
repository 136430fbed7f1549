"""LeRobot's data sets as tests write them: whatever is read says which episode and step it is of."""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from generalist.data.formats.columns import decode
from generalist.data.formats.episodes import EpisodeSet
from tests.data.formats.coded_videos import code, coded, write_video

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
            yield from (coded(shown(camera, episode, step)) for step in range(LENGTHS[episode]))

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
                write_video(file, self._images(camera, [episode]), fps=FPS)
        return self.folder

    def v3(self) -> Path:
        """Writes it as version 3.0. Files are numbered 0/0, 1/0, 2/0, ..."""
        self._json("info.json", {"codebase_version": "v3.0", **V3_PATHS, **self.info})
        stops = np.cumsum(LENGTHS).tolist()
        lists: Rows = {
            "dataset_from_index": [0, *stops[:-1]],
            "dataset_to_index": stops,
            **file_numbers("data", self.data_files),
        }
        for number, episodes in enumerate(self.data_files):
            self._data(f"data/chunk-{number:03d}/file-000.parquet", episodes)
        for camera, files in self.video_files.items():
            lists |= file_numbers(f"videos/{camera}", files) | footage_times(f"videos/{camera}", files)
            for number, episodes in enumerate(files):
                file = self.folder / f"videos/{camera}/chunk-{number:03d}/file-000.mp4"
                write_video(file, self._images(camera, episodes), fps=FPS)
        content = pa.table({**lists, **self.lists})
        for number, part in enumerate((content[:3], content[3:])):
            path = self.folder / f"meta/episodes/chunk-000/file-{number:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(part, path, write_page_checksum=True)
        named = pa.table({key: [task[key] for task in self.tasks] for key in ("task_index", "task")})
        pq.write_table(named.rename_columns(["task_index", "__index_level_0__"]), self.folder / "meta/tasks.parquet")
        return self.folder

    def version(self, name: str) -> Path:
        """Writes it as version `v2` or `v3`."""
        return self.v2() if name == "v2" else self.v3()


def file_numbers(key: str, files: Sequence[Sequence[int]]) -> Rows:
    """In which file each episode is."""
    numbers = [number for number, episodes in enumerate(files) for _ in episodes]
    return {f"{key}/chunk_index": numbers, f"{key}/file_index": [0] * len(numbers)}


def footage_times(key: str, files: Sequence[Sequence[int]]) -> Rows:
    """From when to when each episode is shown."""
    ends = [np.cumsum([LENGTHS[episode] for episode in episodes]) / FPS for episodes in files]
    starts = np.concatenate([[0, *end[:-1]] for end in ends])
    return {f"{key}/from_timestamp": starts.tolist(), f"{key}/to_timestamp": np.concatenate(ends).tolist()}


VERSIONS = pytest.mark.parametrize("version", ["v2", "v3"])


def check_episode(data: EpisodeSet, index: int, episode: int | None = None) -> None:
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
