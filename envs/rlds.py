"""Writing episodes: RLDS in the layout of TFDS (Ramos et al. 2021), in ArrayRecord files, without TensorFlow.

    <folder>/<suite>/<task>/1.0.0/
        dataset_info.json  features.json                 TFDS: names, shards, types
        metadata.json                                    ours: lengths of the episodes in stored order, seeds, settings, ...
        <name>-train.array_record-00000-of-00003         one record per episode

A record holds episode_id, task, instruction, success, return, and `steps`: observation (images as PNG), action (the expert's
choice), executed_action (what was done), reward, discount, is_first, is_last, is_terminal.

Dimension key: H height, W width, C channels of an image.
"""

import contextlib
import errno
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from generalist.envs.episodes import Episode
from generalist.envs.task import Task
from generalist.system.versions import stored_format
from generalist.tokenizers.part_rules import is_image

VERSION = "1.0.0"
FORMAT = 2
"""Of recordings. Raise it when files are laid out otherwise, or when the same settings give other data."""
Spaces = tuple[gym.Space, gym.Space]
"""Observation space and action space."""
PNG_LEVEL = 1  # a third of the default level's time, for files a few percent larger


def dataset_folder(folder: Path, task: Task) -> Path:
    """The folder of a task's data set."""
    return folder / task.suite / task.name.partition("/")[2] / VERSION


def dataset_name(task: Task) -> str:
    """The data set's name: TFDS allows letters, digits and underscores."""
    return re.sub(r"\W", "_", task.name).lower()


def shard_name(task: Task, index: int, count: int) -> str:
    """The name of file `index` of `count` of a data set."""
    return f"{dataset_name(task)}-train.array_record-{index:05d}-of-{count:05d}"


def features(spaces: Spaces) -> Any:
    """The `tfds.features.FeaturesDict` of episodes with these spaces."""
    import tensorflow_datasets as tfds

    observation, action = (feature(space) for space in spaces)
    flag, number = tfds.features.Scalar(np.bool_), tfds.features.Scalar(np.float32)
    # The names of RLDS, and `executed_action`. Unlike in RLDS, the last step is a decision (see `rlds_steps.decisions`).
    steps = {
        "observation": observation,
        "action": action,
        "executed_action": action,
        "reward": number,
        "discount": number,
        "is_first": flag,
        "is_last": flag,
        "is_terminal": flag,
    }
    return tfds.features.FeaturesDict(
        {
            "episode_id": tfds.features.Scalar(np.int64),
            "task": tfds.features.Text(),
            "instruction": tfds.features.Text(),
            "success": flag,
            "return": number,
            "steps": tfds.features.Dataset(steps),
        }
    )


def feature(space: gym.Space) -> Any:
    """The TFDS feature of a space's values; a Tuple's parts are named by their indices."""
    import tensorflow_datasets as tfds

    if is_image(space):
        return tfds.features.Image(shape=space.shape, encoding_format="png")  # lossless: pixels must come back exactly
    if isinstance(space, gym.spaces.Dict):
        return tfds.features.FeaturesDict({key: feature(part) for key, part in space.items()})
    if isinstance(space, gym.spaces.Tuple):
        return tfds.features.FeaturesDict({str(place): feature(part) for place, part in enumerate(space)})
    if isinstance(space, gym.spaces.Discrete):
        return tfds.features.Scalar(np.int64)
    if isinstance(space, gym.spaces.Text):
        return tfds.features.Text()
    encoding = "bytes" if _is_wide(space) else "none"
    return tfds.features.Tensor(shape=space.shape, dtype=space.dtype.type, encoding=encoding)


def _is_wide(space: gym.Space) -> bool:
    """Whether a space's numbers are stored as bytes: tf.train.Example holds only float32 and int64, which would round them."""
    return space.dtype in (np.float64, np.uint64)


def value(space: gym.Space, stored: Any) -> Any:
    """A value of the space from its TFDS form, in which a Tuple's parts are named by their indices and texts are bytes."""
    # Only the space's own keys: data sets of other tools may store more.
    if isinstance(space, gym.spaces.Dict):
        return {key: value(part, stored[key]) for key, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(value(part, stored[str(place)]) for place, part in enumerate(space))
    return stored.decode() if isinstance(stored, bytes) else stored


def _stack(space: gym.Space, values: Sequence[Any]) -> Any:
    """T values of a space as TFDS serializes them: one array (T, ...), or T byte strings for images, texts and wide numbers.

    Raises:
        ValueError: a value's shape differs from the space's.
    """
    if isinstance(space, gym.spaces.Dict):
        return {key: _stack(part, [value[key] for value in values]) for key, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return {str(place): _stack(part, [value[place] for value in values]) for place, part in enumerate(space)}
    if isinstance(space, gym.spaces.Text):
        return [str(value).encode() for value in values]
    # np.asarray would broadcast or nest silently and TFDS would store garbage.
    if any(np.shape(value) != space.shape for value in values):
        wrong = next(np.shape(value) for value in values if np.shape(value) != space.shape)
        raise ValueError(f"a value of {space} must have shape {space.shape}, got {wrong}")
    if is_image(space):
        return [png(value) for value in values]
    if _is_wide(space):
        return [np.asarray(value, space.dtype).tobytes() for value in values]
    return np.asarray(values, np.int64 if isinstance(space, gym.spaces.Discrete) else space.dtype)  # (T, ...)


def png(image: UInt8[np.ndarray, "H W C"]) -> bytes:
    """An image with 1, 3 or 4 channels as PNG."""
    buffer = io.BytesIO()
    # Pillow takes grey images without a channel axis.
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


class Serializer:
    """Turns a task's episodes into records.

    TFDS's serializer takes the stacked arrays directly; `features.encode_example` would take the steps one by one, at a
    hundred times the cost.
    """

    def __init__(self, task: Task, spaces: Spaces) -> None:
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        self._task, self._spaces = task, spaces
        self._serializer = ExampleSerializer(features(spaces).get_serialized_info())

    def __call__(self, episode: Episode) -> bytes:
        """An episode as a serialised record."""
        length, (observation, action) = len(episode.rewards), self._spaces
        index = np.arange(length)
        # A cut-off episode is not terminal: its future would have had rewards.
        terminal = (index == length - 1) & episode.terminated
        record = {
            "episode_id": episode.seed,
            "task": self._task.name,
            "instruction": episode.instruction,
            "success": bool(episode.score > 0) if self._task.only_successes else episode.terminated,
            "return": episode.rewards.sum(dtype=np.float32),
            "steps": {
                "observation": _stack(observation, episode.observations),
                "action": _stack(action, episode.actions),
                "executed_action": _stack(action, episode.executed),
                "reward": episode.rewards,
                "discount": 1.0 - terminal.astype(np.float32),
                "is_first": index == 0,
                "is_last": index == length - 1,
                "is_terminal": terminal,
            },
        }
        return self._serializer.serialize_example(record)


class ShardWriter:
    """Writes a file of records, one by one; its index is read back when it is closed.

    Raises:
        OSError: the disk is full, or can't be written for another reason.
    """

    def __init__(self, path: Path) -> None:
        from array_record.python import array_record_module

        self._path, self._count, self._module = path, 0, array_record_module
        with self._named_errors():
            # As TFDS does: random access by record.
            self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")

    def write(self, record: bytes) -> None:
        """Appends a record."""
        with self._named_errors():
            self._writer.write(record)
        self._count += 1

    def close(self) -> None:
        """Ends the file and checks it."""
        # ArrayRecord's writer reports a full disk only by an incomplete file, so the index is read back.
        with self._named_errors():
            self._writer.close()
            reader = self._module.ArrayRecordReader(str(self._path))
            whole = reader.num_records() == self._count
            reader.close()
        if not whole:
            raise OSError(
                errno.EIO, "the file is incomplete on the disk: check the disk and run again", str(self._path)
            )

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError, IndexError) as error:  # the C++ library does not report the cause
            raise OSError(errno.EIO, f"cannot write ({error})", str(self._path)) from error


def write_shard(path: Path, records: Sequence[bytes]) -> None:
    """Writes a file of records and reads its index back to check it.

    Raises:
        OSError: the disk is full, or cannot be written for another reason.
    """
    _check_room(path, sum(map(len, records)))
    writer = ShardWriter(path)
    for record in records:
        writer.write(record)
    writer.close()


def _check_room(path: Path, needed: int) -> None:
    """Tries to reserve the space, since a full disk gives no clear error later."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, needed + 2**16)  # more than the records: the file also has an index
        file.truncate(0)  # only a test: the writer starts with an empty file


def write_dataset_files(
    folder: Path, task: Task, spaces: Spaces, shards: Sequence[tuple[int, int]], metadata: Mapping[str, Any]
) -> None:
    """Writes the files that make a folder of shards a TFDS data set.

    Args:
        folder: folder that already holds the shards.
        task: the recorded task.
        spaces: its observation and action space.
        shards: (episodes, bytes) of each file.
        metadata: kept as metadata.json, with the format's number.
    """
    write_info(
        folder,
        name=dataset_name(task),
        features=features(spaces),
        description=f"{task.name}: {task.instruction}. Episodes of an expert.",
        shards=shards,
        metadata={"format": FORMAT, **metadata},
    )


def write_info(
    folder: Path,
    *,
    name: str,
    features: Any,
    description: str,
    shards: Sequence[tuple[int, int]],
    metadata: Mapping[str, Any],
    split: str = "train",
) -> None:
    """Writes the descriptions with which TFDS reads a folder of ArrayRecord files.

    Args:
        name: of the data set, of letters, digits and underscores; its files begin with it.
        features: `tfds.features.FeaturesDict` of an episode.
        shards: (episodes, bytes) of each file.
        metadata: kept as metadata.json.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import file_adapters

    # The parts of TFDS that describe a data set; a builder would need a class per data set.
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=features, description=description, metadata=tfds.core.MetadataDict(metadata)
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    described = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[episodes for episodes, _ in shards],
        num_bytes=sum(size for _, size in shards),
        filename_template=template,
    )
    info.set_splits(tfds.core.splits.SplitDict([described]))
    info.write_to_directory(folder)


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """The metadata of a data set folder; None if there is no whole one.

    Raises:
        FormatError: it was recorded in a newer format than this version reads.
    """
    path = folder / "metadata.json"
    try:
        # Without dataset_info.json TFDS cannot read the folder.
        (folder / "dataset_info.json").stat()
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    stored_format(metadata, FORMAT, path)
    return metadata
