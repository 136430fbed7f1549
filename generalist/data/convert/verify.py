"""Whether a new data set has every value of its source, episode by episode.

Dimension key: T steps of an episode.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from generalist.data.convert.images import loaded
from generalist.data.convert.lerobot import TASK, cameras
from generalist.data.convert.naming import INSTRUCTION, Kept
from generalist.data.convert.source import Settings, Source, column_of, opened, text
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, Opening, RawEpisode

TOLERANCE = 24.0
"""Mean difference of a video's frame to its image, of 255: compression leaves 1 to 10 of camera images, another frame or another
order of colours gives more."""


@dataclasses.dataclass(frozen=True)
class VerifyJob:
    """Episodes that are compared."""

    settings: Settings
    work: Path
    episodes: tuple[int, ...]
    """Numbers in the source."""
    first: int
    """Number of the first one in the new data set; the others follow."""

    def __str__(self) -> str:
        return f"the comparison from episode {self.first} on"


@functools.lru_cache(maxsize=1)
def written(work: Path, split: str, workers: int = 1) -> EpisodeSet:
    """The new data set, as our own reader has it.

    Raises:
        ValueError, OSError: it can't be opened.
    """
    return open_episodes(work / "result", Opening(index=work / "index", workers=workers, split=split))


def compare(job: VerifyJob) -> float:
    """Compares episodes; returns the largest mean difference of a video's frame.

    Raises:
        ValueError: a value differs; the message names episode, field and step.
    """
    # Both are kept open by each process, as jobs are many.
    source, target = opened(job.settings), written(job.work, job.settings.split)
    keys = [one.key for one in source.kept] + [INSTRUCTION if job.settings.to == "rlds" else TASK]
    worst = 0.0
    for number, episode in enumerate(job.episodes, start=job.first):
        before, after = source.read(episode), target.read(number, keys)
        where = f"episode {number}, from {source.episodes.where(episode)}"
        # Before the values, which could not be compared then.
        if len(before) != len(after):
            raise ValueError(f"{where}: {len(after)} steps were written, where the source has {len(before)}")
        told = [text(value) for value in np.asarray(after.columns[keys[-1]], object)]
        # The text that training sees, by whatever way each format has it.
        if told != source.instructions(before):
            raise ValueError(f"{where}: the instruction was written as {told[0]!r:.80}")
        for one in source.kept:
            worst = max(worst, _compare(source, one, before, after, where))
    return worst


def _compare(source: Source, one: Kept, before: RawEpisode, after: RawEpisode, where: str) -> float:
    wanted, got = column_of(before, one.field.key), column_of(after, one.key)
    if one.field.kind == "image":
        return _compare_images(source, one, wanted, got, where)
    first, second = np.asarray(wanted), np.asarray(got)
    if one.field.kind == "text":
        first, second = (np.array([text(value) for value in column.reshape(-1)], object) for column in (first, second))
    # Values could still be equal, but a reader of the new set would see another type.
    elif first.dtype != second.dtype:
        raise ValueError(f"{where}: {one.key!r} has {first.dtype}, but was written as {second.dtype}")
    rows = first.reshape(len(first), -1), second.reshape(len(second), -1)  # (T, D), or (1, D) of the episode
    differs = rows[0] != rows[1]
    # NaN is not equal to itself, and is a value like others here.
    if first.dtype.kind == "f":
        differs &= ~(np.isnan(rows[0]) & np.isnan(rows[1]))
    if differs.any():
        step = int(differs.any(axis=1).argmax())
        raise ValueError(
            f"{where}: step {step} of {one.key!r} was written as {second[step]!r:.80}, not {rows[0][step]!r:.80}"
        )
    return 0.0


def _compare_images(source: Source, one: Kept, wanted: Any, got: Any, where: str) -> float:
    is_video, worst = one in cameras(source), 0.0
    for step, ((image, _), (other, _)) in enumerate(zip(loaded(wanted), loaded(got), strict=True)):
        # Without channels: a video has three of what was grey, each of which is compared with it.
        if image.shape[:2] != other.shape[:2]:
            raise ValueError(
                f"{where}: image {step} of {one.key!r} was written with the shape {other.shape}, not {image.shape}"
            )
        # int16, since uint8 would wrap around below 0.
        difference = float(np.abs(image.astype(np.int16) - other.astype(np.int16)).mean())
        worst = max(worst, difference)
        if difference > (TOLERANCE if is_video else 0.0):
            raise ValueError(
                f"{where}: image {step} of {one.key!r} differs from the source by {difference:.1f} of 255 on average: give "
                "--images png, which loses nothing"
                if is_video
                else f"{where}: image {step} of {one.key!r} differs from the source"
            )
    return worst
