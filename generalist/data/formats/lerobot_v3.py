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

START, STOP = "dataset_from_index", "dataset_to_index"
"""Columns of the files that list episodes, as the index has them."""
FILE = ("chunk_index", "file_index")
TIMES = ("from_timestamp", "to_timestamp")
"""The same, behind `data/` and `videos/CAMERA/`."""
# 30 years: more, or infinity, is a mistake, and would overflow a video's ticks.
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

    def _held_by(self) -> Iterable[Place]:
        cameras = [(self._info.video_path, f"videos/{camera}", camera) for camera in self._info.videos]
        for path, key, camera in [(self._info.data_path, "data", ""), *cameras]:
            # (2, N): chunk and file of each episode; most episodes share one.
            places = np.stack([self._episodes[f"{key}/{name}"][self.lengths > 0] for name in FILE])
            for chunk, number in np.unique(places, axis=1).T.tolist():
                yield self._file(path, chunk, number, camera)

    def _file(self, path: str, chunk: int, number: int, camera: str = "") -> Place:
        return filled(self._info, path, {"chunk_index": chunk, "file_index": number, "video_key": camera})

    def _lists(self) -> list[Place]:
        """The files that list episodes, in order."""
        # By name, which has leading zeros; episodes are sorted by their numbers later.
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
        # Known since the list is read, so that one damaged row costs its episode alone.
        is_wrong = (found["length"] < 1) | (found[STOP] - found[START] != found["length"])
        is_wrong |= np.min([found[key] for key in (START, "data/chunk_index", "data/file_index")], axis=0) < 0
        found["row"] = _rows_in_files(found, ~is_wrong)
        reasons = {}
        for index in np.flatnonzero(is_wrong).tolist():
            one = {key: values[index].item() for key, values in found.items()}
            reasons[one["episode_index"]] = (
                f"{self.place / 'meta' / 'episodes'}: episode {one['episode_index']} has the length {one['length']}, rows "
                f"{one[START]} to {one[STOP]} and the file {one['data/chunk_index']}/{one['data/file_index']}, which can't be: "
                "copy it again"
            )
        return found, reasons

    def _rows(self, index: int) -> Rows:
        chunk, number = (int(self._episodes[f"data/{key}"][index]) for key in FILE)
        return Rows(file=self._file(self._info.data_path, chunk, number), start=int(self._episodes["row"][index]))

    def _footage(self, index: int, camera: str) -> Footage:
        # Not those of the rows: a camera's files reach their limit of size at other episodes than the data's.
        chunk, number = (int(self._episodes[f"videos/{camera}/{key}"][index]) for key in FILE)
        start, stop = (float(self._episodes[f"videos/{camera}/{key}"][index]) for key in TIMES)
        file = self._file(self._info.video_path, chunk, number, camera)
        length, rate = int(self.lengths[index]), self._info.rate
        if min(chunk, number) < 0 or not 0 <= start <= stop < LONGEST:
            raise BrokenRecord(f"{file} is said to show it from {start} to {stop} s: copy `meta` again")
        # A discarded take whose frames stayed in the video shifts all that follow; half a frame more, since times
        # are rounded.
        if abs((stop - start) * rate - length) > SURPLUS + 0.5:
            raise BrokenRecord(
                f"{file} is said to show it from {start:.3f} to {stop:.3f} s, which are {(stop - start) * rate:.1f} frames, "
                f"where it has {length} steps: frames of something else are among them; record it again"
            )
        return Footage(file=file, start=start)


def _rows_in_files(found: Mapping[str, np.ndarray], is_right: Bool[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """In which row of its file each episode begins; 0 for those that are wrong. `dataset_from_index` counts the rows of all
    files, and a file begins with the first of its episodes."""
    # Nothing says in which row of its file an episode begins; it follows from the episodes that share the file.
    row, places = (
        np.zeros_like(found[START]),
        np.stack([found["data/chunk_index"], found["data/file_index"]])[:, is_right],
    )
    # (2, n) to (n,): a number per file
    _, file = np.unique(places, axis=1, return_inverse=True)
    start, file = found[START][is_right], file.reshape(-1)
    first = np.full(len(start), np.iinfo(np.int64).max)
    # The least `dataset_from_index` of each file.
    np.minimum.at(first, file, start)
    row[is_right] = start - first[file]
    return row


def scan_episodes(file: Place, *, cameras: tuple[str, ...]) -> Arrays:
    """What a file of `meta/episodes` says of its episodes, (N,): int64, and float64 for times."""
    counts = ["episode_index", "length", START, STOP, *(f"data/{key}" for key in FILE)]
    counts += [f"videos/{camera}/{key}" for camera in cameras for key in FILE]
    times = [f"videos/{camera}/{key}" for camera in cameras for key in TIMES]
    # Only these columns: the statistics beside them are by far the largest part of the table.
    table = read_rows(file, 0, None, [*counts, *times])
    try:
        return {
            key: numbers(table[key], Field(key=key, kind="number", dtype="float64" if key in times else "int64"))
            for key in [*counts, *times]
        }
    except BrokenRecord as error:
        raise BrokenRecord(f"{file}: {error}: copy it again") from error
