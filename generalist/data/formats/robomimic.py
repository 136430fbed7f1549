"""robomimic's HDF5 files, with LIBERO's, RoboCasa's and MimicGen's: one file, or a folder with one for each task.

data                      attributes env_args (JSON); of LIBERO problem_info (JSON with the instruction)
  demo_0                  attribute num_samples: T; of RoboCasa ep_meta (JSON with the instruction)
    actions               (T, ...); and so rewards, dones, states
    obs/<name>            (T, ...); and so next_obs
mask/<split>              names of the demonstrations of a split
"""

import math
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Shaped

from generalist.data.formats.episodes import Opening
from generalist.data.formats.faults import BrokenRecord, naming
from generalist.data.formats.hdf5 import Opened, attribute, find, has, hdf5_files, numbered, opened
from generalist.data.formats.hdf5_arrays import StoredArray
from generalist.data.formats.hdf5_set import Hdf5Set, scanned
from generalist.data.formats.index import Arrays
from generalist.data.formats.json_files import parsed_object
from generalist.data.formats.places import Place

DEMO = r"demo_([0-9]{1,18})"
REMEDY = "write the observations with robomimic/scripts/dataset_states_to_obs.py, or get the files that have them"


class Robomimic(Hdf5Set):
    """Demonstrations in the order of their files and numbers; keys are the paths within a demonstration, such as
    `obs/agentview_image`, and `instruction` where the files have one."""

    format = "robomimic HDF5"
    within: ClassVar[str] = "data"
    of_steps: ClassVar[tuple[str, ...]] = ("actions", "rewards", "dones", "states", "obs", "next_obs")

    def __init__(self, place: Place, opening: Opening):
        super().__init__(place, opening, hdf5_files(place), scan, "robomimic 1")

    @classmethod
    def matches(cls, place: Place) -> bool:
        """See `EpisodeSet.matches`: any HDF5 file that no other format knows, so that it is told what is wrong with it."""
        return bool(hdf5_files(place))

    def wanted(self, found: list[Arrays]) -> list[Bool[np.ndarray, "n"]]:
        """See `Hdf5Set.wanted`.

        Raises:
            ValueError: there are several splits, none of which is the one that is asked for, or not in every file.
        """
        # `mask` may hold several overlapping splits (train, valid, 20_percent): all of them at once would count
        # demonstrations twice.
        splits = sorted({name for one in found for name in one if name.startswith("mask/")})
        if not splits:
            return super().wanted(found)
        name = splits[0] if len(splits) == 1 else f"mask/{self.opening.split}"
        # A folder of several tasks must have the split in every file, or a task would be left out unnoticed.
        lacking = [str(file) for file, one in zip(self.files, found, strict=True) if name not in one]
        if lacking:
            known = ", ".join(split.removeprefix("mask/") for split in splits)
            raise ValueError(
                f"{lacking[0]} has no split {self.opening.split!r}, of {known}: set `split` to one of them"
            )
        return [np.isin(one["names"], one[name]) for one in found]


def scan(place: Place) -> Arrays:
    """The demonstrations of a file: their names, lengths and, by `mask/<split>`, those of a split.

    Raises:
        BrokenRecord: it has none, or none with observations.
    """
    where = str(place)
    with opened(place, where) as file:
        content = file.content
        names = numbered(find(content, "data", where), DEMO, where) if has(content, "data") else []
        # Robomimic takes any HDF5 file (see `matches`), so that this message has to serve for all.
        if not names:
            raise BrokenRecord(
                f"{where} is of no known layout: it has neither data/demo_0 (robomimic, LIBERO) nor terminals (D4RL), and no "
                "metadata.json beside it (Minari); give another file, or convert it"
            )
        lengths, texts, broken = [0] * len(names), [""] * len(names), {}
        said, rate = _data_attributes(find(content, "data", where), where)
        for number, name in enumerate(names):
            try:
                with naming(f"{where}, {name}"):
                    lengths[number], text = _demo(file, f"data/{name}", f"{where}, {name}")
                    texts[number] = text or said
            except BrokenRecord as error:
                broken[number] = str(error)
        splits = find(content, "mask", where) if has(content, "mask") else ()
        # As arrays of the index, whose names are thus the splits of the file.
        members = {f"mask/{name}": _members(StoredArray(file, splits, name, where), name, where) for name in splits}
        return scanned(names, lengths, broken, instructions=texts, rate=rate) | members


def _data_attributes(data: Any, where: str) -> tuple[str, float]:
    """The instruction of all demonstrations, empty if there is none; and steps per second, 0 if the file does not say."""
    # LIBERO: problem_info. Others: env_args, which robosuite's environments are made of.
    problem, settings = _json(data, "problem_info", where), _json(data, "env_args", where)
    arguments = settings.get("env_kwargs")
    # robosuite's number of actions per second.
    rate = arguments.get("control_freq") if isinstance(arguments, dict) else None
    said = _text(problem.get("language_instruction")) or _text(settings.get("language_instruction"))
    return said, float(rate) if isinstance(rate, int | float) and 0 < rate < math.inf else 0.0


def _demo(file: Opened, path: str, where: str) -> tuple[int, str]:
    """Steps of a demonstration, and its own instruction, empty if it has none.

    Raises:
        BrokenRecord: it has no steps, no observations, or says another number.
    """
    demo = find(file.content, path, where)
    # Raw files of robosuite have states and actions alone; from the states the simulator renders observations.
    if not has(demo, "obs"):
        raise BrokenRecord(f"{where} has no observations (obs): {REMEDY}")
    # Both say T; where they differ, the file was cut off or edited.
    steps, said = StoredArray(file, demo, "actions", where).rows, attribute(demo, "num_samples", where)
    if said is not None and said != steps:
        raise BrokenRecord(
            f"{where} has {steps:,} actions, where its num_samples says {said}: copy it again, or take it out"
        )
    if not steps:
        raise BrokenRecord(f"{where} has no steps: take it out")
    return steps, _text(_json(demo, "ep_meta", where).get("lang"))


def _text(value: Any) -> str:
    """An instruction, which in LIBERO is a list of letters at times, or stands in quotes; empty if it is none."""
    return "".join(map(str, value)).strip(' "') if isinstance(value, str | list) else ""


def _members(split: StoredArray, name: str, where: str) -> Shaped[np.ndarray, "n"]:
    """Names of the demonstrations of a split."""
    if split.dtype.kind != "S" or len(split.shape) != 1:
        raise BrokenRecord(f"{where}: mask/{name} holds no names of demonstrations: write them, or take it out")
    # (n,) names, as bytes as in the index
    return np.array([demo.encode() for demo in split.read(range(split.rows))], "S")


def _json(thing: Any, name: str, where: str) -> dict[str, Any]:
    """An attribute that holds JSON; empty if there is none.

    Raises:
        BrokenRecord: it is no JSON, or no object.
    """
    found = attribute(thing, name, where)
    return {} if found is None else parsed_object(str(found), f"{where}: the attribute {name!r}")
