"""D4RL's HDF5 files: all steps of all episodes one after the other.

observations, actions, rewards      (rows, ...)
terminals, timeouts                 (rows,): an episode ends where either is set; old files have no timeouts
next_observations, infos/<name>     (rows, ...), at times
metadata/<name>                     about the file, of any shape; no field
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from generalist.data.formats.episodes import Opening
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.hdf5 import has, hdf5_files, opened
from generalist.data.formats.hdf5_arrays import StoredArray
from generalist.data.formats.hdf5_set import Hdf5Set, scanned
from generalist.data.formats.index import Arrays
from generalist.data.formats.places import Place

BLOCK = 2**16  # rows that are looked at at once for ends of episodes
# D4RL's own sets have a few million rows; far more is taken for a damaged shape, which would be read for hours.
MOST_ROWS = 10**9
ENDS = ("terminals", "timeouts")


class D4rl(Hdf5Set):
    """Episodes in the order of their files and rows; keys are the paths within a file, such as `infos/qpos`."""

    format = "D4RL HDF5"
    of_steps: ClassVar[tuple[str, ...]] = ("observations", "next_observations", "actions", "rewards", *ENDS)
    # What was trained to collect the data (`metadata/policy/...` has whole layers of weights) would become fields
    # of the episode.
    passed_over: ClassVar[tuple[str, ...]] = ("metadata",)

    def __init__(self, place: Place, opening: Opening):
        super().__init__(place, opening, hdf5_files(place), scan, "d4rl 1")

    @classmethod
    def matches(cls, place: Place) -> bool:
        """See `EpisodeSet.matches`: names of files don't tell it from robomimic, so the names of the first file's groups do."""
        files = hdf5_files(place)
        if not files:
            return False
        try:
            with opened(files[0], str(files[0])) as file:
                return has(file.content, ENDS[0])
        # Robomimic, which is asked next, takes any HDF5 file and then says what is wrong with this one.
        except (ImportError, BrokenRecord):
            return False


def scan(place: Place) -> Arrays:
    """Where the episodes of a file begin, and their lengths.

    Raises:
        BrokenRecord: it has no ends of episodes, or they are no flags.
    """
    where = str(place)
    with opened(place, where) as file:
        flags = {name: StoredArray(file, file.content, name, where) for name in ENDS if has(file.content, name)}
        if not flags:
            raise BrokenRecord(f"{where} has no {ENDS[0]}, which say where episodes end: copy it again")
        # The longest, so that a flag that was cut off is found below rather than deciding how many steps there
        # are.
        rows = max(one.rows for one in flags.values())
        for name, one in flags.items():
            if one.dtype.kind not in "fiub" or one.shape not in ((rows,), (rows, 1)) or rows > MOST_ROWS:
                shapes = ", ".join(f"{name} {one.shape}" for name, one in flags.items())
                raise BrokenRecord(
                    f"{where} has ends of episodes of the shapes {shapes}, where one flag per step is expected"
                )
        # Flags of a hundred million steps are not held at once, in whatever type the file has them.
        blocks = (range(start, min(start + BLOCK, rows)) for start in range(0, rows, BLOCK))
        ends = [np.flatnonzero(_ended(flags, block, where)) + block.start for block in blocks]
    return _episodes(np.concatenate([*ends, np.zeros(0, np.int64)]) + 1, rows)


def _ended(flags: Mapping[str, StoredArray], rows: range, where: str) -> Bool[np.ndarray, "rows"]:
    ended = np.zeros(len(rows), bool)
    for name, one in flags.items():
        # (rows,) or (rows, 1), as checked by `scan`, to (rows,)
        values = one.read(rows).reshape(len(rows))
        # NaN and counters are truthy: taken for flags, each of them would end an episode in a wrong place.
        if not np.isin(values, (0, 1)).all():
            raise BrokenRecord(f"{where}: {name!r} holds other values than 0 and 1 in {rows}: copy it again")
        ended |= values != 0
    return ended


def _episodes(stops: Int[np.ndarray, "n"], rows: int) -> Arrays:
    """The episodes that end before rows; what comes after the last end is one too."""
    # The recording stopped in the middle of an episode, whose steps are as good as others.
    tail = rows - (stops[-1] if stops.size else 0)
    stops = np.append(stops, rows) if tail else stops
    starts = np.concatenate([[0], stops])[:-1]
    return scanned([""] * len(stops), stops - starts, {}, starts=starts, rows=rows)
