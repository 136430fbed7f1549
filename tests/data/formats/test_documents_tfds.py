"""Documents in data sets of TensorFlow Datasets."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from document_checks import content, opened
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from generalist.data.files import DocumentError
from generalist.data.formats.tfrecord import framed

FEATURES = {
    "image": tfds.features.Image(),
    "image/filename": tfds.features.Text(),
    "captions": tfds.features.Sequence({"id": tfds.features.Scalar(np.int64), "text": tfds.features.Text()}),
}


def example(number: int, captions: list[str]) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 6), (10 * number, 0, 0)).save(written, "PNG")
    one = tf_example_pb2.Example()
    fields = one.features.feature
    fields["image"].bytes_list.value.append(written.getvalue())
    fields["image/filename"].bytes_list.value.append(b"name.png")
    fields["captions/text"].bytes_list.value.extend(caption.encode() for caption in captions)
    fields["captions/id"].int64_list.value.extend(range(len(captions)))
    return one.SerializeToString()


def write(folder: Path, kind: str, examples: list[bytes]) -> Path:
    """A data set with one shard; returns that."""
    folder.mkdir(parents=True, exist_ok=True)
    tfds.features.FeaturesDict(FEATURES).save_config(folder)
    split = {"name": "train", "shardLengths": [str(len(examples))]}
    (folder / "dataset_info.json").write_text(json.dumps({"name": "small", "fileFormat": kind, "splits": [split]}))
    shard = folder / f"small-train.{kind}-00000-of-00001"
    if kind == "tfrecord":
        shard.write_bytes(b"".join(map(framed, examples)))
    else:
        writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
        for one in examples:
            writer.write(one)
        writer.close()
    return shard


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_images_with_captions(tmp_path: Path, kind: str):
    write(tmp_path / "small/1.0.0", kind, [example(1, ["one", "uno"]), example(2, ["two", "due"])])
    for place in (tmp_path / "small", tmp_path / "small/1.0.0"):
        found = opened(place, index=tmp_path / "index")
        assert found.format == "TFDS" and content(found) == [[1, "one"], [2, "due"]]
        assert found.pairs.tolist() == [0, 1] and found.texts(1) == ["due"]
    names = opened(tmp_path / "small", text_column="image/filename")
    assert names.texts(0) == ["name.png"]


def test_records_and_data_sets_that_are_refused(tmp_path: Path):
    folder = tmp_path / "small/1.0.0"
    shard = write(folder, "tfrecord", [example(1, ["one"]), b"no example", example(3, ["three"])])
    found = opened(folder)
    with pytest.raises(DocumentError, match=r"00000-of-00001 record 2 can't be read .* no tf\.train\.Example"):
        found.parts(1)
    sound = bytearray(shard.read_bytes())
    sound[40] ^= 1
    shard.write_bytes(sound)
    with pytest.raises(DocumentError, match=r"record 1 can't be read .* does not fit its checksum"):
        opened(folder).parts(0)
    sound[0] ^= 1
    shard.write_bytes(sound)
    with pytest.raises(DocumentError, match="the length of a record does not fit its checksum"):
        opened(folder)
    with pytest.raises(DocumentError, match=r"text_column = text, but .* has captions/text, image/filename"):
        opened(folder, text_column="text")
    shard.unlink()
    with pytest.raises(DocumentError, match="lacks 1 of its 1 files"):
        opened(folder)
