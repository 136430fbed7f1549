"""Documents in data sets of TensorFlow Datasets, such as coco_captions: a record is an image with its text, or a text alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from generalist.data.files import DocumentError, decoded
from generalist.data.formats.documents import (
    IMAGE_NAMES,
    TEXT_NAMES,
    DocumentOpening,
    NumberedDocuments,
    Numbering,
    Part,
    folders,
)
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.places import Place
from generalist.data.formats.records import checked_text
from generalist.data.formats.rlds import read_record, shard_records
from generalist.data.formats.tfds_folder import INFO, is_tfds, open_tfds
from generalist.data.formats.tfrecord import Record
from generalist.data.images import Encoded


class TfdsDocuments(NumberedDocuments):
    """One split of a data set."""

    format = "TFDS"

    def __init__(self, place: Place, opening: DocumentOpening):
        super().__init__(place, opening)
        try:
            # Its errors are of other types, since RLDS is read through it too.
            folder = open_tfds(place)
            shards = folder.split(opening.split)
        except (ValueError, OSError) as error:
            raise DocumentError(str(error)) from error
        if "steps" in folder.features:
            raise DocumentError(f"{place} has episodes, no documents: set data.recorded.path to it")
        self._files = [file for file, _ in shards]
        if absent := [file for file in self._files if not file.exists()]:
            raise DocumentError(
                f"{place} lacks {len(absent)} of its {len(shards)} files, such as {absent[0]}: download them"
            )
        self._images, self._texts = _keys(folder.features, opening, place)
        self._indices = indexed(self._files, scan_records, kind="tfds", opening=opening)
        self._numbering = Numbering([len(one["offset"]) for one in self._indices])
        if not len(self):
            raise DocumentError(f"{place} has no record in its split {opening.split}")
        self.pairs = np.arange(len(self) if self._images and self._texts else 0)

    @classmethod
    def matches(cls, place: Place) -> bool:
        # Cheap looks first: `is_tfds` searches two levels of folders, which may be a million files.
        return place.is_dir() and ((place / INFO).exists() or bool(folders(place))) and is_tfds(place)

    def where(self, index: int) -> str:
        number, at = self._numbering.find(index)
        return f"{self._files[number]} record {at + 1}"

    def parts(self, index: int) -> list[Part]:
        number, at = self._numbering.find(index)
        where, arrays = self.where(index), self._indices[number]
        record = Record(int(arrays["offset"][at]), int(arrays["size"][at]))
        try:
            example = _example(read_record(self._files[number], record))
        except BrokenRecord as error:
            raise DocumentError(f"{where} can't be read ({error})") from error
        # A record may lack one of the two: it is a text or an image alone.
        images = example[self._images].bytes_list.value if self._images in example else []
        texts = [text for text in (example[self._texts].bytes_list.value if self._texts in example else []) if text]
        parts: list[Part] = [Encoded(bytes(image), f"{where}: its image") for image in images]
        if texts:  # of several captions each document shows one: its number decides which
            parts.append(checked_text(decoded(texts[index % len(texts)], where), where))
        if not parts:
            raise DocumentError(f"{where} has neither an image nor a text")
        return parts


def _keys(features: Any, opening: DocumentOpening, place: Place) -> tuple[str, str]:
    """The keys of the image and of the text: those of the settings, or else of a usual name; empty if there is none.

    Raises:
        DocumentError: there is neither.
    """
    import tensorflow_datasets as tfds

    leaves = dict(_leaves(features, ()))
    images = [key for key, feature in leaves.items() if isinstance(feature, tfds.features.Image)]
    texts = [key for key, feature in leaves.items() if isinstance(feature, tfds.features.Text)]
    chosen = []
    for setting, found, usual in (("image_column", images, IMAGE_NAMES), ("text_column", texts, TEXT_NAMES)):
        wanted = getattr(opening, setting)
        if wanted is not None and wanted not in found:
            raise DocumentError(f"{setting} = {wanted}, but {place} has {', '.join(found) or 'none of this kind'}")
        # coco_captions has its texts at captions/text: any part of a key may be the usual name.
        known = [key for name in usual for key in found if name in key.split("/")]
        chosen.append(wanted or next(iter(known), ""))
    if not any(chosen):
        raise DocumentError(f"{place} has {', '.join(leaves)}, of which none is known: set image_column or text_column")
    return chosen[0], chosen[1]


def _leaves(feature: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    import tensorflow_datasets as tfds

    # Such as a Sequence of captions: an Example has it flat, as a list.
    inner = getattr(feature, "feature", feature)  # of a sequence
    if isinstance(inner, tfds.features.FeaturesDict):
        for name in sorted(inner):
            yield from _leaves(inner[name], (*path, str(name)))
    else:
        yield "/".join(path), inner


def _example(content: bytes) -> Any:
    """The fields of a serialized tf.train.Example.

    Raises:
        BrokenRecord: it is none.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(content).features.feature
    except DecodeError as error:
        raise BrokenRecord(f"the record is no tf.train.Example ({error}): copy the file again") from error


def scan_records(file: Place) -> Arrays:
    """Where each record of a file is.

    Raises:
        DocumentError: the file is damaged, so that some can't be found.
    """
    try:
        found = [(record.offset, record.size) for record in shard_records(file)]
    except (BrokenRecord, OSError) as error:
        raise DocumentError(f"{file} can't be read ({error})" if str(file) not in str(error) else str(error)) from error
    offsets, sizes = np.array(found, np.int64).reshape(-1, 2).T
    return {"offset": offsets, "size": sizes}
