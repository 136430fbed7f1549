"""Statistics of a whole data set of episodes: of every number, of lengths and returns, of instructions. Computed once, by several
processes, and kept with the fingerprint of the files.

Dimension key: N episodes, D numbers of a value, R rows of the sample, Q quantiles.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from rich.console import Console

from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, Opening, RawEpisode
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.index import read_arrays, write_arrays
from generalist.data.formats.places import Place, stamp
from generalist.system.processes import run_jobs
from generalist.system.progress import counting

FORMAT = 1
"""Of the stored file; raise it when the same files give other statistics."""
ROWS = 2**16
"""Rows of a field's sample, from all over the data set."""
NUMBERS = 2**23
"""Numbers of such a sample, where one value is large."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
INSTRUCTIONS = 1000
"""Different ones that are counted."""
JOBS = 4  # per process, so that none waits long for the last one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """A field of numbers over all steps; not-a-number and infinite values are counted and left out."""

    count: Int[np.ndarray, "D"]
    not_finite: Int[np.ndarray, "D"]
    mean: Float[np.ndarray, "D"]
    deviation: Float[np.ndarray, "D"]
    low: Float[np.ndarray, "D"]
    high: Float[np.ndarray, "D"]
    rows: Shaped[np.ndarray, "R ..."]
    """Every n-th value, in its own type."""

    @property
    def quantiles(self) -> Float[np.ndarray, "Q D"]:
        """Of the sample's finite values, at `QUANTILES`."""
        flat = self.rows.reshape(len(self.rows), -1).astype(np.float64)
        flat[~np.isfinite(flat)] = np.nan
        known = ~np.isnan(flat).all(axis=0)
        found = np.full((len(QUANTILES), flat.shape[1]), np.nan)
        if len(flat) and known.any():
            found[:, known] = np.nanquantile(flat[:, known], QUANTILES, axis=0)
        return found

    @property
    def constant(self) -> Bool[np.ndarray, "D"]:
        """Which numbers never change."""
        return (self.low == self.high) & (self.count > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of a whole data set."""

    fields: Mapping[str, Numbers]
    """Fields of numbers of the steps, by key."""
    lengths: Int[np.ndarray, "N"]
    returns: Float[np.ndarray, "N"]
    """Sum of the rewards of each episode; nan where there is none."""
    instructions: Mapping[str, int]
    """The most frequent texts, and how many episodes have each."""
    broken: Mapping[int, str]
    """Number of an episode that can't be read → why; from N on records that are lost as a whole."""


def fingerprint(episodes: EpisodeSet) -> str:
    """What changes whenever a file of the data set does."""
    digest = hashlib.sha256()
    for file in episodes.files:
        # Name, size and time, not contents: terabytes can't be read at every start.
        digest.update(f"{stamp(file)}\n".encode())
    return digest.hexdigest()


def statistics(
    episodes: EpisodeSet, instruction: str | None = None, reward: str | None = None, *, console: Console | None = None
) -> Statistics:
    """The statistics of a data set, from where they are kept if its files are as they were.

    Args:
        instruction: key of the text that is counted.
        reward: key of the number whose sums are the returns.

    Raises:
        OSError: a file can't be read.
    """
    keys = [key for key, field in episodes.fields.items() if field.kind == "number" and field.level == "step"]
    keys = [key for key in keys if None not in episodes.fields[key].shape]
    wanted = json.dumps([FORMAT, episodes.opening.split, keys, instruction, reward])
    folder = episodes.opening.index
    name = hashlib.sha256(f"{fingerprint(episodes)} {wanted}".encode()).hexdigest()[:32]
    # The name says the files and the question, so that nothing old is ever taken for it.
    kept = None if folder is None else folder / f"statistics-{name}.npz"
    stored = None if kept is None else read_arrays(kept)
    if stored is not None:
        return _from_arrays(stored)
    found = _computed(episodes, keys, instruction, reward, console or Console(stderr=True))
    if kept is not None:
        write_arrays(kept, _to_arrays(found))
    return found


@dataclasses.dataclass(frozen=True)
class _Job:
    """Some episodes of a data set."""

    place: Place
    opening: Opening
    numbers: range
    keys: tuple[str, ...]
    instruction: str | None
    reward: str | None
    every: int
    """Steps between two rows of a sample."""
    first: int
    """Steps before the first of these episodes."""

    def __str__(self) -> str:
        return f"the statistics of {self.place}"


def _computed(
    episodes: EpisodeSet, keys: list[str], instruction: str | None, reward: str | None, console: Console
) -> Statistics:
    total = int(episodes.lengths.sum())
    # One step for all fields, so that rows of an observation and of an action are of the same steps.
    largest = max((math.prod(size or 1 for size in episodes.fields[key].shape) for key in keys), default=1)
    every = max(1, math.ceil(total / max(1, min(ROWS, NUMBERS // largest))))
    workers = max(1, episodes.opening.workers)
    # Below this, starting processes would take longer than reading.
    parts = min(len(episodes), JOBS * workers) if total > ROWS and workers > 1 else 1
    bounds = np.linspace(0, len(episodes), parts + 1).astype(int).tolist()
    # (N + 1,): so that the same rows are in the sample, however many jobs there are.
    before = np.concatenate([[0], np.cumsum(episodes.lengths)]).tolist()
    jobs = [
        _Job(episodes.place, episodes.opening, range(low, high), tuple(keys), instruction, reward, every, before[low])
        for low, high in itertools.pairwise(bounds)
    ]
    done: dict[int, dict[str, Any]] = {}
    with counting(console, transient=True) as progress:
        bar = progress.add_task("statistics of the data set", total=len(episodes))
        several = run_jobs(_work, jobs, workers=workers) if parts > 1 else ((job, _scan(job, episodes)) for job in jobs)
        for job, found in several:
            done[job.numbers.start] = found
            progress.advance(bar, len(job.numbers))
    return _joined(episodes, keys, [done[job.numbers.start] for job in jobs])


def _work(job: _Job) -> dict[str, Any]:
    return _scan(job, open_episodes(job.place, job.opening))


def _scan(job: _Job, episodes: EpisodeSet) -> dict[str, Any]:
    """Sums over some episodes."""
    sums = {key: _Sums() for key in job.keys}
    told: Counter[str] = Counter()
    returns, broken = np.full(len(job.numbers), np.nan), {}
    wanted = [*job.keys, *([job.instruction] if job.instruction is not None else [])]
    passed = job.first
    for place, number in enumerate(job.numbers):
        # Known to be broken: it has no steps, and is in `broken` already.
        if not episodes.lengths[number]:
            continue
        try:
            episode = episodes.read(number, wanted)
        except BrokenRecord as error:
            broken[number] = str(error)
        else:
            for key, several in sums.items():
                # The first step of this episode whose number in the whole set is a multiple of `every`.
                several.add(np.asarray(episode.columns[key]), -passed % job.every, job.every)
            if job.reward is not None:
                returns[place] = float(np.asarray(episode.columns[job.reward], np.float64).sum())
            text = instruction_of(episode, job.instruction) if job.instruction is not None else ""
            # A set with a new sentence in each episode must not fill the memory.
            if text in told or (text and len(told) < INSTRUCTIONS):
                told[text] += 1
        # Broken ones too, since their steps were counted in `before`.
        passed += int(episodes.lengths[number])
    return {"sums": sums, "told": told, "returns": returns, "broken": broken}


def instruction_of(episode: RawEpisode, key: str) -> str:
    """The text of an episode, or that of its first step."""
    if key in episode.values:
        return str(episode.values[key])
    column = episode.columns[key]
    assert isinstance(column, np.ndarray), f"{key} is no text"  # which `check_mapping` has seen to
    return str(column[0]) if len(column) else ""


class _Sums:
    """Counts, moments and a sample of a field, added up episode by episode (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count: Any = 0
        self.not_finite: Any = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0
        self.low: Any = np.inf
        self.high: Any = -np.inf
        self.rows: list[np.ndarray] = []

    def add(self, values: np.ndarray, first: int, every: int) -> None:
        """The values (T, ...) of an episode, of which every `every`-th from `first` on enters the sample."""
        # A copy: a view would keep the whole episode in memory.
        self.rows.append(np.array(values[first::every]))
        flat = values.reshape(len(values), -1).astype(np.float64)  # (T, D)
        finite = np.isfinite(flat)
        count = finite.sum(axis=0)
        filled = np.where(finite, flat, 0.0)
        # Mean and squares of this episode alone, around its own mean: sums of squares around 0 lose their digits
        # where the mean is large.
        mean = filled.sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(finite, flat - mean, 0.0) ** 2).sum(axis=0)
        self.low = np.minimum(self.low, np.where(finite, flat, np.inf).min(axis=0, initial=np.inf))
        self.high = np.maximum(self.high, np.where(finite, flat, -np.inf).max(axis=0, initial=-np.inf))
        self.not_finite = self.not_finite + (len(flat) - count)
        self._merge(count, mean, squares)

    def _merge(self, count: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> None:
        total = self.count + count
        difference = mean - self.mean
        self.mean = self.mean + difference * count / np.maximum(total, 1)
        self.squares = self.squares + squares + difference**2 * self.count * count / np.maximum(total, 1)
        self.count = total

    def join(self, other: "_Sums") -> None:
        """Adds what was counted elsewhere, of later episodes."""
        self.rows += other.rows
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.not_finite = self.not_finite + other.not_finite
        self._merge(other.count, other.mean, other.squares)


def _joined(episodes: EpisodeSet, keys: list[str], parts: list[dict[str, Any]]) -> Statistics:
    fields = {}
    for key in keys:
        sums = _Sums()
        for part in parts:
            sums.join(part["sums"][key])
        # Without a single episode the sums are plain numbers, and are spread over the field's shape.
        shape = tuple(size or 0 for size in episodes.fields[key].shape)
        width = math.prod(shape)
        rows = np.concatenate(sums.rows) if sums.rows else np.zeros((0, *shape), episodes.fields[key].dtype)
        fields[key] = Numbers(
            count=np.broadcast_to(sums.count, width).astype(np.int64),
            not_finite=np.broadcast_to(sums.not_finite, width).astype(np.int64),
            mean=np.broadcast_to(sums.mean, width).astype(np.float64),
            # Of the whole population, not of a sample.
            deviation=np.sqrt(np.broadcast_to(sums.squares, width) / np.maximum(sums.count, 1)),
            low=np.broadcast_to(sums.low, width).astype(np.float64),
            high=np.broadcast_to(sums.high, width).astype(np.float64),
            rows=rows,
        )
    told: Counter[str] = Counter()
    broken: dict[int, str] = dict(episodes.broken())
    for part in parts:
        # Each part counts its first thousand texts: with more of them, counts are lower bounds.
        told.update(part["told"])
        broken |= part["broken"]
    return Statistics(
        fields=fields,
        lengths=np.asarray(episodes.lengths),
        returns=np.concatenate([part["returns"] for part in parts]),
        instructions=dict(told.most_common(INSTRUCTIONS)),
        broken=broken,
    )


def _to_arrays(found: Statistics) -> dict[str, np.ndarray]:
    """One flat set of arrays; texts as JSON."""
    texts = {
        "keys": [*found.fields],
        "instructions": dict(found.instructions),
        "broken": {str(number): reason for number, reason in found.broken.items()},
    }
    # One text of JSON: arrays of objects would have to be pickled.
    arrays = {"texts": np.array(json.dumps(texts)), "lengths": found.lengths, "returns": found.returns}
    for number, numbers in enumerate(found.fields.values()):
        for field in dataclasses.fields(Numbers):
            arrays[f"{number} {field.name}"] = getattr(numbers, field.name)
    return arrays


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Statistics:
    texts = json.loads(str(arrays["texts"]))
    names = [field.name for field in dataclasses.fields(Numbers)]
    return Statistics(
        fields={
            key: Numbers(**{name: arrays[f"{number} {name}"] for name in names})
            for number, key in enumerate(texts["keys"])
        },
        lengths=arrays["lengths"],
        returns=arrays["returns"],
        instructions=texts["instructions"],
        broken={int(number): reason for number, reason in texts["broken"].items()},
    )
