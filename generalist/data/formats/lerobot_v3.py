"""LeRobot v3.0: files of some 100 MB with many episodes in each. An episode's rows and each camera's images are in files that are
numbered independently.

    meta/{info.json,tasks.parquet}
    meta/episodes/chunk-000/file-000.parquet      an episode per row: its files, its rows, and its time in each video
    data/chunk-000/file-000.parquet
    videos/CAMERA/chunk-000/file-000.mp4
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from generalist.data.formats.episodes import Field
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.lerobot import Footage, LeRobot, Rows
from generalist.data.formats.lerobot_info import filled
from generalist.data.formats.parquet import TABLES, numbers, read_rows, readable, texts
from generalist.data.formats.places import Place
from generalist.data.formats.video import SURPLUS

COUNTS = {
    "number": "episode_index",
    "length": "length",
    "start": "dataset_from_index",
    "stop": "dataset_to_index",
    "data_chunk": "data/chunk_index",
    "data_file": "data/file_index",
}
"""Name in the index → column of the episodes' files."""
CAMERA_COUNTS = ("chunk_index", "file_index")
CAMERA_TIMES = ("from_timestamp", "to_timestamp")
LONGEST = 1e9
"""Seconds of a video."""


class LeRobotV3(LeRobot):
    """See the module."""

    format: ClassVar[str] = "LeRobot v3.0"
    versions: ClassVar[tuple[str, ...]] = ("v3.0",)
    placeholders: ClassVar[tuple[str, ...]] = ("chunk_index", "file_index", "video_key")

    @classmethod
    def matches(cls, place: Place) -> bool:
        """See `EpisodeSet.matches`."""
        return (place / "meta" / "info.json").exists() and (place / "meta" / "episodes").exists()

    def _described_by(self) -> list[Place]:
        tasks = [self.place / "meta" / "tasks.parquet"] if self._tasks else []
        return [self._info.file, *tasks, *self._lists()]

    def _lists(self) -> list[Place]:
        """The files that list episodes, in order."""
        return sorted((self.place / "meta" / "episodes").glob("*/*.parquet"), key=str)

    def _stored_tasks(self) -> Iterable[tuple[Any, Any]]:
        file = self.place / "meta" / "tasks.parquet"
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing, which names the tasks: copy it")
        with readable(file), TABLES.use(file) as table:
            # LeRobot writes the text as the index of a pandas.DataFrame, which has no name of its own there.
            named = "task" if "task" in table.names else "__index_level_0__"
            content = table.read(0, table.rows, ["task_index", named])
        indices = numbers(content["task_index"], Field(key="task_index", kind="number", dtype="int64")).tolist()
        return zip(indices, texts(content[named], Field(key=named, kind="text")).tolist(), strict=True)

    def _listed(self) -> tuple[Mapping[str, np.ndarray], Mapping[int, str]]:
        lists = self._lists()
        if not lists:
            raise FileNotFoundError(f"{self.place / 'meta' / 'episodes'} holds no Parquet files: copy it again")
        scan = functools.partial(scan_episodes, cameras=self._info.videos)
        scanned = indexed(lists, scan, kind=f"lerobot-v3 {self._info.videos}", opening=self.opening)
        found = {key: np.concatenate([arrays[key] for arrays in scanned]) for key in scanned[0]}
        wrong = (found["length"] < 1) | (found["stop"] - found["start"] != found["length"])
        wrong |= np.min([found[key] for key in ("start", "data_chunk", "data_file")], axis=0) < 0
        found["row"] = _rows_in_files(found, ~wrong)
        reasons = {
            int(
                found["number"][index]
            ): f"{self.place / 'meta' / 'episodes'}: episode {found['number'][index]} has the length "
            f"{found['length'][index]}, rows {found['start'][index]} to {found['stop'][index]} and the file "
            f"{found['data_chunk'][index]}/{found['data_file'][index]}, which can't be: copy it again"
            for index in np.flatnonzero(wrong).tolist()
        }
        return found, reasons

    def _rows(self, index: int) -> Rows:
        chunk, number, row = (int(self._episodes[key][index]) for key in ("data_chunk", "data_file", "row"))
        file = filled(self._info, self._info.data_path, {"chunk_index": chunk, "file_index": number, "video_key": ""})
        return Rows(file=file, start=row)

    def _footage(self, index: int, camera: str) -> Footage:
        counts = {key: int(self._episodes[f"{camera}/{key}"][index]) for key in CAMERA_COUNTS}
        start, stop = (float(self._episodes[f"{camera}/{key}"][index]) for key in CAMERA_TIMES)
        file = filled(self._info, self._info.video_path, {**counts, "video_key": camera})
        length, rate = int(self.lengths[index]), self._info.rate
        if min(counts.values()) < 0 or not 0 <= start <= stop < LONGEST:
            raise BrokenRecord(f"{file} is said to show it from {start} to {stop} s: copy `meta` again")
        if abs((stop - start) * rate - length) > SURPLUS + 0.5:
            raise BrokenRecord(
                f"{file} is said to show it from {start:.3f} to {stop:.3f} s, which are {(stop - start) * rate:.1f} frames, "
                f"where it has {length} steps: frames of something else are among them; record it again"
            )
        return Footage(file=file, start=start)


def _rows_in_files(found: Mapping[str, np.ndarray], is_right: Bool[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """In which row of its file each episode begins; 0 for those that are wrong. `dataset_from_index` counts the rows of all
    files, and a file begins with the first of its episodes."""
    row, places = np.zeros_like(found["start"]), np.stack([found["data_chunk"], found["data_file"]])[:, is_right]
    _, file = np.unique(places, axis=1, return_inverse=True)
    start, file = found["start"][is_right], file.reshape(-1)
    first = np.full(len(start), np.iinfo(np.int64).max)
    np.minimum.at(first, file, start)
    row[is_right] = start - first[file]
    return row


def scan_episodes(file: Place, *, cameras: tuple[str, ...]) -> Arrays:
    """What a file of `meta/episodes` says of its episodes, (N,): int64, and float64 for times."""
    columns = dict(COUNTS)
    for camera in cameras:
        columns |= {f"{camera}/{key}": f"videos/{camera}/{key}" for key in (*CAMERA_COUNTS, *CAMERA_TIMES)}
    table = read_rows(file, 0, None, list(columns.values()))
    try:
        return {
            name: numbers(
                table[column],
                Field(key=column, kind="number", dtype="float64" if name.endswith(CAMERA_TIMES) else "int64"),
            )
            for name, column in columns.items()
        }
    except BrokenRecord as error:
        raise BrokenRecord(f"{file}: {error}: copy it again") from error
