"""Which format a folder or a file has."""

from generalist.data.formats.d4rl import D4rl
from generalist.data.formats.episodes import EpisodeSet, Opening
from generalist.data.formats.lerobot_v2 import LeRobotV2
from generalist.data.formats.lerobot_v3 import LeRobotV3
from generalist.data.formats.minari import Minari
from generalist.data.formats.minari_arrow import MinariArrow
from generalist.data.formats.npz import Npz
from generalist.data.formats.places import Place, place
from generalist.data.formats.rlds import Rlds
from generalist.data.formats.robomimic import Robomimic

FORMATS: tuple[type[EpisodeSet], ...] = (
    # First those with descriptions of their own, which nothing else has; LeRobot's version 3 before 2, though
    # their `matches` exclude each other.
    *(LeRobotV3, LeRobotV2, Rlds, Minari, MinariArrow),
    # Then those told by what is in an HDF5 file. Robomimic takes any HDF5 file, and so comes after all others
    # that use HDF5.
    *(D4rl, Robomimic, Npz),
)
"""In the order in which they are tried."""


def format_of(where: str | Place) -> type[EpisodeSet] | None:
    """The format of episodes that a folder or a file looks like; None for none that is known."""
    found = place(where)
    return next((kind for kind in FORMATS if kind.matches(found)), None)


def open_episodes(where: str | Place, opening: Opening) -> EpisodeSet:
    """The data set of episodes in a folder or a file, whatever its format.

    Raises:
        FileNotFoundError: there is nothing, or a file that it must have is missing.
        ValueError: it is of no known format, or damaged.
        ImportError: a package that reads the format is not installed.
    """
    found = place(where)
    # Otherwise a misspelt path would be reported as a folder of no known format.
    if not found.exists():
        raise FileNotFoundError(f"there is no {where}: give the folder of a data set")
    kind = format_of(found)
    if kind is not None:
        return kind(found, opening)
    known = ", ".join(kind.format for kind in FORMATS)
    raise ValueError(
        f"{where} is no data set of episodes that is known ({known}): give its folder, or convert it to one of them"
    )
