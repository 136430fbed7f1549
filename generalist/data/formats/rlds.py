"""RLDS (Ramos et al. 2021) as TFDS lays it out and Open X-Embodiment publishes it: one record per episode, in TFRecord or
ArrayRecord files, read in place without TensorFlow.

    steps/observation/...  steps/action  steps/is_last  ...       of every step
    episode_metadata/...                                          of the episode

Keys are those of the files without `steps/`.

RLDS marks the last step by `is_last`, with the final observation and a placeholder for an action. Most published data sets have a
real action there all the same. A last step is left out where all numbers of its action are zero or one is not finite.

Dimension key: T steps, N episodes, n numbers.
"""

import dataclasses
import functools
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Num, Shaped

from generalist.data.formats import tfrecord
from generalist.data.formats.episodes import EpisodeSet, Field, Opening, RawEpisode
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.places import Place, stamp
from generalist.data.formats.tfds_folder import TfdsFolder, is_tfds, open_tfds
from generalist.data.formats.tfrecord import Record
from generalist.envs.rlds_steps import is_ours

STEPS = "steps/"
LISTS = {"i": "int64_list", "u": "int64_list", "b": "int64_list", "f": "float_list", "S": "bytes_list"}
"""Kind of a NumPy type → where tf.train.Example keeps such values; `S` for texts, images and numbers stored as bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """How the values of a field are stored in an Example."""

    field: Field
    key: str
    """In the Example."""
    encoding: str = "none"
    """Of numbers: `none`, or `bytes` or `zlib` for raw bytes."""

    @property
    def kind(self) -> str:
        """Which of `LISTS` holds them."""
        is_number = self.field.kind == "number" and self.encoding == "none"
        return np.dtype(self.field.dtype).kind if is_number else "S"


class Rlds(EpisodeSet):
    """See the module. `files` are shards; those that are missing are lost records."""

    format: ClassVar[str] = "RLDS in TFRecord or ArrayRecord files (TFDS, Open X-Embodiment)"
    derived = ("is_first", "is_last")

    def __init__(self, place: Place, opening: Opening):
        super().__init__(place, opening)
        self._folder: TfdsFolder = open_tfds(place)
        # TFDS holds data sets of any kind; RLDS is those whose examples have a `steps` data set.
        if "steps" not in self._folder.features or not hasattr(self._folder.features["steps"], "feature"):
            raise ValueError(f"{self._folder.place} is not RLDS: it has no `steps`")
        self._stored, self.unread = described(self._folder.features)
        self.rate = self._folder.rate
        self.fields = {key: self._named(stored.field) for key, stored in self._stored.items()}
        shards = self._folder.split(opening.split)
        self._files = [file for file, _ in shards if file.exists()]
        missing = [(file, count) for file, count in shards if not file.exists()]
        # A reason per lost record, by the number that dataset_info.json has for the file.
        self._lost = [f"{file} is missing: download it" for file, count in missing for _ in range(count)]
        if not self._files:
            raise FileNotFoundError(f"{self._folder.place}: none of its {len(shards)} files is there: download them")
        # `action` may be a dictionary, as in many sets of Open X-Embodiment; its members are `action/...`.
        actions = tuple(one for key, one in self._stored.items() if key == "action" or key.startswith("action/"))
        if not any(one.field.kind == "number" for one in actions):
            raise ValueError(f"{self._folder.place} is not RLDS: its steps have no `action` of numbers")
        # In our own recordings the last step is a decision like any other.
        is_last = None if is_ours(self._folder.features) else self._stored.get("is_last")
        scan = functools.partial(scan_shard, actions=actions, is_last=is_last)
        # All that decides the number of steps: which fields are the action, their types, and whether the last
        # step may be dropped.
        kind = f"{self._folder.file_format} {[(one.key, one.field.dtype, one.field.shape) for one in actions]} {is_last is None}"
        self._place(indexed(self._files, scan, kind=kind, opening=opening), dict(shards))

    def _named(self, field: Field) -> Field:
        """A field with the names that the files say its numbers have."""
        names = self._folder.names.get(field.key, ())
        return dataclasses.replace(field, names=names) if field.shape == (len(names),) else field

    def _place(self, shards: list[Arrays], wanted: Mapping[Place, int]) -> None:
        """Where each episode is, of all shards in their order, and what was lost."""
        self._reasons: dict[int, str] = {}
        numbers = [len(arrays["steps"]) for arrays in shards]
        first = np.cumsum([0, *numbers])
        # (N,) each. Per episode some thirty bytes are in memory, whatever the size of the data.
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), numbers)
        self._offset = np.concatenate([arrays["offset"] for arrays in shards])
        self._size = np.concatenate([arrays["size"] for arrays in shards])
        self.lengths = np.concatenate([arrays["steps"] for arrays in shards]).astype(np.int64)
        for number, (file, arrays) in enumerate(zip(self._files, shards, strict=True)):
            for index, reason in zip(arrays["broken"].tolist(), arrays["reasons"].tolist(), strict=True):
                self._reasons[int(first[number]) + index] = str(reason)
            # Fewer records than described, or a damaged header behind the last one that was found.
            lost = wanted[file] - numbers[number]
            why = (
                str(arrays["end"])
                or f"{file} has {numbers[number]} records where {wanted[file]} should be: copy it again"
            )
            self._lost += [why] * max(0, lost) or ([why] if str(arrays["end"]) else [])

    @classmethod
    def matches(cls, place: Place) -> bool:
        """See `EpisodeSet.matches`."""
        return is_tfds(place)

    @property
    def files(self) -> list[Place]:
        """See `EpisodeSet.files`."""
        return self._files

    def broken(self) -> dict[int, str]:
        """See `EpisodeSet.broken`."""
        return self._reasons | dict(enumerate(self._lost, start=len(self)))

    def where(self, index: int) -> str:
        """See `EpisodeSet.where`."""
        what = "offset" if self._folder.file_format == "tfrecord" else "record"
        return f"{self._files[self._shard[index]]}, {what} {self._offset[index]}"

    def read(self, index: int, keys: Collection[str]) -> RawEpisode:
        """See `EpisodeSet.read`."""
        if index in self._reasons:
            raise BrokenRecord(self._reasons[index])
        file = self._files[self._shard[index]]
        content = read_record(file, Record(int(self._offset[index]), int(self._size[index])))
        wanted = [self._stored[key] for key in keys]
        try:
            found = parsed(content, wanted)
        except BrokenRecord as error:
            raise BrokenRecord(f"{self.where(index)}: {error}") from error
        steps = {one.field.key for one in wanted if one.field.level == "step"}
        count = int(self.lengths[index])
        return RawEpisode(
            # (T, ...); what is behind T is the closing step, which has an observation and no action.
            columns={key: column[:count] for key, column in found.items() if key in steps},
            values={key: value for key, value in found.items() if key not in steps},
            final={key: column[count:] for key, column in found.items() if key in steps and len(column) > count},
        )


def described(features: Any) -> tuple[dict[str, Stored], dict[str, str]]:
    """The fields of an episode, and the keys of those that are not read, with the reason.

    Args:
        features: `tfds.features.FeaturesDict` of an episode.
    """
    found: dict[str, Stored] = {}
    unread: dict[str, str] = {}
    for key, feature, is_step in _leaves(features, (), False):
        name = key.removeprefix(STEPS)
        try:
            found[name] = _stored(feature, key, name, "step" if is_step else "episode")
        except ValueError as error:
            unread[name] = str(error)
    return found, unread


def _leaves(feature: Any, path: tuple[str, ...], is_step: bool) -> Iterator[tuple[str, Any, bool]]:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        for name in sorted(feature):
            # Only the outermost `steps` is the sequence: data sets within steps are of a kind that is not read.
            inner, entered = feature[name], not path and name == "steps"
            inner = inner.feature if entered else inner
            yield from _leaves(inner, (*path, str(name)), is_step or entered)
    else:
        yield "/".join(path), feature, is_step


def _stored(feature: Any, key: str, name: str, level: Any) -> Stored:
    """How a feature's values are stored.

    Raises:
        ValueError: they are of a kind that is not read.
    """
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Text):
        return Stored(field=Field(key=name, kind="text", level=level), key=key)
    if isinstance(feature, tfds.features.Image):
        # Depth in 16 bits, or floats.
        if np.dtype(feature.np_dtype) != np.uint8:
            raise ValueError(f"its images have {np.dtype(feature.np_dtype)}, not 8 bits")
        return Stored(field=Field(key=name, kind="image", shape=feature.shape, dtype="uint8", level=level), key=key)
    if not isinstance(feature, tfds.features.Tensor):
        raise ValueError(f"it is a {type(feature).__name__}, of which no use is known")
    if feature.np_dtype in (object, str, bytes) or np.dtype(feature.np_dtype).kind in "OSU":
        if feature.shape:
            raise ValueError("it has several texts per step")
        return Stored(field=Field(key=name, kind="text", level=level), key=key)
    # Values of an open shape are stored in several keys (`ragged_flat_values`, `ragged_row_lengths_0`).
    if None in feature.shape:
        raise ValueError("its shape differs between steps")
    dtype, names = np.dtype(feature.np_dtype).name, getattr(feature, "names", None) or ()
    # TFDS has no public attribute for it. With `bytes` or `zlib`, each value's raw bytes are stored.
    encoding = getattr(getattr(feature, "_encoding", None), "value", "none")
    names = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    field = Field(key=name, kind="number", shape=feature.shape, dtype=dtype, level=level, names=names)
    return Stored(field=field, key=key, encoding=encoding)


def parsed(content: bytes, wanted: Collection[Stored]) -> dict[str, Any]:
    """Fields of a serialized tf.train.Example, by their keys.

    Raises:
        BrokenRecord: it is none, or a field is missing or of another type, shape or length.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(content).features.feature
    except DecodeError as error:
        raise BrokenRecord(f"the record is no tf.train.Example ({error}): copy the file again") from error
    found: dict[str, Any] = {}
    steps: dict[str, int] = {}
    for stored in wanted:
        # TFDS writes every feature, so that a missing one means damage, or another version of the description.
        if stored.key not in features:
            raise BrokenRecord(f"the field {stored.field.key!r} is missing")
        values = _values(features[stored.key], stored)
        if stored.field.level == "step":
            found[stored.field.key], steps[stored.field.key] = values, len(values)
        elif len(values) == 1:
            found[stored.field.key] = values[0]
        else:
            raise BrokenRecord(f"the field {stored.field.key!r} has {len(values)} values where an episode has one")
    # A flat Example has no length of its own: that of the episode is what all fields of steps agree on.
    if len(set(steps.values())) > 1:
        counted = ", ".join(f"{key} {count}" for key, count in steps.items())
        raise BrokenRecord(f"its fields have different numbers of steps: {counted}")
    return found


def _values(feature: Any, stored: Stored) -> Shaped[np.ndarray, "T ..."] | list[bytes]:
    """The values (T, ...) of a field in an Example; one of the episode has T = 1."""
    field, which = stored.field, feature.WhichOneof("kind")
    if which is not None and which != LISTS[stored.kind]:
        raise BrokenRecord(f"the field {field.key!r} has a {which}, where {LISTS[stored.kind]} should be")
    values = getattr(feature, which).value if which is not None else []
    if field.kind == "image":
        return [bytes(value) for value in values]
    if field.kind == "text":
        # As objects: NumPy's own type would pad all texts to the longest one.
        return np.array([_text(value, field.key) for value in values], object)
    shape = tuple(size or 0 for size in field.shape)
    count, dtype = int(np.prod(shape, dtype=np.int64)), np.dtype(field.dtype)
    if stored.encoding != "none":
        items = [_decompressed(value, stored, count * dtype.itemsize) for value in values]
        # (T, ...)
        return np.frombuffer(b"".join(items), dtype).reshape(len(items), *shape)
    # All that an Example has: float32 and int64. Wider types are stored as bytes.
    numbers = np.array(values, np.float32 if dtype.kind == "f" else np.int64)
    if count == 0 or len(numbers) % count:
        raise BrokenRecord(
            f"the field {field.key!r} has {len(numbers)} numbers, which are no multiple of its {count} per step"
        )
    return _cast(numbers, dtype, field.key).reshape(-1, *shape)


def _cast(numbers: Num[np.ndarray, "n"], dtype: np.dtype, key: str) -> Shaped[np.ndarray, "n"]:
    """Numbers in their declared type.

    Raises:
        BrokenRecord: one is outside of it.
    """
    if dtype.kind == "f" or not len(numbers):
        return numbers.astype(dtype)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if dtype != np.uint64 and not low <= numbers.min() <= numbers.max() <= high:
        raise BrokenRecord(
            f"the field {key!r} has numbers from {numbers.min()} to {numbers.max()}, which are no {dtype}"
        )
    return numbers.astype(dtype)


def _text(value: bytes, key: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenRecord(f"the field {key!r} is no UTF-8 text ({error})") from error


def _decompressed(value: bytes, stored: Stored, size: int) -> bytes:
    """The raw bytes of one value, of which no more than there should be are ever made."""
    if stored.encoding == "zlib":
        inflate = zlib.decompressobj()
        try:
            # One byte more shows that there are more.
            value = inflate.decompress(value, size + 1)
        except zlib.error as error:
            raise BrokenRecord(f"the field {stored.field.key!r} can't be decompressed ({error})") from error
    if len(value) != size:
        raise BrokenRecord(f"the field {stored.field.key!r} has {len(value)} bytes or more where {size} should be")
    return value


def read_record(file: Place, record: Record) -> bytes:
    """A record's payload, of a TFRecord file or by its number of an ArrayRecord file (which the offset then is).

    Raises:
        BrokenRecord: it is damaged.
    """
    if ".array_record" not in file.name:
        try:
            return tfrecord.payload(file, record)
        except OSError as error:
            raise BrokenRecord(f"{file} can't be read ({error}): copy it again") from error
    try:
        # The offset of an ArrayRecord's record is its number.
        return _array_reader(file, stamp(file)).read([record.offset])[0]
    except Exception as error:  # the C++ library's errors
        raise BrokenRecord(f"{file}, record {record.offset} can't be read ({error}): copy the file again") from error


@functools.lru_cache(maxsize=64)  # open files
def _array_reader(file: Place, _stamp: str) -> Any:
    """An open file; one that was written anew is opened anew."""
    from array_record.python import array_record_module

    # No reading ahead: episodes are read in a random order.
    return array_record_module.ArrayRecordReader(str(file), options="readahead_buffer_size:0")


def scan_shard(file: Place, *, actions: tuple[Stored, ...], is_last: Stored | None) -> Arrays:
    """The index of a shard of R records: `offset` and `size` int64 (R,), `steps` int32 (R,); `broken` int64 (B,), the numbers of
    those that can't be read, and `reasons` (B,) why; `end`, the reason why what follows could not be found, or empty."""
    offsets, sizes, steps = [], [], []
    broken: dict[int, str] = {}
    end = ""
    try:
        for number, record in enumerate(shard_records(file)):
            offsets.append(record.offset)
            sizes.append(record.size)
            try:
                # Each record is read once while indexing, since only its fields say how many steps it has; that
                # also checks every checksum.
                steps.append(_decisions(read_record(file, record), actions, is_last))
            except BrokenRecord as error:
                steps.append(0)
                where = f"{file}, {'record' if '.array_record' in file.name else 'offset'} {record.offset}"
                broken[number] = str(error) if str(file) in str(error) else f"{where}: {error}"
    except BrokenRecord as error:
        end = str(error)
    except OSError as error:
        end = f"{file} can't be read ({error}): copy it again"
    return {
        "offset": np.array(offsets, np.int64),
        "size": np.array(sizes, np.int64),
        "steps": np.array(steps, np.int32),
        "broken": np.array([*broken], np.int64),
        "reasons": np.array([*broken.values()], np.str_),
        "end": np.array(end, np.str_),
    }


def shard_records(file: Place) -> Iterator[Record]:
    """The records of a TFRecord file, or of an ArrayRecord file by their numbers.

    Raises:
        BrokenRecord: what follows can't be found.
        OSError: the file can't be read.
    """
    if ".array_record" not in file.name:
        yield from tfrecord.records(file)
        return
    if not isinstance(file, Path):
        raise BrokenRecord(f"{file}: ArrayRecord files are read from local folders only: copy the data set")
    try:
        count = _array_reader(file, stamp(file)).num_records()
    except Exception as error:
        raise BrokenRecord(f"{file} is no readable ArrayRecord file ({error}): copy it again") from error
    yield from (Record(number, 0) for number in range(count))


def _decisions(content: bytes, actions: tuple[Stored, ...], is_last: Stored | None) -> int:
    """How many of an episode's steps have an action."""
    found: Mapping[str, Any] = parsed(content, [*actions, *([is_last] if is_last is not None else [])])
    done = [found[one.field.key] for one in actions if one.field.kind == "number"]
    count = len(done[0])
    if not count or is_last is None:
        return count
    flags = np.asarray(found["is_last"]).reshape(-1)  # (T,)
    # Several episodes in a record would be trained on as one, with a jump between them.
    if flags[:-1].any():
        raise BrokenRecord(f"is_last marks step {int(flags.argmax())} of {count}: an episode per record is needed")
    return count - bool(flags[-1] and is_placeholder([column[-1] for column in done]))


def is_placeholder(action: Iterable[np.ndarray | np.generic]) -> bool:
    """Whether the numbers of a last step's action say that there is none: all are zero, or one is not finite."""
    numbers = [np.asarray(value, np.float64) for value in action]
    # Zero is also a real action, such as standing still: the price is one step at the end of such an episode.
    return all((value == 0).all() for value in numbers) or not all(np.isfinite(value).all() for value in numbers)
