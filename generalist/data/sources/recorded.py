"""Recorded episodes in a published format: RLDS, LeRobot, Minari, robomimic, D4RL, npz (docs/robot_data.md)."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import gymnasium as gym

from generalist.data.episodes import Episodes
from generalist.data.examples import Examples
from generalist.data.mapping import unmapped
from generalist.data.recorded import Dataset, Opened, RecordedEpisodes, check_dataset, opened
from generalist.data.recorded_task import SUITE, recorded_task
from generalist.data.source import REQUIRED, Reading, Say, Stored, register
from generalist.data.sources.control import ControlSource
from generalist.envs.task import Task

TOLD = 12  # fields that are not used, by name
TOLERANCE = 1e-5  # of actions at their bounds, which other tools have rounded


@register("recorded")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded(ControlSource):
    """Recorded episodes of a data set, read in place; takes no part without a path. No environment is needed."""

    weight: float = 0.1
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    path: str = ""
    """Folder or file of a data set: RLDS (TFRecord or ArrayRecord), LeRobot, Minari, robomimic, D4RL or npz; also gs:// and s3://;
    `required`: a preset leaves it to you."""
    split: str = "train"
    """Of data sets that have splits."""
    mapping: str = ""
    """YAML file that says which fields are observed and which is the action; empty: by the names that are in common use."""
    instruction: str = ""
    """Of episodes that carry none."""
    rate: float | None = None
    """Steps per second that are kept of what was recorded: the whole rate, a half, a third, ...; None: all steps."""
    chunk: int = 1
    """Recorded actions that the model predicts at once, from this step on."""
    environment: str = ""
    """Gymnasium's id of the environment that was recorded, `module:Id-v0` if a module registers it: it is then played and scored
    as well. Needs rewards."""
    heldout: float = 0.05
    """Share of the episodes that are not trained on, at least one: evaluation scores the model on them. 0: none."""
    unreadable: float = 0.05
    """Share of the episodes that may be broken: they are left out, counted and named; one more ends the run."""
    evaluation_episodes: int = 20
    """Held-out episodes that an evaluation scores at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes is not None:
            raise ValueError(
                f"data.recorded.episodes = {self.episodes}, but all episodes of a data set are taken: leave it out"
            )
        for name in ("heldout", "unreadable"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"data.recorded.{name} must be at least 0 and below 1, got {getattr(self, name)}")
        check_dataset(self.dataset)

    @property
    def dataset(self) -> Dataset:
        """Which data set, and how it is read."""
        return Dataset(
            path=self.path,
            split=self.split,
            mapping=self.mapping,
            instruction=self.instruction,
            rate=self.rate,
            chunk=self.chunk,
        )

    @property
    def takes_part(self) -> bool:
        """See `Source.takes_part`."""
        return self.weight > 0 and bool(self.path)

    @property
    def missing(self) -> str | None:
        """See `Source.missing`."""
        return "path FOLDER (recorded episodes, docs/robot_data.md)" if self.path == REQUIRED else None

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("control", "recorded") if self.environment else ("recorded",)

    def has_layout(self, layout: str) -> bool:
        """See `ControlSource.has_layout`."""
        return bool(self.path) and layout == f"{SUITE}/{self.dataset.name}"

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Opens the data set and indexes it; what is not used of it is named."""
        if not self.takes_part or self.path == REQUIRED:
            return
        found = opened(self.dataset)
        reader = self._reader(stored)
        say(
            f"{self.path}: {found.episodes.format}, {len(reader):,} episodes with {int(reader.lengths.sum()):,} steps to "
            f"train on, {len(self._reader(stored, held_out=True)):,} episodes held out"
        )
        named = ", ".join(
            f"{used or 'action'}: {key}" for used, key in {**found.mapping.observation, **found.mapping.action}.items()
        )
        say(f"  reads {named}; instruction: {found.mapping.instruction or repr(self.instruction)}")
        for task in self.task_list():
            _check_bounds(task, self.environment, found)
        if left := [*unmapped(found.episodes.fields, found.mapping), *found.episodes.unread]:
            more = f" and {len(left) - TOLD} more" if len(left) > TOLD else ""
            say(f"  not used: {', '.join(left[:TOLD])}{more} (data.{name}.mapping says what is)")

    def task_list(self) -> list[Task]:
        """See `Source.task_list`."""
        return [recorded_task(self.dataset, self.environment)]

    def recordings(self) -> list[tuple[Task, int]]:
        """None: everything is recorded."""
        return []

    def folder(self, task: Task, stored: Stored) -> Path:
        """The data set's own."""
        return Path(self.path)

    def episodes_of(self, task: Task, stored: Stored) -> Episodes:
        """The episodes that are trained on."""
        return self._reader(stored)

    def open_corrections(self, stored: Stored) -> list[tuple[Task, Episodes]]:
        """None: nothing plays."""
        return []

    def open_heldout(self, stored: Stored) -> RecordedEpisodes:
        """The episodes that are held out."""
        return self._reader(stored, held_out=True)

    def texts(self, stored: Stored) -> Iterator[str]:
        """The instructions of the whole data set."""
        found = opened(self.dataset)
        yield from found.statistics.instructions if found.mapping.instruction else [self.instruction]

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """Windows of the episodes that are trained on.

        Raises:
            ValueError: an instruction is so long that no window of its episode fits into a row.
        """
        self._check_instructions(stored, reading)
        return [self._windows(task, reader, reading) for task, reader in self.open_demonstrations(stored).items()]

    def _check_instructions(self, stored: Stored, reading: Reading) -> None:
        """Before training: else a run would stop when it comes to the episode."""
        steps = min(self.steps, int(self._reader(stored).lengths.min(initial=self.steps)))
        for task in self.task_list():
            layout = reading.layouts[task.layout]
            acted = layout.action_positions(hidden=self.hide_actions > 0) or 0
            window = steps * max(1, (layout.observation.tokens_per_step or 0) + acted)
            for text in self.texts(stored):
                size = len(reading.assembler.instruction(text).tokens)
                if size + window > reading.length:
                    raise ValueError(
                        f"{self.path}: the instruction {text!r:.60} has {size:,} positions, with which a window of {steps} steps "
                        f"({window:,}) exceeds a row of data.length = {reading.length:,}: raise that, or shorten the instruction"
                    )

    def _reader(self, stored: Stored, held_out: bool = False) -> RecordedEpisodes:
        key = (self.dataset, self.heldout, self.unreadable, held_out)
        if key not in stored.readers:
            stored.readers[key] = RecordedEpisodes(
                self.dataset, stored.cache, heldout=self.heldout, held_out=held_out, unreadable=self.unreadable
            )
        found = stored.readers[key]
        assert isinstance(found, RecordedEpisodes)
        return found


def _check_bounds(task: Task, environment: str, found: Opened) -> None:
    """Whether all recorded actions lie within the bounds of the environment's.

    Raises:
        ValueError: one does not.
    """
    if not environment:
        return  # the bounds are the data's own, and a chunk's have another shape
    action = task.make_spaces()[1]
    if not isinstance(action, gym.spaces.Box) or "" not in found.mapping.action:
        return
    numbers = found.statistics.fields[found.mapping.action[""]]
    low, high = action.low.reshape(-1), action.high.reshape(-1)
    if (numbers.low < low - TOLERANCE).any() or (numbers.high > high + TOLERANCE).any():
        raise ValueError(
            f"{task.name} has recorded actions from {numbers.low.min():g} to {numbers.high.max():g}, but its environment takes "
            f"{low.min():g} to {high.max():g}: leave out the environment, or convert the actions"
        )
