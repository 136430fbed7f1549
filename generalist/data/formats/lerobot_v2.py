"""LeRobot v2.0 and v2.1: files of their own for every episode.

meta/{info.json,tasks.jsonl,episodes.jsonl}
data/chunk-000/episode_000000.parquet
videos/chunk-000/CAMERA/episode_000000.mp4
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.json_files import is_count, json_rows
from generalist.data.formats.lerobot import Footage, LeRobot, Rows
from generalist.data.formats.lerobot_info import filled
from generalist.data.formats.places import Place


class LeRobotV2(LeRobot):
    """See the module."""

    format: ClassVar[str] = "LeRobot v2.1"
    versions: ClassVar[tuple[str, ...]] = ("v2.0", "v2.1")
    placeholders: ClassVar[tuple[str, ...]] = ("episode_chunk", "episode_index", "video_key", "total_episodes")

    @classmethod
    def matches(cls, place: Place) -> bool:
        """See `EpisodeSet.matches`."""
        # By the files rather than by `codebase_version`, so that a wrong version is an error with a remedy.
        return (place / "meta" / "info.json").exists() and not (place / "meta" / "episodes").exists()

    def _described_by(self) -> list[Place]:
        tasks = [self.place / "meta" / "tasks.jsonl"] if self._tasks else []
        return [self._info.file, *tasks, self.place / "meta" / "episodes.jsonl"]

    def _held_by(self) -> Iterable[Place]:
        for index in range(len(self)):
            yield self._rows(index).file
            yield from (self._footage(index, camera).file for camera in self._info.videos)

    def _stored_tasks(self) -> Iterable[tuple[Any, Any]]:
        for _, content in json_rows(self.place / "meta" / "tasks.jsonl"):
            yield content.get("task_index"), content.get("task")

    def _listed(self) -> tuple[Mapping[str, np.ndarray], Mapping[int, str]]:
        file = self.place / "meta" / "episodes.jsonl"
        (found,) = indexed([file], scan_episodes, kind="lerobot-v2", opening=self.opening)
        # An episode of no frames, as an aborted recording may leave, costs one record rather than the data set.
        empty = found["episode_index"][found["length"] < 1].tolist()
        return found, {number: f"{file}: episode {number} has no steps: record it again" for number in empty}

    def _rows(self, index: int) -> Rows:
        # A file per episode, so that its rows begin at 0.
        return Rows(file=self._file(self._info.data_path, index), start=0)

    def _footage(self, index: int, camera: str) -> Footage:
        file = self._file(self._info.video_path, index, video_key=camera)
        # The number of frames can be checked, as no other episode is in the video.
        return Footage(file=file, start=0.0, count=int(self.lengths[index]))

    def _file(self, path: str, index: int, video_key: str = "") -> Place:
        number = int(self._numbers[index])
        values: dict[str, int | str] = {
            "episode_index": number,
            # As LeRobot computes it (`get_episode_chunk`).
            "episode_chunk": number // self._info.chunks_size,
            "total_episodes": self._info.episodes,
            "video_key": video_key,
        }
        return filled(self._info, path, values)


def scan_episodes(file: Place) -> Arrays:
    """`episode_index` and `length` of the episodes that `meta/episodes.jsonl` lists, int64 (N,)."""
    found = []
    for row, content in json_rows(file):
        number, length = content.get("episode_index"), content.get("length")
        if not is_count(number) or not is_count(length):
            raise ValueError(
                f"{file}, line {row} has the episode_index {number!r:.40} and the length {length!r:.40}, where two whole numbers "
                "should be: copy it again"
            )
        found.append((number, length))
    # (N, 2), also if no episode is listed
    columns = np.array(found, np.int64).reshape(-1, 2)
    return {"episode_index": columns[:, 0], "length": columns[:, 1]}
