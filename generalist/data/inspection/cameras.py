"""The images of a data set: whether those of some episodes can be read, and whether a camera stood still or was dark.

Dimension key: T frames, H height, W width, C channels.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from generalist.data.formats.columns import Column, decode
from generalist.data.formats.episodes import EpisodeSet
from generalist.data.formats.faults import BrokenRecord
from generalist.data.inspection.problems import Problem, counted, listed
from generalist.data.mapping import FieldMapping
from generalist.data.spread import spread
from generalist.system.progress import counting

EPISODES = 32
"""Whose images are looked at, spread over all."""
FRAMES = 8
"""Of each camera in each of these."""
# Of 255: a camera with its lid on gives noise of a few levels, not zeros.
DARK = 4.0
"""Mean of the pixels, below which a frame shows nothing."""
RUN = 32
"""Neighbouring frames that are decoded at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """Some frames of a camera in an episode."""

    episode: int
    key: str
    steps: list[int]
    frames: UInt8[np.ndarray, "T H W C"]


def image_keys(episodes: EpisodeSet, mapping: FieldMapping) -> list[str]:
    """Fields of observed images."""
    return [key for key in mapping.observation.values() if episodes.fields[key].kind == "image"]


def strips(episodes: EpisodeSet, mapping: FieldMapping, count: int, frames: int) -> Iterator[Strip]:
    """Frames of `count` episodes, of each camera up to `frames`; what can't be read is left out."""
    keys, whole = image_keys(episodes, mapping), np.flatnonzero(episodes.lengths)
    # Spread over the set, since the first episodes may all be of one scene.
    for number in whole[spread(len(whole), count)].tolist() if keys and len(whole) else []:
        try:
            # Images are encoded or not read yet; only the chosen frames are decoded.
            columns = episodes.read(number, keys).columns
            for key in keys:
                steps = spread(len(columns[key]), frames).tolist()
                yield Strip(
                    episode=number, key=key, steps=steps, frames=np.concatenate([*_decoded(columns[key], steps)])
                )
        except BrokenRecord:
            continue


def check(
    part: str, episodes: EpisodeSet, mapping: FieldMapping, console: Console, *, whole: bool
) -> tuple[list[dict[str, Any]], list[Problem], dict[int, str]]:
    """Each camera with its size and how many of its frames were read; problems; episodes with images that can't be read.

    Args:
        whole: reads all frames of all episodes.
    """
    keys, there = image_keys(episodes, mapping), np.flatnonzero(episodes.lengths)
    if not keys or not len(there):
        return [], [], {}
    # Decoding is what costs time: a sample shows whether a camera works, `--all` whether every image can be read.
    numbers = there if whole else there[spread(len(there), EPISODES)]
    seen = {key: _Camera() for key in keys}
    broken: dict[int, str] = {}
    with counting(console, transient=True) as progress:
        for number in progress.track(numbers.tolist(), description="looking at images"):
            try:
                columns = episodes.read(number, keys).columns
                for key, camera in seen.items():
                    steps = range(len(columns[key])) if whole else spread(len(columns[key]), FRAMES).tolist()
                    camera.add(number, columns[key], list(steps))
            except BrokenRecord as error:
                where = episodes.where(number)
                # Some formats name the file and record themselves, and a column knows only its own part.
                broken[number] = str(error) if str(error).startswith(where) else f"{where}: {error}"
    about = [
        {
            "key": key,
            "frames": camera.frames,
            "shapes": sorted(list(shape) for shape in camera.shapes),
            # Shown to the user: a camera that is nearly black or white in the mean is seen at a glance.
            "mean": camera.mean,
        }
        for key, camera in seen.items()
    ]
    problems = [
        Problem(kind="frozen_camera", part=part, where=key, what=f"{what} {named}", remedy=remedy)
        for key, camera in seen.items()
        for what, numbers, remedy in camera.odd()
        if (named := f"in {counted(len(numbers), 'episode')}: {listed([episodes.where(one) for one in numbers], 3)}")
    ]
    return about, problems, broken


class _Camera:
    """What was seen of a camera."""

    def __init__(self) -> None:
        self.frames, self.shapes = 0, set[tuple[int, ...]]()
        self._sum = 0.0
        self._still: list[int] = []
        self._dark: list[int] = []

    @property
    def mean(self) -> float:
        """Of all pixels, 0 to 255."""
        return self._sum / max(1, self.frames)

    def add(self, number: int, column: Column, steps: list[int]) -> None:
        """Some frames of an episode; a few at a time, since those of a whole episode may not fit in memory.

        Raises:
            BrokenRecord: one can't be read.
        """
        # Only the first frame is kept; all others are compared with it as they come.
        first: np.ndarray | None = None
        # One frame alone can't tell whether the image changes.
        moves, brightest = len(steps) < 2, 0.0
        for frame in itertools.chain.from_iterable(_decoded(column, steps)):
            first = frame if first is None else first
            # Exactly equal: even a camera that shows a still scene has noise, unless it hung or was rendered.
            moves = moves or not np.array_equal(first, frame)
            mean = float(frame.mean())
            brightest = max(brightest, mean)
            self._sum += mean
            self.frames += 1
            self.shapes.add(frame.shape)
        self._still += [] if moves else [number]
        # By the brightest frame: an episode may begin in the dark.
        self._dark += [number] if brightest < DARK else []

    def odd(self) -> list[tuple[str, list[int], str]]:
        """What is odd, in which episodes, and what to do about it."""
        found = [
            (
                "the image never changes",
                self._still,
                "the camera may have hung: look at them, and take such episodes out",
            ),
            (
                "the image is black",
                self._dark,
                "the camera may have been off: leave it out of the mapping, or the episodes out",
            ),
        ]
        return [one for one in found if one[1]]


def _decoded(column: Column, steps: list[int]) -> Iterator[UInt8[np.ndarray, "T H W C"]]:
    """Some of a column's images, decoded in runs of neighbours, as videos are read fastest.

    Raises:
        BrokenRecord: one can't be read.
    """
    # A video is decoded from its last keyframe on: neighbours in one go cost a single pass.
    begin = 0
    for end in range(1, len(steps) + 1):
        if end == len(steps) or steps[end] != steps[end - 1] + 1 or end - begin == RUN:
            yield decode(column[steps[begin] : steps[end - 1] + 1])
            begin = end
