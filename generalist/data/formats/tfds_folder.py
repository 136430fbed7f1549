"""A data set's folder as TFDS lays it out: `dataset_info.json` with splits and shards, `features.json` with types.

TFDS itself would import whatever module a features.json names; here only its own feature classes are allowed.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from generalist.data.formats.places import Place, inside

INFO, FEATURES, METADATA = "dataset_info.json", "features.json", "metadata.json"
FILE_FORMATS = ("tfrecord", "array_record")
# TFDS's own, of data sets without `filepathTemplate`, as older ones are.
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
# The dot at the end matters: a module `tensorflow_datasets.core.features_evil` would begin so too.
TRUSTED = "tensorflow_datasets.core.features."
LARGEST_JSON = 2**26
"""Bytes of a description: the largest published ones have a few megabytes."""
MOST_SHARDS, MOST_RECORDS = 99_999, 2**25
"""Of a split, whose shards are numbered with five digits, and of a shard: each file that is missing is named per record."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsFolder:
    """What the two descriptions say."""

    place: Place
    """The folder with the descriptions."""
    name: str
    file_format: str
    """`tfrecord` or `array_record`."""
    shards: Mapping[str, list[tuple[Place, int]]]
    """Split → its files in order, each with the number of its records."""
    features: Any
    """`tfds.features.FeaturesDict`."""
    rate: float | None = None
    """Steps per second, where `metadata.json` has a `rate`."""
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Of a vector's numbers by the field's key, where `metadata.json` has them."""

    def split(self, wanted: str) -> list[tuple[Place, int]]:
        """The files of a split; of the only one, whatever its name.

        Raises:
            ValueError: there is no such split.
        """
        if wanted in self.shards:
            return self.shards[wanted]
        if len(self.shards) == 1:
            return next(iter(self.shards.values()))
        names = ", ".join(self.shards) or "none"
        raise ValueError(f"{self.place} has no split {wanted!r}: its splits are {names}; name one of them")


def is_tfds(place: Place) -> bool:
    """Whether a folder, or a folder of versions in it, is a TFDS data set."""
    return place.is_dir() and any((folder / FEATURES).exists() for folder in _described(place))


def open_tfds(place: Place) -> TfdsFolder:
    """The data set in a folder: its version's folder, or one above, of which the newest version is taken.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: there are several configurations, or a description is damaged, or of a file format that is not read.
    """
    folder = _version(place)
    info, features = (_json(folder / name) for name in (INFO, FEATURES))
    try:
        name, format_ = str(info["name"]), str(info.get("fileFormat", "tfrecord"))
        if format_ not in FILE_FORMATS:
            raise ValueError(
                f"its files are {format_}, of which only {' and '.join(FILE_FORMATS)} are read: convert it"
            )
        shards = {
            str(split["name"]): list(_shards(folder, name, format_, split)) for split in info.get("splits", []) if split
        }
        # Before TFDS sees it.
        check_trusted(features)
        import tensorflow_datasets as tfds  # nearly a second to import

        described = tfds.features.FeatureConnector.from_json(features)
    except Exception as error:  # TFDS ends in many ways on a damaged description
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{folder} is no readable TFDS data set ({reason:.300}): copy its descriptions again"
        ) from error
    if not isinstance(described, tfds.features.FeaturesDict):
        raise ValueError(f"{folder / FEATURES} describes no dictionary of features: copy it again")
    rate, names = _metadata(folder / METADATA)
    return TfdsFolder(
        place=folder, name=name, file_format=format_, shards=shards, features=described, rate=rate, names=names
    )


def _metadata(path: Place) -> tuple[float | None, dict[str, tuple[str, ...]]]:
    """What our conversions add to a data set's description: its rate and the names of numbers.

    Raises:
        ValueError: the file is damaged, or its rate is none.
    """
    stored = _json(path) if path.exists() else {}
    rate, names = stored.get("rate"), stored.get("names")
    # `metadata.json` may also come from TFDS's builder with keys of its own; only these two are looked at.
    known = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf
    if rate is not None and not known:
        raise ValueError(f"{path}: 'rate' must be steps per second above 0, got {rate!r:.60}: correct it")
    listed = names.items() if isinstance(names, dict) else ()
    return rate, {key: tuple(map(str, several)) for key, several in listed if isinstance(several, list)}


def _described(place: Place) -> Iterator[Place]:
    """Folders with both descriptions: the place itself, `VERSION`, or `CONFIG/VERSION` in it."""
    if (place / INFO).exists():
        yield place
        return
    # No deeper: a search of all folders could take hours in a bucket.
    for pattern in (f"*/{INFO}", f"*/*/{INFO}"):
        yield from (found.parent for found in place.glob(pattern))


def _version(place: Place) -> Place:
    found = [folder for folder in _described(place) if (folder / FEATURES).exists()]
    if not found:
        raise FileNotFoundError(f"{place} holds no TFDS data set: give the folder with {INFO} and {FEATURES} in it")
    parents = sorted({str(folder.parent) for folder in found})
    if len(parents) > 1:
        raise ValueError(f"{place} holds several data sets: name one of {', '.join(parents)}")
    # By numbers: 0.10.0 is newer than 0.9.0.
    return max(found, key=lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)])


def _json(path: Place) -> Any:
    # Before it is read.
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has more than {LARGEST_JSON:,} bytes, which no description has: copy it again")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, got {value!r:.60}: copy it again")
    return value


def _shards(folder: Place, name: str, format_: str, split: Mapping[str, Any]) -> Iterator[tuple[Place, int]]:
    # Protocol buffers write int64 as text in JSON: "135".
    lengths = [int(length) for length in split.get("shardLengths", [])]
    if len(lengths) > MOST_SHARDS or any(not 0 <= length <= MOST_RECORDS for length in lengths):
        raise ValueError(
            f"the split {split['name']} has {len(lengths):,} shards with {min(lengths)} to {max(lengths):,} records, where at "
            f"most {MOST_SHARDS:,} with 0 to {MOST_RECORDS:,} are possible"
        )
    template = str(split.get("filepathTemplate") or TEMPLATE)
    for index, length in enumerate(lengths):
        values = {
            "DATASET": name,
            "SPLIT": str(split["name"]),
            "FILEFORMAT": format_,
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": f"{len(lengths):05d}",
            "SHARD_X_OF_Y": f"{index:05d}-of-{len(lengths):05d}",
        }
        yield inside(folder, _filled(template, values), folder / INFO), length


def _filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its places filled; not by str.format, which would look up attributes of whatever it is given."""
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)


def check_trusted(value: Any) -> None:
    """Whether only TFDS's own features are named, at any depth.

    Raises:
        ValueError: another class is, whose module would be imported.
    """
    if isinstance(value, dict):
        # `type` names the class in files of older versions, and other things elsewhere: only a name with a dot
        # leads to a module.
        for key in ("pythonClassName", "type"):
            named = value.get(key)
            if isinstance(named, str) and ("." in named or key == "pythonClassName") and not named.startswith(TRUSTED):
                raise ValueError(
                    f"{FEATURES} names the class {named}, which would be run: only TFDS's own features are read"
                )
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_trusted(one)
