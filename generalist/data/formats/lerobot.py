"""LeRobot's data sets, read in place: rows in Parquet files, images in MP4 videos. What versions 2 and 3 have in common; they
differ in which file an episode's rows and images are in.

Fields are the features of `meta/info.json`, and `task`: the text that a step's `task_index` stands for. Depth maps, sounds and
annotations are not read (`unread`). A value with the shape (1,) keeps it. Images that are stored in Parquet files are read with
their episode; those of videos when they are decoded.

Every read checks that the rows are those of the episode: its number in `episode_index`, 0, 1, 2, ... in `frame_index`, and those
divided by the frame rate in `timestamp`.

Dimension key: N episodes, T steps of one.
"""

import abc
import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, Shaped

from generalist.data.formats.columns import Column
from generalist.data.formats.episodes import EpisodeSet, Field, Opening, RawEpisode
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.lerobot_info import CHECKED, TASK, read_info
from generalist.data.formats.parquet import TABLES, images, numbers, readable, texts
from generalist.data.formats.places import Place
from generalist.data.formats.video import VideoFrames, require_av

TOLERANCE = 0.25
"""How far a timestamp may be from frame_index / fps, as a share of the time between two frames. LeRobot itself allows 1e-4 s,
which float32 exceeds in long episodes."""
# All texts are kept in memory.
MOST_TASKS = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the steps of an episode are."""

    file: Place
    start: int
    """Number of the first row in the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footage:
    """Where the images of an episode are."""

    file: Place
    start: float
    """When the first one is shown, in seconds."""
    count: int | None = None
    """Frames of the video, where it has no other episode."""


class LeRobot(EpisodeSet):
    """See the module."""

    derived = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    versions: ClassVar[tuple[str, ...]]
    """Values of `codebase_version`."""
    placeholders: ClassVar[tuple[str, ...]]
    """In the paths of `meta/info.json`."""

    def __init__(self, place: Place, opening: Opening):
        super().__init__(place, opening)
        self._info = read_info(place, self.versions, self.placeholders)
        self.rate, self.fields, self.unread = self._info.rate, self._info.fields, self._info.unread
        # `task_index` is a feature like others: without it no step has a task.
        self._tasks = self._named_tasks() if TASK in self.fields else {}
        found, reasons = self._listed()
        # Lists may have any order, as after a merge; `splits` refer to the numbers.
        order = np.argsort(found["episode_index"], kind="stable")
        found = {key: values[order] for key, values in found.items()}
        self._check_numbers(found["episode_index"])
        # Without several splits all episodes are taken, whatever range the only one has.
        chosen, split = np.ones(len(order), bool), self._info.split(opening.split)
        if split is not None:
            chosen = (found["episode_index"] >= split.start) & (found["episode_index"] < split.stop)
        self._episodes = {key: values[chosen] for key, values in found.items()}
        self._numbers = self._episodes["episode_index"]
        self._reasons = {
            index: reasons[number] for index, number in enumerate(self._numbers.tolist()) if number in reasons
        }
        self.lengths = self._episodes["length"].astype(np.int64)
        # 0 steps, so that no window is drawn from them.
        self.lengths[list(self._reasons)] = 0
        self._lost = self._info.episodes - len(order)

    def _check_numbers(self, found: Int[np.ndarray, "N"]) -> None:
        """Whether the numbers of all episodes, in order, are those of a data set."""
        meta, twice = self.place / "meta", found[1:][np.diff(found) == 0]
        if not len(found) or found[0] < 0:
            raise ValueError(
                f"{meta} lists {'no episodes' if not len(found) else f'episode {found[0]}'}: copy it again"
            )
        if len(twice):
            raise ValueError(f"{meta} lists episode {twice[0]} twice: copy it again")
        # Some missing episodes are lost records, which `unreadable` may allow; half of them missing, or too many,
        # means that `meta` belongs to another data set.
        if not len(found) <= self._info.episodes <= 2 * len(found):
            raise ValueError(
                f"{self._info.file} has total_episodes {self._info.episodes}, where {len(found)} are listed beside it: "
                "copy the folder `meta` again, or correct the number"
            )

    def _named_tasks(self) -> dict[int, str]:
        """Texts by their `task_index`."""
        found: dict[int, str] = {}
        for number, (index, text) in enumerate(self._stored_tasks()):
            # A task with a wrong number would give episodes another instruction, which nothing else would notice.
            if isinstance(index, bool) or not isinstance(index, int) or not isinstance(text, str) or index in found:
                raise ValueError(
                    f"{self.place / 'meta'}: task {number} is {index!r:.40}, {text!r:.40}, where another number and a text "
                    "should be: copy the tasks again"
                )
            if number >= MOST_TASKS:
                raise ValueError(f"{self.place / 'meta'} has more than {MOST_TASKS:,} tasks: copy them again")
            found[index] = text
        return found

    @abc.abstractmethod
    def _stored_tasks(self) -> Iterable[tuple[Any, Any]]:
        """Pairs of task_index and text, not checked."""

    @abc.abstractmethod
    def _listed(self) -> tuple[Mapping[str, np.ndarray], Mapping[int, str]]:
        """Of all episodes, in any order, `episode_index` and `length`, (N,) of whole numbers, and what else the class wants to
        know of them, (N,); and by `episode_index`, why some are broken."""

    @abc.abstractmethod
    def _rows(self, index: int) -> Rows:
        """Where an episode's steps are."""

    @abc.abstractmethod
    def _footage(self, index: int, camera: str) -> Footage:
        """Where an episode's images are.

        Raises:
            BrokenRecord: what says so contradicts itself.
        """

    @abc.abstractmethod
    def _described_by(self) -> list[Place]:
        """The files of the folder `meta` that are read."""

    @abc.abstractmethod
    def _held_by(self) -> Iterable[Place]:
        """The files with rows and images of episodes, each once."""

    @property
    def files(self) -> list[Place]:
        """See `EpisodeSet.files`; without those that are missing."""
        return [file for file in [*self._described_by(), *self._held_by()] if file.exists()]

    def broken(self) -> dict[int, str]:
        """See `EpisodeSet.broken`."""
        lost = f"{self._info.file} counts {self._info.episodes} episodes, of which {self._lost} are not listed: copy them again"
        return self._reasons | dict.fromkeys(range(len(self), len(self) + self._lost), lost)

    def where(self, index: int) -> str:
        """See `EpisodeSet.where`."""
        return f"{self._rows(index).file}, episode {self._numbers[index]}"

    def read(self, index: int, keys: Collection[str]) -> RawEpisode:
        """See `EpisodeSet.read`.

        Raises:
            ImportError: a video is wanted and PyAV is not installed.
        """
        if index in self._reasons:
            raise BrokenRecord(self._reasons[index])
        # Asked for here rather than when the first window is decoded, perhaps in another process.
        if not set(self._info.videos).isdisjoint(keys):
            require_av()
        stored = {key for key in keys if key not in self._info.videos and key != TASK}
        # The columns that are checked are read in any case; they are a few bytes per step.
        stored |= {*CHECKED, *(["task_index"] if TASK in keys else [])}
        rows = self._rows(index)
        table, behind = self._table(rows, int(self.lengths[index]), sorted(stored))
        try:
            checked = {key: numbers(table[key], self.fields[key]).reshape(-1) for key in CHECKED}
            # The row behind the last one shows whether the episode is longer than its description says.
            following = numbers(behind, self.fields["episode_index"]).reshape(-1).tolist()
            self._check(checked, following, rows, index)
            # float32 in the files: sums with the video's start need the digits of float64.
            times = checked["timestamp"].astype(np.float64)
            return RawEpisode(columns={key: self._column(key, table, index, times) for key in keys})
        except BrokenRecord as error:
            raise BrokenRecord(f"{self.where(index)}: {error}") from error

    def _table(self, rows: Rows, length: int, keys: Collection[str]) -> tuple[Any, Any]:
        """The rows of an episode; and the `episode_index` of the row behind them, of none if there is no such row."""
        stop = rows.start + length
        with readable(rows.file), TABLES.use(rows.file) as table:
            # The row behind is in the same row group, and thus decoded anyway.
            if stop < table.rows and not table.is_first(stop):
                found = table.read(rows.start, stop + 1, keys)
                return found[:length], found["episode_index"][length:]
            # The next row group is not read for one value of each column.
            found = table.read(rows.start, stop, keys)
            return found, table.read(stop, min(stop + 1, table.rows), ["episode_index"])["episode_index"]

    def _check(self, checked: Mapping[str, np.ndarray], following: Collection[Any], rows: Rows, index: int) -> None:
        """Whether rows are those of an episode, all of them, and in order.

        Args:
            checked: (T,) by key.
            following: `episode_index` of the row behind them, if there is one.
        """
        length, number, rate = int(self.lengths[index]), int(self._numbers[index]), self._info.rate
        if number in following:
            raise BrokenRecord(
                f"it goes on after row {rows.start + length - 1}, where it should end: copy `meta` and `data` again"
            )
        steps = np.arange(length)
        # After episodes were deleted or sets merged, descriptions and rows may disagree. Without this check, an
        # episode would silently be that of another task.
        wanted = {"episode_index": np.full(length, number), "frame_index": steps, "timestamp": steps / rate}
        for key, values in wanted.items():
            allowed = TOLERANCE / rate if key == "timestamp" else 0
            # A value that is not a number is no near one either.
            wrong = np.flatnonzero(~(np.abs(checked[key] - values) <= allowed))
            if len(wrong):
                step = int(wrong[0])
                raise BrokenRecord(
                    f"in row {rows.start + step} {key} is {checked[key][step]}, where {values[step]:.10g} should be (step {step} "
                    f"at {rate:g} steps per second): copy `meta` and `data` again, or correct them"
                )

    def _column(self, key: str, table: Any, index: int, times: Float[np.ndarray, "T"]) -> Column:
        field: Field = self.fields[key]
        if key in self._info.videos:
            footage = self._footage(index, key)
            return VideoFrames(
                footage.file,
                footage.start + times,
                size=(field.shape[0] or 0, field.shape[1] or 0),
                period=1 / self._info.rate,
                what=f"episode {self._numbers[index]}",
                count=footage.count,
            )
        # Not a column of the files: made of `task_index`.
        if key == TASK:
            return self._task_texts(numbers(table["task_index"], self.fields["task_index"]).reshape(-1))
        if field.kind == "image":
            return images(table[key], field, self.place, self.where(index))
        return texts(table[key], field) if field.kind == "text" else numbers(table[key], field)

    def _task_texts(self, tasks: Int[np.ndarray, "T"]) -> Shaped[np.ndarray, "T"]:
        named = tasks.tolist()
        for step, task in enumerate(named):
            if task not in self._tasks:
                raise BrokenRecord(
                    f"step {step} has the task_index {task}, which is not among the tasks: copy them again"
                )
        return np.array([self._tasks[task] for task in named], object)
