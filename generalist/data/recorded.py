"""Recorded episodes in a published format, as training and evaluation read them: mapped fields, spaces, windows of steps. No
environment is needed.

Dimension key: N episodes, T steps as stored, S steps at the wanted rate, K actions of a chunk, R rows of a sample,
D numbers of an action.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from generalist.data.documents import tell
from generalist.data.episodes import BrokenEpisode, Episode, EpisodeCache, Episodes
from generalist.data.formats.columns import Column
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, Field, Opening
from generalist.data.formats.faults import BrokenRecord, Faults
from generalist.data.mapping import FieldMapping, default_mapping, read_mapping
from generalist.data.spread import spread
from generalist.data.statistics import Statistics, instruction_of, statistics
from generalist.system.cache import index_folder
from generalist.system.processes import cores

FEW = 1024
"""Whole numbers from 0 up to below this are choices; more of them are numbers."""
RATE_TOLERANCE = 0.02
"""Share by which a rate of steps may differ from a whole part of the stored one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Which data set, and how it is read; hashable, and the same in every process."""

    path: str
    """Folder or file; `gs://` and `s3://` too."""
    split: str = "train"
    mapping: str = ""
    """YAML file with what the fields mean; empty: by their known names."""
    instruction: str = ""
    """Of episodes that carry none."""
    rate: float | None = None
    """Steps per second; None: as stored."""
    chunk: int = 1
    """Stored actions that one action has."""

    @property
    def name(self) -> str:
        """Of its layout, by the folder's name without a version."""
        parts = [part for part in re.split(r"[/\\]+", self.path.rstrip("/\\")) if part not in ("", ".", "..")]
        # TFDS's folders end in a version, such as bridge/0.1.0.
        while len(parts) > 1 and re.fullmatch(r"[0-9]+(\.[0-9]+)+", parts[-1]):
            parts.pop()
        stem = re.sub(r"\.(hdf5|h5|npz)$", "", parts[-1] if parts else "data")
        return re.sub(r"[^\w.-]", "_", stem)


@dataclasses.dataclass(frozen=True)
class Opened:
    """An open data set with what its fields mean."""

    episodes: EpisodeSet
    mapping: FieldMapping
    every: int
    """Stored steps between two steps of an episode."""

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Of the whole data set."""
        return statistics(self.episodes, self.mapping.instruction, self.mapping.reward)


def opening(split: str = "train") -> Opening:
    """Where indices are kept, and by how many processes they are built.

    Raises:
        OSError: the folder can't be made.
    """
    return Opening(index=index_folder(), workers=cores(), split=split)


@functools.lru_cache(maxsize=32)
def opened(dataset: Dataset) -> Opened:
    """The data set, opened once per process.

    Raises:
        FileNotFoundError, ValueError, ImportError: it can't be read, or its mapping does not fit; see `open_episodes`.
    """
    episodes = open_episodes(dataset.path, opening(dataset.split))
    # Once per process: workers, readers and spaces share one open set and its index in memory.
    mapping = read_mapping(dataset.mapping, episodes) if dataset.mapping else default_mapping(episodes)
    return Opened(episodes, mapping, _every(dataset, episodes))


def _every(dataset: Dataset, episodes: EpisodeSet) -> int:
    if dataset.rate is None:
        return 1
    if episodes.rate is None:
        raise ValueError(
            f"rate = {dataset.rate:g}, but {dataset.path} does not say at which rate it was recorded: leave it out"
        )
    # Only whole parts of the rate: between two steps there is no image, and an action has no value.
    every = round(episodes.rate / dataset.rate)
    if every < 1 or abs(episodes.rate / every - dataset.rate) > RATE_TOLERANCE * dataset.rate:
        raise ValueError(
            f"rate = {dataset.rate:g}: {dataset.path} has {episodes.rate:g} steps per second, of which every 1st, 2nd, 3rd, ... "
            f"can be taken: {', '.join(f'{episodes.rate / part:g}' for part in range(1, 6))}, ..."
        )
    return every


def spaces(dataset: Dataset) -> tuple[gym.Space, gym.Space]:
    """What is observed, a Dict by the mapping's names, and what is done: one space, or a Dict of several."""
    found = opened(dataset)
    observed = {name: _space(found, key, 1) for name, key in found.mapping.observation.items()}
    acted = {name: _space(found, key, dataset.chunk) for name, key in found.mapping.action.items()}
    return gym.spaces.Dict(observed), acted[""] if "" in acted else gym.spaces.Dict(acted)


def _space(found: Opened, key: str, chunk: int) -> gym.Space:
    """The space of a field: images; choices, where all numbers are whole, at least 0 and few; else numbers without bounds."""
    field = found.episodes.fields[key]
    if field.kind == "image":
        return gym.spaces.Box(0, 255, _image_shape(found, field), np.uint8)
    dtype = np.dtype(field.dtype)
    shape = tuple(size or 0 for size in field.shape)
    several = (chunk, *shape) if chunk > 1 else shape
    # No bounds: data show only what has occurred, and a policy may need more.
    if dtype.kind == "f":
        return gym.spaces.Box(-np.inf, np.inf, several, dtype.type)
    if dtype.kind == "b":
        return gym.spaces.MultiBinary(several) if several else gym.spaces.Discrete(2)
    numbers = found.statistics.fields[key]
    # Gymnasium's Discrete and MultiDiscrete are stored as whole numbers without their bounds: the data say them.
    if numbers.low.min(initial=0) >= 0 and numbers.high.max(initial=0) < FEW:
        counts = numbers.high.astype(np.int64).reshape(shape) + 1
        # At least two, since a choice that was never made otherwise would have a vocabulary of one.
        choices = np.broadcast_to(np.maximum(counts, 2), several)
        return gym.spaces.MultiDiscrete(choices) if several else gym.spaces.Discrete(int(choices))
    # Counters, positions of encoders: numbers, not choices.
    limits = np.iinfo(dtype)
    return gym.spaces.Box(limits.min, limits.max, several, dtype.type)


def _image_shape(found: Opened, field: Field) -> tuple[int, ...]:
    """Height, width and channels; where the files leave them open, those of the first image that can be read."""
    if field.shape and None not in field.shape:
        return tuple(size or 0 for size in field.shape)
    # TFDS's Image(shape=(None, None, 3)), for one, tells it only by an image.
    for index in np.flatnonzero(found.episodes.lengths).tolist():
        try:
            episode = found.episodes.read(index, [field.key])
            return (
                Episode(instruction="", observations=episode.columns, actions={}, nbytes=0)
                .window(0, 1)[0][field.key]
                .shape[1:]
            )
        except BrokenRecord:
            continue
    raise ValueError(f"{found.episodes.place}: no image of {field.key!r} can be read")


class RecordedEpisodes(Episodes):
    """Episodes of a data set, some held out; those that can't be read are counted, named and left out.

    Args:
        dataset: which, and how it is read.
        cache: shared by all readers.
        heldout: share of the episodes that is held out, at least one of several.
        held_out: whether these are the held-out ones.
        unreadable: share of the episodes that may be left out.

    Raises:
        ValueError: it has no episode, or more than that share is known to be broken.
    """

    def __init__(
        self, dataset: Dataset, cache: EpisodeCache, *, heldout: float, held_out: bool = False, unreadable: float = 0.0
    ):
        super().__init__((dataset, held_out), cache)
        self.dataset, self._found = dataset, opened(dataset)
        episodes = self._found.episodes
        known = episodes.broken()
        self.faults = Faults(
            dataset.path, len(episodes) + sum(number >= len(episodes) for number in known), unreadable, tell
        )
        # Before training: too many broken episodes should stop a run at its start.
        for number, reason in known.items():
            self.faults.add(number, reason)
        whole = np.flatnonzero(episodes.lengths)  # an episode without a step teaches nothing
        if not len(whole):
            raise ValueError(f"{dataset.path} has no episode with a step in it: give another data set")
        # Spread over all: neighbours are often takes of the same scene, and files come task by task. At least one is held
        # out of several, and one is left to train on.
        count = min(max(1, round(heldout * len(whole))), len(whole) - 1) if heldout else 0
        kept_back = whole[spread(len(whole), count)]
        self.numbers = kept_back if held_out else np.setdiff1d(whole, kept_back)
        # Rounded up: step 0 always counts.
        self.lengths = -(-episodes.lengths[self.numbers] // self._found.every)

    def parse(self, index: int) -> Episode:
        """See `Episodes.parse`.

        Raises:
            BrokenEpisode: it can't be read, or a number is not finite.
        """
        episodes, mapping = self._found.episodes, self._found.mapping
        number = int(self.numbers[index])
        where = episodes.where(number)
        try:
            raw = episodes.read(number, mapping.keys)
            observations = {name: self._observed(raw.columns[key], key) for name, key in mapping.observation.items()}
            actions = {name: self._acted(raw.columns[key], key) for name, key in mapping.action.items()}
        except BrokenRecord as error:
            raise BrokenEpisode(index, str(error) if str(error).startswith(where) else f"{where}: {error}") from error
        # One text per episode: that of its first step, where steps have their own.
        told = instruction_of(raw, mapping.instruction) if mapping.instruction else ""
        return Episode(
            instruction=told or self.dataset.instruction,
            observations=observations,
            actions=actions,
            nbytes=raw.nbytes,
            where=where,
            number=index,
        )

    def __getitem__(self, index: int) -> Episode:
        """An episode; of one that can't be read the next that can."""
        # A row must be filled all the same; the next one is as good as any, and the same in every run.
        for step in range(len(self)):
            try:
                return super().__getitem__((index + step) % len(self))
            except BrokenEpisode as error:
                self.leave_out(error)
        raise ValueError(f"no episode of {self.dataset.path} can be read: give another data set")

    def leave_out(self, error: BrokenEpisode) -> None:
        """See `Episodes.leave_out`."""
        self.faults.add(int(self.numbers[error.number]), error)

    @property
    def rows(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """See `Episodes.rows`."""
        fields, mapping, chunk = self._found.statistics.fields, self._found.mapping, self.dataset.chunk
        seen = {name: _finite(fields[key].rows) for name, key in mapping.observation.items() if key in fields}
        done = {name: _finite(fields[key].rows) for name, key in mapping.action.items()}
        for kind, several, keys in (("observation", seen, mapping.observation), ("action", done, mapping.action)):
            if empty := [keys[name] for name, rows in several.items() if not len(rows)]:
                raise ValueError(
                    f"{self.dataset.path}: no step has finite numbers in {empty[0]!r}, which is the {kind}: mend it, or name "
                    f"other fields in a mapping's file"
                )
        if chunk > 1:
            # (R, ...) to (R, K, ...): the sample has single actions, which a chunk's codec sees K times.
            done = {name: np.repeat(rows[:, None], chunk, axis=1) for name, rows in done.items()}
        return seen, done

    def _observed(self, column: Column, key: str) -> Column:
        # One NaN in a batch makes the loss, and then all weights, NaN.
        _check_finite(column, key)
        # Frames stay undecoded: a column is cut by its steps.
        return column[:: self._found.every]

    def _acted(self, column: Column, key: str) -> Shaped[np.ndarray, "S ..."]:
        """Actions (S, ...), or chunks of them (S, K, ...): at the end of an episode its last action is repeated."""
        _check_finite(column, key)
        actions = np.asarray(column)
        # (S,): the steps that are kept
        first = np.arange(0, len(actions), self._found.every)
        if self.dataset.chunk == 1:
            return actions[first]
        following = first[:, None] + np.arange(self.dataset.chunk)  # (S, K)
        # (S, K, ...)
        return actions[np.minimum(following, len(actions) - 1)]


def _finite(rows: Shaped[np.ndarray, "R ..."]) -> Shaped[np.ndarray, "_ ..."]:
    """The rows all of whose numbers are finite."""
    if rows.dtype.kind != "f":
        return rows
    return rows[np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)]


def _check_finite(column: Column, key: str) -> None:
    """
    Raises:
        BrokenRecord: a number is not finite.
    """
    if isinstance(column, np.ndarray) and column.dtype.kind == "f" and not np.isfinite(column).all():
        bad = ~np.isfinite(column.reshape(len(column), -1)).all(axis=1)
        raise BrokenRecord(f"step {int(bad.argmax())} of {key!r} has a number that is not finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionNumbers:
    """The D numbers of an action over the data set, in the order of `actions_of`."""

    names: tuple[str, ...]
    choice: Bool[np.ndarray, "D"]
    """Which are choices, not numbers."""
    mean: Float[np.ndarray, "D"]
    """Of a choice the most frequent one."""
    deviation: Float[np.ndarray, "D"]
    """0 for what never changes; of a choice 1."""
    executed: Int[np.ndarray, "D"]
    """Of each, which number of the step before was executed last: of a chunk the one just before this step."""


def action_numbers(dataset: Dataset) -> ActionNumbers:
    """What the numbers of the data set's actions are, from its statistics."""
    found, chunk = opened(dataset), dataset.chunk
    names: list[str] = []
    parts: dict[str, list[np.ndarray]] = {"choice": [], "mean": [], "deviation": [], "executed": []}
    for name, key in sorted(found.mapping.action.items()):
        numbers, field = found.statistics.fields[key], found.episodes.fields[key]
        size = len(numbers.mean)
        # In a chunk each number stands once per action: `x+0`, ..., `x+7`.
        single = field.names if len(field.names) == size else [f"{name or 'action'}[{index}]" for index in range(size)]
        # The order of `actions_of`: the first action's numbers, then the second's.
        names += [one if chunk == 1 else f"{one}+{later}" for later in range(chunk) for one in single]
        is_choice = not isinstance(_space(found, key, 1), gym.spaces.Box)
        # (D,) of one action; chunks repeat it below.
        frequent = [_most_frequent(column) for column in numbers.rows.reshape(len(numbers.rows), -1).T]
        varies = ~numbers.constant
        parts["choice"].append(np.full(size * chunk, is_choice))
        parts["mean"].append(np.tile(frequent if is_choice else numbers.mean, chunk))
        parts["deviation"].append(np.tile(varies.astype(float) if is_choice else numbers.deviation, chunk))
        # Between two steps `every` stored actions were executed, of which a chunk has no more than it is long.
        before = min(found.every, chunk) - 1
        parts["executed"].append(len(names) - size * chunk + before * size + np.tile(np.arange(size), chunk))
    return ActionNumbers(names=tuple(names), **{name: np.concatenate(several) for name, several in parts.items()})


def _most_frequent(column: np.ndarray) -> float:
    values, counts = np.unique(column, return_counts=True)
    return float(values[counts.argmax()]) if len(values) else 0.0


def actions_of(action: Any) -> Float[np.ndarray, "D"]:
    """The numbers of an action, float64 (D,), of a Dict in the order of its keys."""
    if isinstance(action, Mapping):
        return np.concatenate([actions_of(action[key]) for key in sorted(action)])
    return np.asarray(action, np.float64).reshape(-1)


def check_dataset(dataset: Dataset) -> None:
    """
    Raises:
        ValueError: a setting is out of its range, or its mapping's file is not there.
    """
    if dataset.chunk < 1:
        raise ValueError(f"chunk must be at least 1 action, got {dataset.chunk}")
    if dataset.rate is not None and not (dataset.rate > 0 and math.isfinite(dataset.rate)):
        raise ValueError(f"rate must be above 0 steps per second, got {dataset.rate}")
    if dataset.mapping and not Path(dataset.mapping).exists() and "://" not in dataset.mapping:
        raise ValueError(f"mapping: there is no file {dataset.mapping}")
