"""One pass over the episodes of a data set, by several processes: what only whole episodes show.

Dimension key: N episodes, T steps of one, A numbers of an action.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from rich.console import Console

from generalist.data.formats.columns import Frames
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, Opening, RawEpisode
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.places import Place
from generalist.data.mapping import FieldMapping
from generalist.data.statistics import instruction_of
from generalist.system.processes import run_jobs
from generalist.system.progress import counting

FEW = 2**16
"""Steps below which starting processes would take longer than reading."""
JOBS = 4  # per process, so that none waits long for the last one
NAMED = 20  # episodes with numbers that are not finite, of each field and job
GAP = 1.5
"""Steps of time: two timestamps farther apart than this leave something out."""

# Structured arrays: some 40 bytes per episode go back from a worker, however long it is.
FACTS = np.dtype(
    [
        ("read", bool),
        ("actions", np.uint64),  # hash of all actions
        ("whole", np.uint64),  # hash of actions and of what is observed, without video
        ("still", bool),  # the action never changes
        ("first_zero", bool),  # all numbers of the first action are 0
        ("last_zero", bool),
        ("last_repeats", bool),  # the last action is that before it
        ("zeros", np.int64),  # actions between the first and the last that are 0
        ("repeats", np.int64),  # actions before the last that are those before them
        ("empty", bool),  # no instruction
    ]
)
"""Of an episode."""
TIMES = np.dtype(
    [
        ("step", np.float64),  # median time between two steps; nan of episodes of one step
        ("back", np.int64),  # times that are before those before them
        ("back_at", np.int64),  # the first of these
        ("same", np.int64),  # times that are equal to those before them
        ("same_at", np.int64),
        ("gaps", np.int64),  # distances above `GAP` medians
        ("gap_at", np.int64),  # the longest of these
        ("gap", np.float64),  # the longest distance
    ]
)
"""Of an episode's timestamps, in their own unit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """What the episodes of a data set show."""

    facts: Shaped[np.ndarray, "N"]
    """`FACTS` (N,)."""
    times: dict[str, Shaped[np.ndarray, "N"]]
    """Key of a field of timestamps → `TIMES` (N,)."""
    not_finite: dict[str, dict[int, int]]
    """Key of a mapped field → number of an episode → its first step with a number that is not finite; the first few."""
    broken: dict[int, str]
    """Number of an episode that can't be read → why."""


@dataclasses.dataclass(frozen=True)
class _Job:
    place: Place
    opening: Opening
    numbers: range
    mapping: FieldMapping
    times: tuple[str, ...]

    def __str__(self) -> str:
        return f"the inspection of {self.place}"


def scan(episodes: EpisodeSet, mapping: FieldMapping, times: Sequence[str], console: Console) -> Scan:
    """Reads every episode once, all its fields of numbers and its images undecoded.

    Args:
        times: keys of the fields with timestamps.
    """
    workers, total = max(1, episodes.opening.workers), int(episodes.lengths.sum())
    several = workers > 1 and total > FEW
    # Without a job that has no episode.
    parts = min(len(episodes), JOBS * workers) if several else 1
    bounds = np.linspace(0, len(episodes), parts + 1).astype(int).tolist()
    jobs = [
        _Job(episodes.place, episodes.opening, range(low, high), mapping, tuple(times))
        for low, high in itertools.pairwise(bounds)
    ]
    done: dict[int, Scan] = {}
    with counting(console, transient=True) as progress:
        bar = progress.add_task("inspecting episodes", total=len(episodes))
        results = run_jobs(_work, jobs, workers=workers) if several else ((job, _scan(job, episodes)) for job in jobs)
        for job, found in results:
            done[job.numbers.start] = found
            progress.advance(bar, len(job.numbers))
    # In the order of the episodes, whatever the order in which jobs ended.
    return _joined([done[job.numbers.start] for job in jobs])


def _work(job: _Job) -> Scan:
    # Each worker opens the set itself, from the index that is kept: open files can't be sent to it.
    return _scan(job, open_episodes(job.place, job.opening))


def _scan(job: _Job, episodes: EpisodeSet) -> Scan:
    """Some episodes."""
    count = len(job.numbers)
    found = Scan(
        facts=np.zeros(count, FACTS),
        times={key: np.zeros(count, TIMES) for key in job.times},
        not_finite={},
        broken={},
    )
    keys = list(dict.fromkeys([*job.mapping.keys, *job.times]))
    for place, number in enumerate(job.numbers):
        # Known to be broken, and counted elsewhere.
        if not episodes.lengths[number]:
            continue
        try:
            episode = episodes.read(number, keys)
        except BrokenRecord as error:
            found.broken[number] = str(error)
            continue
        found.facts[place] = _facts(episode, job.mapping)
        for key in job.times:
            found.times[key][place] = _times(np.asarray(episode.columns[key]).reshape(-1))
        for key, step in _not_finite(episode, job.mapping.keys):
            of_field = found.not_finite.setdefault(key, {})
            # Counted in full by the statistics; here only the first ones are wanted, for the message.
            if len(of_field) < NAMED:
                of_field[number] = step
    return found


def _facts(episode: RawEpisode, mapping: FieldMapping) -> tuple[Any, ...]:
    """`FACTS` of an episode of at least one step."""
    columns = [np.asarray(episode.columns[key]) for _, key in sorted(mapping.action.items())]
    # (T, A)
    actions = np.concatenate([column.reshape(len(column), -1).astype(np.float64) for column in columns], axis=1)
    zero = (actions == 0).all(axis=1)  # (T,)
    repeats = (actions[1:] == actions[:-1]).all(axis=1)  # (T - 1,)
    told = instruction_of(episode, mapping.instruction) if mapping.instruction is not None else ""
    # 64 bits: among a million episodes, two have the same by chance in one of 30 million data sets.
    digest = hashlib.blake2b(actions.tobytes(), digest_size=8)
    # Taken before the observations are added to the same hash.
    of_actions = int.from_bytes(digest.digest(), "little")
    for key in mapping.observation.values():
        column = episode.columns[key]
        if isinstance(column, Frames):
            continue  # decoding all videos would take hours
        # Images by their encoded bytes: copies of an episode have the same files.
        for value in column if isinstance(column, list) else [np.ascontiguousarray(column).tobytes()]:
            digest.update(value)
    return (
        True,
        of_actions,
        int.from_bytes(digest.digest(), "little"),
        bool(len(repeats) and repeats.all()),
        bool(zero[0]),
        bool(zero[-1]),
        bool(len(repeats) and repeats[-1]),
        int(zero[1:-1].sum()),
        int(repeats[:-1].sum()),
        not told.strip(),
    )


def _times(times: Shaped[np.ndarray, "T"]) -> tuple[Any, ...]:
    """`TIMES` of an episode's timestamps (T,)."""
    apart = np.diff(times.astype(np.float64))  # (T - 1,)
    if not len(apart) or not np.isfinite(apart).all():
        return (np.nan, 0, 0, 0, 0, 0, 0, np.nan)
    # Repeated and backward times would make the usual distance too small.
    forward = apart[apart > 0]
    step = float(np.median(forward)) if len(forward) else np.nan
    back, same, gap = apart < 0, apart == 0, apart > GAP * step
    first = [int(flags.argmax()) + 1 for flags in (back, same)]
    longest = int(apart.argmax())
    return (step, back.sum(), first[0], same.sum(), first[1], gap.sum(), longest + 1, float(apart[longest]))


def _not_finite(episode: RawEpisode, keys: Collection[str]) -> list[tuple[str, int]]:
    """Fields with a number that is not finite, each with its first step."""
    found = []
    for key in keys:
        column = episode.columns.get(key)
        if isinstance(column, np.ndarray) and column.dtype.kind == "f" and not np.isfinite(column).all():
            # (T,)
            bad = ~np.isfinite(column.reshape(len(column), -1)).all(axis=1)
            found.append((key, int(bad.argmax())))
    return found


def _joined(parts: Sequence[Scan]) -> Scan:
    not_finite: dict[str, dict[int, int]] = {}
    for part in parts:
        for key, steps in part.not_finite.items():
            not_finite.setdefault(key, {}).update(steps)
    return Scan(
        facts=np.concatenate([part.facts for part in parts]),
        times={key: np.concatenate([part.times[key] for part in parts]) for key in parts[0].times},
        not_finite=not_finite,
        broken={number: why for part in parts for number, why in part.broken.items()},
    )
