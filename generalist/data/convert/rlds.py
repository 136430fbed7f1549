"""Episodes as RLDS in ArrayRecord files, with the descriptions that TFDS reads.

    TARGET/1.0.0/dataset_info.json  features.json  metadata.json (rate, names of numbers)
    TARGET/1.0.0/NAME-SPLIT.array_record-00000-of-00003

A last step with an action that reads as none (all zeros, or not finite) would be taken for the closing step of RLDS, which holds
only an observation: behind such a step a closing step is written, with the source's final observation or, for want of one, the
last one again.

Dimension key: T steps of an episode as written.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from generalist.data.convert.images import file_of, loaded
from generalist.data.convert.naming import INSTRUCTION, REWARD, TERMINAL, Kept
from generalist.data.convert.parts import Job, each_episode
from generalist.data.convert.source import Source, column_of, opened, text
from generalist.data.convert.work import make_part, place_file
from generalist.data.formats.columns import Column
from generalist.data.formats.episodes import RawEpisode
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.rlds import is_placeholder
from generalist.envs.rlds import VERSION, ShardWriter, write_info

RECORDS = "records.array_record"
WIDE = ("float64", "uint64")
"""Types that tf.train.Example would round; they are stored as bytes."""


def write_part(job: Job) -> dict[str, Any]:
    """Makes a part: a file of records. Returns what was noted of it."""
    source = opened(job.settings)

    def fill(folder: Path) -> dict[str, Any]:
        # A part is a shard: it is linked into the result as it is.
        writer, serialize = ShardWriter(folder / RECORDS), Serializer(source)
        noted = each_episode(job, source, lambda raw: writer.write(serialize(raw)))
        writer.close()
        return noted

    return make_part(job.folder, fill)


def assemble(source: Source, work: Path, target: Path, parts: list[dict[str, Any]]) -> None:
    """Puts the parts' files into the result and describes them."""
    folder, name = work / "result" / VERSION, dataset_name(target)
    # TFDS takes other characters of a split's name for an expression, such as `train[:10]`.
    split = re.sub(r"\W", "_", source.settings.split, flags=re.ASCII)
    # A part all of whose episodes are broken makes no shard, and shards are numbered without a gap.
    whole = [(number, part) for number, part in enumerate(parts) if part["episodes"]]
    for place, (number, _) in enumerate(whole):
        file = f"{name}-{split}.array_record-{place:05d}-of-{len(whole):05d}"
        place_file(work / "parts" / f"{number:05d}" / RECORDS, folder / file)
    named = {one.key: list(one.field.names) for one in source.kept if one.field.names}
    write_info(
        folder,
        name=name,
        features=features(source),
        description=f"Converted from {source.episodes.format}.",
        shards=[(len(part["episodes"]), part["files"][RECORDS]["bytes"]) for _, part in whole],
        metadata={"names": named} | ({"rate": source.rate} if source.rate is not None else {}),
        split=split,
    )


def dataset_name(target: Path) -> str:
    """The data set's name: TFDS allows letters, digits and underscores, beginning with a letter."""
    name = re.sub(r"\W", "_", target.absolute().name, flags=re.ASCII).lower()
    return name if re.match("[a-z]", name) else f"data_{name}"


def features(source: Source) -> Any:
    """The `tfds.features.FeaturesDict` of an episode."""
    import tensorflow_datasets as tfds

    flag = tfds.features.Scalar(np.bool_)
    steps: dict[str, Any] = {"is_first": flag, "is_last": flag, TERMINAL: flag, INSTRUCTION: tfds.features.Text()}
    episode: dict[str, Any] = {}
    for one in source.kept:
        # A field of the episode stays outside the steps, unlike in LeRobot.
        (steps if one.field.level == "step" else episode)[one.key] = _feature(one)
    return tfds.features.FeaturesDict({**nested(episode), "steps": tfds.features.Dataset(nested(steps))})


def _feature(one: Kept) -> Any:
    import tensorflow_datasets as tfds

    if one.field.kind == "text":
        return tfds.features.Text()
    if one.field.kind == "image":
        return tfds.features.Image(shape=one.shape, encoding_format=one.encoding)
    encoding = "bytes" if one.field.dtype in WIDE else "none"
    # TFDS's Scalar takes no encoding.
    if not one.shape and encoding == "none":
        return tfds.features.Scalar(np.dtype(one.field.dtype).type)
    return tfds.features.Tensor(shape=one.shape, dtype=np.dtype(one.field.dtype).type, encoding=encoding)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by keys with slashes, as dictionaries within each other."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *folders, name = key.split("/")
        inner = found
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = value
    return found


class Serializer:
    """Turns episodes into records."""

    def __init__(self, source: Source):
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        self._source = source
        # TFDS's own, so that TFDS reads what is written.
        self._serializer = ExampleSerializer(features(source).get_serialized_info())

    def __call__(self, raw: RawEpisode) -> bytes:
        """An episode as a serialized tf.train.Example.

        Raises:
            BrokenRecord: an image can't be read, or a value has another shape than it should.
        """
        # Either the source has an observation after the last action, or the last action would be taken for none.
        closes = bool(raw.final) or self._reads_as_closing(raw)
        length = len(raw) + closes
        # (T,) or (T + 1,)
        index = np.arange(length)
        steps: dict[str, Any] = {"is_first": index == 0, "is_last": index == length - 1}
        told = self._source.instructions(raw)
        # The closing step repeats the last text.
        steps[INSTRUCTION] = [one.encode() for one in (*told, *told[-1:] * closes)]
        steps[TERMINAL] = (index == length - 1) & self._is_terminal(raw)
        episode: dict[str, Any] = {}
        for one in self._source.kept:
            values = _stored(column_of(raw, one.field.key), one)
            if one.field.level == "episode":
                # A single value, (1, ...) to (...)
                episode[one.key] = values[0]
            else:
                steps[one.key] = _extended(values, _closing(raw, values, one)) if closes else values
        # TFDS joins the keys again with slashes, but wants them nested.
        example = self._serializer.get_tf_example({**nested(episode), "steps": nested(steps)})
        return example.SerializeToString(deterministic=True)  # an interrupted conversion gives the same files

    def _reads_as_closing(self, raw: RawEpisode) -> bool:
        """Whether a reader would take the last step for one without an action."""
        kept = self._source.kept
        # Readers look at the numbers called `action` or `action/...`, wherever those came from.
        named = [one for one in kept if one.field.kind == "number" and f"{one.key}/".startswith("action/")]
        return is_placeholder(
            [np.asarray(raw.columns[one.field.key])[-1] for one in named if one.field.level == "step"]
        )

    def _is_terminal(self, raw: RawEpisode) -> bool:
        """Whether the episode ended by itself, as far as the source says."""
        # Of the last step: flags before it would mean several episodes in one.
        return any(bool(np.any(np.asarray(column_of(raw, key))[-1])) for key in self._source.terminal)


def _closing(raw: RawEpisode, values: Any, one: Kept) -> Any:
    """The value of a closing step, (1, ...): zeros for an action, else the final one, or no reward, or the last one again."""
    zeros = [bytes(len(values[-1]))] if isinstance(values, list) else np.zeros_like(values[-1:])
    if one.field.kind == "number" and (one.is_action or one.key.startswith("action/")):
        return zeros  # readers know the step by them, whatever the source has there
    if one.field.key in raw.final:
        return _stored(raw.final[one.field.key], one)
    # Nothing was earned by an observation alone: a copy would change the return.
    return zeros if one.key == REWARD else values[-1:]


def _extended(values: Any, last: Any) -> Any:
    return [*values, *last] if isinstance(values, list) else np.concatenate([values, last])


def _stored(column: Column, one: Kept) -> Any:
    """The values of a field as TFDS serializes them: an array (T, ...), or T byte strings for images, texts and wide numbers.

    Raises:
        BrokenRecord: an image can't be read, or a value has another shape or type.
    """
    if one.field.kind == "image":
        return [file_of(image) for image in loaded(column, one.shape)]
    values = np.asarray(column)
    if one.field.kind == "text":
        return [text(value).encode() for value in values.reshape(-1)]
    shape, dtype = (len(values), *(size or 0 for size in one.shape)), np.dtype(one.field.dtype)
    if values.dtype.name != dtype.name or values.size != np.prod(shape):
        raise BrokenRecord(f"{one.field.key!r} is {values.dtype} {values.shape}, where {dtype} {shape} should be")
    values = values.astype(dtype, copy=False).reshape(shape)
    return [value.tobytes() for value in values] if dtype.name in WIDE else values
