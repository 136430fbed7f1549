"""Episodes as a LeRobot v3.0 data set, in two stages: parts with the steps and videos of some episodes; then, when it is known
which episodes can be read, files of rows with the numbers of episodes, frames and tasks.

    parts/00007/data.parquet          rows of steps, a row group per episode; the task as a text
    parts/00007/episodes.parquet      a row per episode: length, tasks, where its images are, statistics
    parts/00007/CAMERA/0.mp4          images

Dimension key: T steps of an episode, H height, W width, C channels.
"""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from generalist.data.convert.episode_rows import RowWriter
from generalist.data.convert.images import file_of, loaded
from generalist.data.convert.lerobot_statistics import ImageStatistics, Numbers, of_numbers, sampled_steps
from generalist.data.convert.naming import Kept
from generalist.data.convert.parts import Job, each_episode
from generalist.data.convert.source import Source, column_of, opened, text
from generalist.data.convert.video import encoded, video_writers
from generalist.data.convert.work import make_part
from generalist.data.formats.episodes import RawEpisode
from generalist.data.formats.faults import BrokenRecord

DATA, EPISODES, TASK = "data.parquet", "episodes.parquet", "task"
LARGEST_COLUMN = 2**31 - 1
"""Bytes of a column of an episode, a limit of Arrow's binary columns."""
MOST_DENOMINATOR = 1001
"""Of a rate: 30000/1001 is that of NTSC."""


def frame_rate(source: Source) -> Fraction:
    """Frames per second."""
    # A rate comes as a float, such as 29.97002997: video time bases need the fraction it stands for.
    return Fraction(source.rate or 0).limit_denominator(MOST_DENOMINATOR)


def cameras(source: Source) -> list[Kept]:
    """The fields that become videos."""
    in_videos = source.settings.to == "lerobot" and source.settings.images == "video"
    return [one for one in source.kept if one.field.kind == "image"] if in_videos else []


def write_part(job: Job) -> dict[str, Any]:
    """Makes a part. Returns what was noted of it."""
    source = opened(job.settings)

    def fill(folder: Path) -> dict[str, Any]:
        # The tasks get their numbers when all parts are known; until then rows have their texts.
        with _Writer(folder, source) as writer:
            noted = each_episode(job, source, writer.write)
        return {**noted, "tasks": [*writer.tasks]}

    return make_part(job.folder, fill)


class _Writer(contextlib.AbstractContextManager["_Writer"]):
    """Writes the files of a part."""

    def __init__(self, folder: Path, source: Source):
        import pyarrow.parquet as pq

        self._parquet, self._folder, self._source = pq, folder, source
        self._stack = contextlib.ExitStack()
        # Opened with the first episode, which tells the schema.
        self._rows: Any = None
        self._episodes = RowWriter(folder / EPISODES)
        self._cameras = cameras(source)
        self._videos = self._stack.enter_context(
            video_writers(folder, [one.key for one in self._cameras], frame_rate(source))
        )
        self.tasks: dict[str, None] = {}
        """In the order in which they came."""

    def __exit__(self, *error: object) -> None:
        self._episodes.close()
        if self._rows is not None:
            self._rows.close()
        self._stack.close()

    def write(self, raw: RawEpisode) -> None:
        """Writes an episode.

        Raises:
            BrokenRecord: it can't be read; nothing of it is written then.
        """
        import pyarrow as pa

        # Everything that may fail comes before the first write: a broken episode leaves no rows and no frames.
        told, statistics = self._source.instructions(raw), {}
        columns: dict[str, Any] = {}
        videos: dict[str, bytes] = {}
        for one in self._source.kept:
            if one in self._cameras:
                videos[one.key], statistics[one.key] = self._video(raw, one)
            else:
                columns[one.key], found = _column(raw, one)
                statistics |= {one.key: found} if found is not None else {}
        # (T,): from 0 in each episode, as LeRobot has it. A source's own times are left out as derived, or kept
        # as `source.timestamp`.
        times = (np.arange(len(raw)) / float(self._source.rate or 0)).astype(np.float32)
        own: dict[str, np.ndarray] = {"timestamp": times, "frame_index": np.arange(len(raw))}
        columns |= {key: pa.array(values) for key, values in own.items()}
        statistics |= {key: of_numbers(values) for key, values in own.items()}
        rows = pa.table({**columns, TASK: pa.array(told, pa.string())})
        episode = {"length": len(raw), "tasks": list(dict.fromkeys(told)), **flat_statistics(statistics)}
        for camera, content in videos.items():
            # The first write: all that may be broken has been read.
            number, first = self._videos[camera].append(content, len(raw))
            episode |= {f"videos/{camera}/file": number, f"videos/{camera}/first": first}
        self.tasks |= dict.fromkeys(episode["tasks"])
        self._episodes.write(episode)
        self._rows = self._rows or self._parquet.ParquetWriter(self._folder / DATA, rows.schema, compression="snappy")
        self._rows.write_table(rows, row_group_size=len(rows))  # a group of rows per episode

    def _video(self, raw: RawEpisode, one: Kept) -> tuple[bytes, Numbers]:
        """An episode's images as a video, with their statistics."""
        height, width, channels = (count or 0 for count in one.shape)
        found, wanted = ImageStatistics(channels), sampled_steps(len(raw))

        def images() -> Iterator[UInt8[np.ndarray, "H W C"]]:
            for step, (image, _) in enumerate(loaded(column_of(raw, one.field.key), one.shape)):
                # Statistics are computed from the source's pixels, not from the video's, which are close to them.
                if step in wanted:
                    found.add(image)
                yield image

        content = encoded(images(), self._source.settings.codec, frame_rate(self._source), (height, width))
        numbers = found.found()
        # The video has three channels, whatever the images had.
        return content, {
            key: value if key == "count" else np.broadcast_to(value, (3, 1, 1)) for key, value in numbers.items()
        }


def _column(raw: RawEpisode, one: Kept) -> tuple[Any, Numbers | None]:
    """A field as a column of T rows, and its statistics where it has numbers."""
    import pyarrow as pa

    values = column_of(raw, one.field.key)
    if one.field.kind == "image":
        return _images(raw, one)
    array = np.asarray(values)
    if one.field.level == "episode":
        # (1, ...) to (T, ...): LeRobot has no fields of whole episodes, so that each step repeats the value.
        array = np.repeat(array.reshape(1, *array.shape[1:]), len(raw), axis=0)
    if one.field.kind == "text":
        return pa.array([text(value) for value in array.reshape(-1)], pa.string()), None
    shape, dtype = (len(raw), *(count or 0 for count in one.shape)), np.dtype(one.field.dtype)
    # By name, since a file may have the other order of bytes.
    if array.dtype.name != dtype.name or array.size != np.prod(shape):
        raise BrokenRecord(f"{one.field.key!r} is {array.dtype} {array.shape}, where {dtype} {shape} should be")
    # () to (1,), as LeRobot has single numbers
    array = array.astype(dtype, copy=False).reshape(shape)
    return nested_column(array), of_numbers(array)


def _images(raw: RawEpisode, one: Kept) -> tuple[Any, Numbers]:
    import pyarrow as pa

    found, wanted = ImageStatistics(one.shape[2] or 0), sampled_steps(len(raw))
    files: list[dict[str, Any]] = []
    for step, image in enumerate(loaded(column_of(raw, one.field.key), one.shape)):
        if step in wanted:
            found.add(image[0])
        # As the `datasets` library stores its Image feature.
        files.append({"bytes": file_of(image), "path": None})
    # Arrow's plain binary columns have offsets of 32 bits.
    if sum(len(file["bytes"]) for file in files) > LARGEST_COLUMN:
        raise ValueError(
            f"an episode of {len(raw):,} steps has more than 2 GB of images in {one.key!r}: leave --images png out"
        )
    return pa.array(files, pa.struct({"bytes": pa.binary(), "path": pa.string()})), found.found()


def nested_column(values: Shaped[np.ndarray, "T ..."]) -> Any:
    """Numbers (T, ...) as Arrow has them: single ones (T, 1) plain, vectors in lists of a fixed size, more in nested lists."""
    import pyarrow as pa

    # All numbers one after the other, around which lists are laid without a copy.
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.shape[1:] == (1,):
        return column
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(column, values.shape[1])
    # From the innermost dimension outwards: (T * ... * D,) to T lists.
    for count in reversed(values.shape[1:]):
        offsets = pa.array(np.arange(0, len(column) + 1, count, dtype=np.int32))
        column = pa.ListArray.from_arrays(offsets, column)
    return column


def flat_statistics(statistics: dict[str, Numbers]) -> dict[str, Any]:
    """Statistics as columns of the episodes' table."""
    return {
        f"stats/{key}/{name}": values.tolist()
        for key, numbers in statistics.items()
        for name, values in numbers.items()
    }
