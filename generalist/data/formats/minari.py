"""Minari's data sets, in their HDF5 layout; `minari_arrow` has the other one.

<id>/data/metadata.json         the spaces of observations and actions, how many episodes
<id>/data/main_data.hdf5
  episode_0                     attributes: seed, options/<name> and what else was kept of the episode
    observations/...            (T + 1, ...), nested as the space is: Dict by names, Tuple by _index_0, _index_1, ...
    actions/...                 (T, ...), nested so too
    rewards, terminations, truncations      (T,)
    infos/...                   (T + 1, ...) or (T, ...)

Images are files of JPEG, unless the data set says otherwise.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from generalist.data.formats.arrays import CHANNELS, Shape
from generalist.data.formats.episodes import Field, Opening
from generalist.data.formats.faults import BrokenRecord, naming
from generalist.data.formats.hdf5 import Opened, attribute, numbered, opened
from generalist.data.formats.hdf5_arrays import StoredArray
from generalist.data.formats.hdf5_set import Hdf5Set, Told, encoded_field, scanned
from generalist.data.formats.index import Arrays
from generalist.data.formats.json_files import is_count, json_object, parsed_object
from generalist.data.formats.places import Place

METADATA, MAIN = "metadata.json", "main_data.hdf5"
# At most 18 digits, which fit into int64.
EPISODE = r"episode_([0-9]{1,18})"
SMALLEST_IMAGE = 32  # pixels of a side, as Minari decides: smaller arrays are mostly grids of codes, such as MiniGrid's
# Where MiniGrid's environments, BabyAI's among them, have their instruction.
MISSIONS = ("observations/mission", "infos/mission")
DEEPEST = 16  # spaces within spaces


@dataclasses.dataclass(frozen=True)
class Declared:
    """A space that has no spaces in it."""

    shape: Shape
    kind: str
    """`text`, `image` or `number`."""

    def agreed(self, field: Field, where: str) -> Field:
        """A field as its space says that it is.

        Raises:
            BrokenRecord: what is stored is something else.
        """
        shape = self.shape
        if self.kind == "image" and field.dtype == "uint8":
            # (H, W) of grey to (H, W, 1); decoded JPEG has the channel already.
            shape = (*shape, 1) if len(shape) == 2 else shape
            field = dataclasses.replace(field, kind="image", shape=shape if field.shape == self.shape else field.shape)
        # A grid of codes in 8 bits looks like an image by its array; its space says that it is none.
        elif field.kind == "image":
            field = dataclasses.replace(field, kind="number")
        if (field.kind == "text") != (self.kind == "text") or field.shape != shape:
            raise BrokenRecord(
                f"{where}: {field.key!r} has values of the kind {field.kind} and the shape {field.shape}, where its space in "
                f"{METADATA} says {self.kind} and {shape}"
            )
        return field


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What metadata.json says."""

    folder: Place
    layout: str
    """`hdf5`, `arrow` or `parquet`."""
    episodes: int
    spaces: Mapping[str, Declared]
    """By key; empty if it has none."""

    def lost(self, numbers: set[int]) -> list[str]:
        """Episodes that should be there and are not.

        Raises:
            ValueError: most of them.
        """
        # A few may be lost records, which `unreadable` allows; most of them mean that the copy failed.
        if self.episodes > 2 * len(numbers):
            raise ValueError(
                f"{self.folder / METADATA} says that there are {self.episodes:,} episodes, of which {len(numbers):,} are there: "
                "get the data set again"
            )
        names = (f"episode {number}" for number in range(self.episodes) if number not in numbers)
        return [
            f"{self.folder} has no {name}, of {self.episodes:,} that {METADATA} counts: copy it again" for name in names
        ]


def data_folder(place: Place) -> Place:
    """The folder `data` of a data set, which may be given itself."""
    # People name the data set's folder, or the one with its files.
    return place / "data" if (place / "data" / METADATA).exists() else place


def read_metadata(folder: Place) -> Metadata:
    """What metadata.json says.

    Raises:
        BrokenRecord: it is damaged, or has spaces that are not known.
    """
    path = folder / METADATA
    content = json_object(path)
    count: Any = content.get("total_episodes")
    if not is_count(count):
        raise BrokenRecord(f"{path} has no number of episodes (total_episodes): copy it again")
    spaces: dict[str, Declared] = {}
    for name, key in (("observation_space", "observations"), ("action_space", "actions")):
        if isinstance(content.get(name), str):
            where = f"{path}: {name}"
            with naming(where):
                # A text of JSON within the JSON: Minari serializes spaces so.
                spaces |= _declared(parsed_object(content[name], where), key, where)
    return Metadata(folder, str(content.get("data_format", "hdf5")), count, spaces)


def _declared(space: Any, key: str, where: str) -> dict[str, Declared]:
    """The spaces within a space, by their keys.

    Raises:
        BrokenRecord: one is not known, or says no shape.
    """
    kind, within = (space.get("type"), space.get("subspaces")) if isinstance(space, dict) else (None, None)
    if key.count("/") > DEEPEST:
        raise BrokenRecord(f"{where} has more than {DEEPEST} spaces in spaces")
    if kind == "Dict" and isinstance(within, dict):
        members = list(within.items())
    elif kind == "Tuple" and isinstance(within, list):
        members = [(str(number), one) for number, one in enumerate(within)]
    else:
        return {key: _leaf(kind, space, key, where)}
    # Keys as in the files, but for the numbers of a Tuple's parts, which the HDF5 layout calls _index_0.
    return {inner: leaf for name, one in members for inner, leaf in _declared(one, f"{key}/{name}", where).items()}


def _leaf(kind: Any, space: Any, key: str, where: str) -> Declared:
    # Gymnasium's spaces, by the names that Minari writes: Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict,
    # Tuple.
    if kind == "Text":
        return Declared((), "text")
    if kind == "Discrete":
        return Declared((), "number")
    if kind == "MultiDiscrete":
        return Declared(_nested(space.get("nvec")), "number")
    shape = space.get("n" if kind == "MultiBinary" else "shape") if kind in ("Box", "MultiBinary") else None
    shape = [shape] if isinstance(shape, int) else shape
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise BrokenRecord(
            f"{where}: the space of {key!r} is {kind!r} of the shape {shape}, which is not known: copy it again"
        )
    image = space.get("dtype") == "uint8" and len(shape) in (2, 3) and min(shape[:2]) >= SMALLEST_IMAGE
    image = image and (len(shape) == 2 or shape[2] in CHANNELS)
    return Declared(tuple(shape), "image" if image else "number")


def _nested(values: Any) -> Shape:
    """The shape of lists in lists, by the first of each."""
    return (len(values), *_nested(values[0] if values else None)) if isinstance(values, list) else ()


class Minari(Hdf5Set):
    """Episodes in the order of their numbers. Keys are the paths within an episode, of a Tuple's parts with the number alone,
    such as `observations/image` or `actions/0`; names of attributes; and `instruction`, the mission that an episode begins with.
    """

    format = "Minari HDF5"
    of_steps: ClassVar[tuple[str, ...]] = ("observations", "actions", "rewards", "terminations", "truncations")

    def __init__(self, place: Place, opening: Opening):
        # Before the episodes, whose fields need the spaces.
        folder = data_folder(place)
        self._metadata = read_metadata(folder)
        super().__init__(place, opening, [folder / MAIN], scan, "minari 1")
        # Numbers behind those that are there, so that these keep theirs.
        lost = self._metadata.lost({int(name.rpartition(b"_")[2]) for name in self._names})
        self._broken |= dict(enumerate(lost, start=len(self)))

    @classmethod
    def matches(cls, place: Place) -> bool:
        """See `EpisodeSet.matches`."""
        folder = data_folder(place)
        return (folder / METADATA).exists() and (folder / MAIN).exists()

    @property
    def files(self) -> list[Place]:
        """See `EpisodeSet.files`."""
        return [self._metadata.folder / METADATA, *super().files]

    def key(self, path: str) -> str:
        """See `Hdf5Set.key`."""
        # Only whole parts of a path: a key of a Dict may contain `_index_0`.
        return re.sub(r"(?<=/)_index_([0-9]+)(?=/|$)", r"\1", path)

    def surplus(self, key: str) -> int:
        """See `Hdf5Set.surplus`."""
        # A step more than actions: the observation that `reset` gave.
        return int(key.partition("/")[0] in ("observations", "infos"))

    def declared(self, field: Field, array: StoredArray, where: str) -> Field:
        """See `Hdf5Set.declared`."""
        space = self._metadata.spaces.get(field.key)
        if space is None:
            return field
        # Files of JPEG that have the same length by chance.
        if space.kind == "image" and field.dtype == "uint8" and len(field.shape) == 1:
            field = encoded_field(field.key, array, where)
        return space.agreed(field, where)

    def told(self, index: int, file: Opened, group: Any) -> Told:
        """See `Hdf5Set.told`."""
        where = self.where(index)
        found = {name: attribute(group, name, where) for name in group.attrs}
        for key in MISSIONS:
            if key in self._paths and "instruction" not in found:
                array = StoredArray(file, group, self._paths[key], where)
                if array.dtype.kind == "S" and len(array.shape) == 1 and array.rows:
                    found["instruction"] = str(array.read(range(1))[0])
        return {name: value for name, value in found.items() if value is not None}


def scan(place: Place) -> Arrays:
    """The names and lengths of the episodes of a file.

    Raises:
        BrokenRecord: it can't be read.
    """
    with opened(place, str(place)) as file:
        names = numbered(file.content, EPISODE, str(place))
        lengths, broken = [0] * len(names), {}
        for number, name in enumerate(names):
            where = f"{place}, {name}"
            try:
                with naming(where):
                    # Not `total_steps`, which says what should be there; rewards have exactly one value per step.
                    lengths[number] = StoredArray(file, file.content, f"{name}/rewards", where).rows
                if not lengths[number]:
                    broken[number] = f"{where} has no steps: take it out"
            except BrokenRecord as error:
                broken[number] = str(error)
        return scanned(names, lengths, broken)
