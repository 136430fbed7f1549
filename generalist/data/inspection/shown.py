"""What of a data set's episodes is shown as pictures: frames of its cameras, and curves of its numbers.

Dimension key: T steps, D numbers of a value.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from generalist.data.formats.episodes import EpisodeSet
from generalist.data.formats.faults import BrokenRecord
from generalist.data.inspection.cameras import Strip, strips
from generalist.data.inspection.fields import names_of
from generalist.data.mapping import FieldMapping
from generalist.data.spread import spread

EPISODES = 3
"""Whose frames are shown."""
FRAMES = 6
"""Of each camera in each of these."""
STEPS = 300
"""Of a curve at most."""
CURVES = 16
"""Numbers of a field at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """The numbers of a field over an episode."""

    key: str
    names: list[str]
    steps: list[int]
    values: Float[np.ndarray, "T D"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """Pictures of a data set."""

    part: str
    strips: list[Strip]
    where: str
    """File and record of the episode that the curves are of."""
    curves: list[Curve]


def shown(part: str, episodes: EpisodeSet, mapping: FieldMapping) -> Shown:
    """Frames of a few episodes, and the curves of the one of median length."""
    frames = list(strips(episodes, mapping, EPISODES, FRAMES))
    # The median, since the shortest and longest are often those that went wrong.
    there = np.flatnonzero(episodes.lengths)
    # From the median upwards, should the first ones be broken.
    for number in there[np.argsort(episodes.lengths[there], kind="stable")][len(there) // 2 :].tolist():
        try:
            curves = _curves(episodes, mapping, number)
        except BrokenRecord:
            continue
        return Shown(part=part, strips=frames, where=episodes.where(number), curves=curves)
    return Shown(part=part, strips=frames, where="", curves=[])


def _curves(episodes: EpisodeSet, mapping: FieldMapping, number: int) -> list[Curve]:
    # Actions first: they are what is learnt.
    keys = [*mapping.action.values(), *mapping.observation.values(), *([mapping.reward] if mapping.reward else [])]
    keys = [key for key in dict.fromkeys(keys) if episodes.fields[key].kind == "number"]
    columns = episodes.read(number, keys).columns
    found = []
    for key in keys:
        column = np.asarray(columns[key])
        # (T, D)
        values = column.reshape(len(column), -1).astype(np.float64)
        # More points than a chart is wide would only make the page larger.
        steps = spread(len(values), STEPS)
        names = names_of(episodes.fields[key], values.shape[1])[:CURVES]
        found.append(Curve(key=key, names=names, steps=steps.tolist(), values=values[steps, :CURVES]))
    return found
