"""Episodes by parts: which part has which, and the loop over the episodes of one.

Dimension key: N episodes, T steps.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from generalist.data.convert.images import file_of, loaded
from generalist.data.convert.source import Settings, Source, column_of
from generalist.data.formats.columns import nbytes
from generalist.data.formats.episodes import RawEpisode
from generalist.data.formats.faults import BrokenRecord, TooManyBroken

PART_BYTES = {"rlds": 2**28, "lerobot": 2**27}
"""Of a part's files, as estimated: shards as large as TFDS makes them; videos below LeRobot's limit."""
PART_STEPS, MOST_STEPS, PARTS = 2**14, 2**18, 256
"""Steps of a part: few enough that all cores have work and an interruption costs minutes; more where there would be more parts
than this."""
# Enough to plan parts and to see whether the disk has room, within a second or so.
SAMPLES, SAMPLED_STEPS = 8, 4
"""Episodes, and steps of each, that sizes are estimated from."""
VIDEO_SHARE = 0.1
"""Of the bytes of raw pixels that a video takes at most, as a rule."""
NOTED_EVERY = 256
"""Steps between two notes of how far a part is."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A part that is to be made."""

    settings: Settings
    work: Path
    number: int
    start: int
    """Number of the first of its episodes in the source."""
    stop: int
    allowed: int
    """Episodes that may be broken."""

    def __str__(self) -> str:
        return f"part {self.number} of the conversion"

    @property
    def folder(self) -> Path:
        """Of the part."""
        return self.work / "parts" / f"{self.number:05d}"

    def note(self, steps: int) -> None:
        """Says how many steps are done."""
        path = self.work / "progress" / f"{self.number:05d}"
        path.parent.mkdir(exist_ok=True)
        # A torn write does no harm: `steps_done` looks again.
        path.write_text(str(steps), encoding="utf-8")


def steps_done(work: Path) -> int:
    """Steps of all parts that are done so far, as the parts have noted."""
    done = 0
    for path in (work / "progress").glob("*"):
        try:
            done += int(path.read_text(encoding="utf-8") or 0)
        except (OSError, ValueError):  # it is being written
            continue
    return done


def each_episode(job: Job, source: Source, write: Callable[[RawEpisode], None]) -> dict[str, Any]:
    """Reads the episodes of a part and writes those that can be read. `write` writes one as a whole, or raises before it has
    written anything.

    Returns:
        `episodes`: their numbers in the source; `lengths`: their steps; `broken`: why the others can't be read, by number.

    Raises:
        TooManyBroken: more are broken than may be.
    """
    known, lengths = source.episodes.broken(), source.episodes.lengths
    episodes: list[int] = []
    written: list[int] = []
    broken: dict[str, str] = {}
    done, noted = 0, 0
    for number in range(job.start, job.stop):
        # Those known from the index are counted by the parent already.
        if number in known or not lengths[number]:
            continue
        try:
            raw = source.read(number)
            write(raw)
        except BrokenRecord as error:
            where = source.episodes.where(number)
            broken[str(number)] = str(error) if str(error).startswith(where) else f"{where}: {error}"
            # Each part ends when it alone has too many; the sum over the parts is the parent's.
            _check_few(broken, job.allowed)
        else:
            episodes.append(number)
            written.append(len(raw))
            done += len(raw)
        if done - noted >= NOTED_EVERY:
            noted = done
            job.note(noted)
    # All steps, those of broken episodes too, so that the bar reaches its end.
    job.note(int(lengths[job.start : job.stop].sum()))
    return {"episodes": episodes, "lengths": written, "broken": broken}


def _check_few(broken: dict[str, str], allowed: int) -> None:
    if len(broken) > allowed:
        raise TooManyBroken(
            f"{len(broken):,} or more episodes can't be read, where {allowed:,} may be left out: mend them, take them out, or "
            f"raise --unreadable; {'; '.join(list(broken.values())[:20])}"
        )


def bytes_per_step(source: Source) -> float:
    """About how many bytes a step takes in the new data set, by a few steps of a few episodes."""
    usable = np.flatnonzero(source.episodes.lengths)
    # Spread over the set, in case that the first episodes are unlike the others.
    chosen = np.unique(np.linspace(0, len(usable) - 1, SAMPLES).astype(int)) if len(usable) else []
    found = []
    for number in usable[chosen].tolist() if len(usable) else []:
        try:
            found.append(_sampled(source, source.read(number)))
        except BrokenRecord:
            continue
    # At least 1, since it is divided by.
    return max(1.0, float(np.mean(found))) if found else 1.0


def _sampled(source: Source, raw: RawEpisode) -> float:
    length, total = len(raw), 0.0
    steps = min(length, SAMPLED_STEPS)
    in_videos = source.settings.to == "lerobot" and source.settings.images == "video"
    for one in source.kept:
        column = column_of(raw, one.field.key)
        # A value of the whole episode is shared by its steps.
        per_step = 1 if one.field.level == "step" else 1 / length
        if one.field.kind != "image":
            total += nbytes(column) / len(column) * per_step
            continue
        images = list(loaded(column[:steps]))
        # A rule of thumb: to encode frames would take longer than the estimate is worth.
        sizes = [image.nbytes * VIDEO_SHARE if in_videos else len(file_of((image, file))) for image, file in images]
        total += float(np.mean(sizes)) * per_step
    return total


def planned(source: Source, per_step: float) -> list[tuple[int, int]]:
    """The parts: (first episode, one behind the last). Every part has an episode; those that are too long for it are alone."""
    # Between two limits: as many parts as PARTS if the data set is neither small nor very large.
    wanted = max(PART_STEPS, min(MOST_STEPS, int(source.episodes.lengths.sum()) // PARTS))
    most = max(1, min(wanted, int(PART_BYTES[source.settings.to] / per_step)))
    bounds, steps = [0], 0
    for number, length in enumerate(source.episodes.lengths.tolist()):
        # Only whole episodes: a part is a file of records, or videos with whole episodes.
        if steps and steps + length > most:
            bounds.append(number)
            steps = 0
        steps += length
    bounds.append(len(source.episodes))
    return [(low, high) for low, high in itertools.pairwise(bounds) if high > low]
