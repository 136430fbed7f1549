"""The second stage of a LeRobot data set: files of rows below the size limit, the descriptions in `meta`, and the videos' places.

    TARGET/meta/{info.json,stats.json,tasks.parquet}
    TARGET/meta/episodes/chunk-000/file-000.parquet
    TARGET/data/chunk-000/file-000.parquet
    TARGET/videos/CAMERA/chunk-000/file-000.mp4

Dimension key: N episodes.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from generalist.data.convert.episode_rows import RowWriter, read_rows
from generalist.data.convert.lerobot import DATA, EPISODES, TASK, cameras, flat_statistics
from generalist.data.convert.lerobot_info import CHUNK, DATA_PATH, EPISODES_PATH, VIDEO_PATH, info
from generalist.data.convert.lerobot_statistics import Numbers, Whole, of_numbers
from generalist.data.convert.source import Source
from generalist.data.convert.work import make_part, place_file
from generalist.system.files import write_json

LARGEST = 100 * 2**20
"""Bytes of a file of rows, LeRobot's limit."""
TASKS = "tasks.json"
PLACED = ("episode_index", "index", "task_index")
"""Columns that are known when all parts are."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some episodes of a part that go into one file."""

    part: int
    start: int
    """Group of rows in the part's file, which is the number of an episode in the part."""
    stop: int


@dataclasses.dataclass(frozen=True)
class FileJob:
    """A file of rows that is to be made."""

    work: Path
    number: int
    pieces: tuple[Piece, ...]
    episode: int
    """Number of its first episode."""
    index: int
    """Number of its first frame."""

    def __str__(self) -> str:
        return f"data file {self.number} of the conversion"

    @property
    def folder(self) -> Path:
        """Where it is made."""
        return self.work / "files" / f"{self.number:05d}"


def file_jobs(work: Path, parts: Sequence[dict[str, Any]]) -> list[FileJob]:
    """The files of rows, each as large as it may be. The tasks of all parts are noted in `tasks.json`."""
    write_json(work / TASKS, list(dict.fromkeys(task for part in parts for task in part["tasks"])))
    jobs: list[FileJob] = []
    pieces: list[Piece] = []
    # Bytes of the file so far, numbers of the next episode and frame, and those that the file begins with.
    held, episode, index, begun = 0, 0, 0, (0, 0)
    for number, part in enumerate(parts):
        for place, size in enumerate(_row_group_sizes(work, number, part)):
            # An episode is never divided; one that is larger than the limit has a file of its own.
            if pieces and held + size > LARGEST:
                jobs.append(FileJob(work, len(jobs), tuple(pieces), *begun))
                pieces, held, begun = [], 0, (episode, index)
            # Neighbours in a part are one piece, whose part file is opened once.
            if pieces and pieces[-1].part == number:
                pieces[-1] = dataclasses.replace(pieces[-1], stop=place + 1)
            else:
                pieces.append(Piece(number, place, place + 1))
            held, episode, index = held + size, episode + 1, index + part["lengths"][place]
    return [*jobs, FileJob(work, len(jobs), tuple(pieces), *begun)] if pieces else jobs


def _row_group_sizes(work: Path, number: int, part: dict[str, Any]) -> list[int]:
    """Compressed bytes of each episode's rows."""
    import pyarrow.parquet as pq

    if not part["episodes"]:
        return []
    # An episode is a row group (see `lerobot._Writer.write`).
    metadata = pq.read_metadata(_part(work, number) / DATA)
    groups = (metadata.row_group(place) for place in range(metadata.num_row_groups))
    return [sum(group.column(place).total_compressed_size for place in range(group.num_columns)) for group in groups]


def _part(work: Path, number: int) -> Path:
    return work / "parts" / f"{number:05d}"


@functools.lru_cache(maxsize=1)
def _tasks(path: Path) -> list[str]:
    return json.loads(path.read_text(encoding="utf-8"))


def write_file(job: FileJob) -> dict[str, Any]:
    """Makes a file of rows. Returns what was noted of it: `episodes`, how many, and the statistics of their numbering."""
    return make_part(job.folder, lambda folder: _fill(job, folder))


def _fill(job: FileJob, folder: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tasks = pa.array(_tasks(job.work / TASKS), pa.string())
    writer, episode, index, statistics = None, job.episode, job.index, RowWriter(folder / EPISODES)
    try:
        for rows in _episodes(job):
            named = rows.column(TASK).combine_chunks()
            placed = {
                "episode_index": np.full(len(rows), episode),
                "index": np.arange(index, index + len(rows)),
                # The place in the list of all tasks; each is in it, since the list was made of all parts.
                "task_index": pa.compute.index_in(named, tasks).to_numpy().astype(np.int64),
            }
            # LeRobot keeps a step's task by its number alone.
            rows = rows.drop_columns([TASK])
            for key in PLACED:
                rows = rows.append_column(key, pa.array(placed[key], pa.int64()))
            writer = writer or pq.ParquetWriter(folder / DATA, rows.schema, compression="snappy")
            # Again a row group per episode, so that a reader decodes no other rows for it.
            writer.write_table(rows, row_group_size=len(rows))
            statistics.write(flat_statistics({key: of_numbers(placed[key]) for key in PLACED}))
            episode, index = episode + 1, index + len(rows)
    finally:
        statistics.close()
        if writer is not None:
            writer.close()
    return {"episodes": episode - job.episode}


def _episodes(job: FileJob) -> Iterator[Any]:
    """The rows of each episode of a file."""
    import pyarrow.compute  # noqa: F401 - pa.compute
    import pyarrow.parquet as pq

    for piece in job.pieces:
        with pq.ParquetFile(_part(job.work, piece.part) / DATA) as file:
            for group in range(piece.start, piece.stop):
                yield file.read_row_group(group)


def assemble(source: Source, work: Path, parts: Sequence[dict[str, Any]], jobs: Sequence[FileJob]) -> None:
    """Puts all files into the result and describes them."""
    result = work / "result"
    for job in jobs:
        place_file(job.folder / DATA, result / DATA_PATH.format(**_numbers(job.number)))
    # Videos keep their files, which are only numbered through; rows were merged into larger files.
    before = _place_videos(source, work, parts)
    whole = _write_episodes(source, work, parts, jobs, before)
    write_json(result / "meta" / "stats.json", {key: _plain(one.numbers) for key, one in whole.items()})
    tasks = _tasks(work / TASKS)
    _write_tasks(result / "meta" / "tasks.parquet", tasks)
    episodes, frames = sum(len(part["episodes"]) for part in parts), sum(sum(part["lengths"]) for part in parts)
    write_json(result / "meta" / "info.json", info(source, episodes=episodes, frames=frames, tasks=len(tasks)))


def _numbers(number: int) -> dict[str, int]:
    return {"chunk_index": number // CHUNK, "file_index": number % CHUNK}


def _place_videos(source: Source, work: Path, parts: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Puts the videos into the result; returns by camera how many files the parts before each part have."""
    before: dict[str, list[int]] = {}
    for camera in (one.key for one in cameras(source)):
        counts = [sum(name.startswith(f"{camera}/") for name in part["files"]) for part in parts]
        before[camera] = [0, *itertools.accumulate(counts)]
        for number, count in enumerate(counts):
            for place in range(count):
                path = VIDEO_PATH.format(video_key=camera, **_numbers(before[camera][number] + place))
                place_file(_part(work, number) / camera / f"{place}.mp4", work / "result" / path)
    return before


def _write_episodes(
    source: Source,
    work: Path,
    parts: Sequence[dict[str, Any]],
    jobs: Sequence[FileJob],
    before: dict[str, list[int]],
) -> dict[str, Whole]:
    """Writes `meta/episodes`; returns the statistics of the whole."""
    placed = _placed(work, jobs)
    whole: dict[str, Whole] = {}
    number, episode, index = 0, 0, 0
    writer = RowWriter(work / "result" / EPISODES_PATH.format(**_numbers(number)))
    try:
        for part_number, part in enumerate(parts):
            if not part["episodes"]:
                continue
            for stored in read_rows(_part(work, part_number) / EPISODES):
                # A file is closed once it has passed the limit, by no more than a group of rows.
                if writer.size > LARGEST:
                    writer.close()
                    number += 1
                    writer = RowWriter(work / "result" / EPISODES_PATH.format(**_numbers(number)))
                # Both streams have the episodes in the same order: the parts' own rows, and those of the second
                # stage.
                row = _episode(source, stored, next(placed), episode, index, part_number, before, number)
                writer.write(row)
                _add(whole, row)
                episode, index = episode + 1, index + row["length"]
    finally:
        writer.close()
    return whole


def _placed(work: Path, jobs: Sequence[FileJob]) -> Iterator[dict[str, Any]]:
    """Of each episode the file its rows are in, and the statistics of its numbering."""
    for job in jobs:
        numbers = _numbers(job.number)
        for row in read_rows(job.folder / EPISODES):
            yield {f"data/{key}": value for key, value in numbers.items()} | row


def _episode(
    source: Source,
    row: dict[str, Any],
    placed: dict[str, Any],
    episode: int,
    index: int,
    part: int,
    before: dict[str, list[int]],
    file: int,
) -> dict[str, Any]:
    """A row of `meta/episodes`."""
    found = {"episode_index": episode, "tasks": row["tasks"], "length": row["length"]}
    found |= {key: value for key, value in placed.items() if key.startswith("data/")}
    found |= {"dataset_from_index": index, "dataset_to_index": index + row["length"]}
    rate = float(source.rate or 0)
    for camera, counts in before.items():
        first = row[f"videos/{camera}/first"]
        numbers = _numbers(counts[part] + row[f"videos/{camera}/file"])
        found |= {f"videos/{camera}/{key}": value for key, value in numbers.items()}
        # Frames of a video are one period apart from its beginning on, so that the frame's number is its time.
        found[f"videos/{camera}/from_timestamp"] = first / rate
        found[f"videos/{camera}/to_timestamp"] = (first + row["length"]) / rate
    found |= {key: value for key, value in (row | placed).items() if key.startswith("stats/")}
    # LeRobot also notes in which file of `meta/episodes` the row itself is.
    return found | {f"meta/episodes/{key}": value for key, value in _numbers(file).items()}


def _add(whole: dict[str, Whole], row: dict[str, Any]) -> None:
    """Adds an episode's statistics to those of the whole."""
    features: dict[str, Numbers] = {}
    for key, value in row.items():
        if key.startswith("stats/"):
            # From the right: the statistic is the last part.
            feature, _, name = key.removeprefix("stats/").rpartition("/")
            features.setdefault(feature, {})[name] = np.array(value)
    for feature, numbers in features.items():
        whole.setdefault(feature, Whole()).add(numbers)


def _plain(numbers: Numbers | None) -> dict[str, Any]:
    return {name: values.tolist() for name, values in (numbers or {}).items()}


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """The tasks as pandas writes them: their texts are the index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # What pandas reads from the schema's metadata: which column is the index.
    described = {
        "index_columns": [TASK],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
            for name, kind, stored in (("task_index", "int64", "int64"), (TASK, "unicode", "object"))
        ],
    }
    table = pa.table({"task_index": pa.array(np.arange(len(tasks))), TASK: pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), path)
