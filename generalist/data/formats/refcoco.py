"""RefCOCO, RefCOCO+ and RefCOCOg as they are published (Yu et al., 2016; Mao et al., 2016): expressions that refer to one object.

refcoco/refs(unc).p     a pickle, which is not run: [{"ann_id", "image_id", "split", "sentences": [{"sent": ...}, ...]}, ...]
refcoco/instances.json  {"images": [{"id", "file_name", "height", "width"}], "annotations": [{"id", "image_id", "bbox"}], ...}
train2014/COCO_train2014_000000000009.jpg

A set may be divided in several ways: `unc`, `google`, `umd`. The images of `val` and of the tests are left out of the training of
all sets that are opened together, since RefCOCOg trains on images that RefCOCO tests with; and so are images that evaluations of
Visual Genome and GQA show.

Dimension key: R referred objects, S sentences, A annotations, I images.
"""

import dataclasses
import re
from collections.abc import Iterable, Set
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from generalist.data.files import DocumentError, named, parsed, whole
from generalist.data.formats.documents import DocumentOpening, folders
from generalist.data.formats.fields import check_no_places, check_once, field, number, packed, unpacked
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.json_list import elements
from generalist.data.formats.places import Place
from generalist.data.formats.plain_pickle import plain_pickle
from generalist.data.grounded import Grounded, GroundedSet, Region, pixel_box
from generalist.data.images import Size

DIVISIONS = ("unc", "umd", "google")
"""By whom the published splits are; the first that is there is taken."""
SPLITS = ("train", "val", "test", "testA", "testB")
TRAIN = SPLITS.index("train")
_REFS = re.compile(r"refs\((\w+)\)\.p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """What the two files of a set hold."""

    name: str
    refs_file: Place
    instances_file: Place
    images: Place
    """Folder of the images."""
    refs: Arrays
    instances: Arrays

    @classmethod
    def read(cls, folder: Place, opening: DocumentOpening, division: str | None) -> "Annotations":
        """Reads a set's files, or their index.

        Raises:
            DocumentError: one is missing or damaged, or there is no such division.
        """
        refs, instances = _refs_file(folder, division), folder / "instances.json"
        if not instances.exists():
            raise DocumentError(f"there is no {instances}: put it there as it is published with {refs.name}")
        (found,) = indexed([refs], scan_refs, kind="refcoco-refs checked", opening=opening)
        (known,) = indexed([instances], scan_instances, kind="refcoco-instances once", opening=opening)
        return cls(
            name=folder.absolute().name,
            refs_file=refs,
            instances_file=instances,
            images=_images(folder, opening.images),
            refs=found,
            instances=known,
        )

    @property
    def evaluated(self) -> Int[np.ndarray, "I"]:
        """Numbers of the images of `val` and the tests."""
        return np.unique(self.refs["image"][self.refs["split"] != TRAIN])


class RefSet(GroundedSet):
    """One set in one division."""

    def __init__(self, read: Annotations, evaluated: Int[np.ndarray, "I"]):
        self.name, self._read = read.name, read
        codes = read.refs["split"]
        self.splits = tuple(SPLITS[code] for code in sorted(set(codes.tolist())) if code != TRAIN)
        # (R,): where each object's annotation and image stand in the instances.
        self._annotation = self._matched("annotation", "ann_id")
        self._image = self._matched("image", "image_id")
        wrong = read.instances["annotation_image"][self._annotation] != read.refs["image"]
        if wrong.any():
            raise DocumentError(
                f"{self._where(int(wrong.argmax()))}: its ann_id is of another image than its image_id: get both files again"
            )
        self._check_boxes()
        self._shown = {split: self._images_of(codes == SPLITS.index(split)) for split in self.splits} | {
            "train": self._images_of((codes == TRAIN) & ~np.isin(read.refs["image"], evaluated))
        }

    @property
    def evaluated(self) -> Int[np.ndarray, "I"]:
        """Numbers of COCO's images that its own evaluations show."""
        return self._read.evaluated

    def leave_out(self, numbers: Set[int]) -> None:
        """Does not train on these images of COCO either."""
        images = self._read.refs["image"]
        self._shown["train"] = [objects for objects in self._shown["train"] if int(images[objects[0]]) not in numbers]

    @property
    def files(self) -> list[Place]:
        return [self._read.refs_file, self._read.instances_file]

    def count(self, split: str) -> int:
        return len(self._shown[split])

    def file(self, split: str, index: int) -> Place:
        at = int(self._image[self._shown[split][index][0]])
        name = unpacked(self._read.instances["names"], self._read.instances["name_ends"], at)
        return named(self._read.images, name, f"{self._read.instances_file} image {at + 1}")

    def size(self, split: str, index: int) -> Size | None:
        tall, wide = self._read.instances["size"][self._image[self._shown[split][index][0]]].tolist()
        return tall, wide

    def image(self, split: str, index: int) -> Grounded:
        objects = self._shown[split][index]
        return Grounded(
            image=self.file(split, index),
            regions=tuple(region for one in objects for region in self._regions(int(one))),
            where=self._where(int(objects[0])),
        )

    def notes(self) -> list[str]:
        found = []
        if empty := int(self._read.refs["empty"]):
            found.append(f"{self._read.refs_file} has {empty:,} expressions without a word, which are left out")
        train = self._images_of(self._read.refs["split"] == TRAIN)
        if without := len(train) - self.count("train"):
            found.append(
                f"{without:,} of {len(train):,} training images of {self.name} are left out, since an evaluation shows them"
            )
        return found

    @cached_property
    def _sentences(self) -> Int[np.ndarray, "R1"]:
        """Where each object's sentences begin; those of an object follow each other."""
        return np.searchsorted(self._read.refs["owner"], np.arange(len(self._read.refs["image"]) + 1))

    def _regions(self, number: int) -> Iterable[Region]:
        instances, at = self._read.instances, int(self._annotation[number])
        tall, wide = instances["size"][self._image[number]].tolist()
        x, y, width, height = instances["box"][at].tolist()
        box = pixel_box(x, y, width, height, of=(tall, wide))
        assert box is not None, "boxes are checked when the set is opened"
        refs = self._read.refs
        for sentence in range(*self._sentences[number : number + 2].tolist()):
            yield Region(box=box, phrase=unpacked(refs["text"], refs["ends"], sentence))

    def _check_boxes(self) -> None:
        """Checks that something of each object is within its image.

        Raises:
            DocumentError: an object is elsewhere.
        """
        instances = self._read.instances
        tall, wide = instances["size"][self._image].T  # (R,) each
        x, y, width, height = instances["box"][self._annotation].T
        # The rule of `pixel_box`, for all at once.
        bottom, right = np.minimum(tall, y + height), np.minimum(wide, x + width)
        outside = ~((np.maximum(0, y) < bottom) & (np.maximum(0, x) < right))
        if outside.any():
            one = int(outside.argmax())
            at = int(self._annotation[one])
            raise DocumentError(
                f"{self._read.instances_file} annotation {at + 1}: its bbox {instances['box'][at].tolist()} is not within the "
                f"image of {wide[one]:g} × {tall[one]:g} pixels: get the file again"
            )

    def _images_of(self, chosen: Bool[np.ndarray, "R"]) -> list[Int[np.ndarray, "_R"]]:
        """The objects of each image, in the order of the images' numbers."""
        # An object of which every expression was empty has nothing to be asked.
        objects = np.flatnonzero(chosen & (np.diff(self._sentences) > 0))
        order = objects[np.argsort(self._read.refs["image"][objects], kind="stable")]
        cuts = np.flatnonzero(np.diff(self._read.refs["image"][order])) + 1
        return [one for one in np.split(order, cuts) if len(one)]

    def _matched(self, kind: str, name: str) -> Int[np.ndarray, "R"]:
        """Where the instances have what the objects name.

        Raises:
            DocumentError: they lack one.
        """
        wanted, known = self._read.refs[kind], self._read.instances[kind]
        order = np.argsort(known, kind="stable")
        at = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
        if (absent := known[at] != wanted).any():
            first = int(absent.argmax())
            raise DocumentError(
                f"{self._where(first)}: its {name} {wanted[first]} is not in {self._read.instances_file.name}: get both files of "
                "the same set"
            )
        return at

    def _where(self, number: int) -> str:
        return f"{self._read.refs_file} entry {number + 1}"


def open_refs(place: Place, opening: DocumentOpening, division: str | None = None) -> list[RefSet]:
    """The sets in a folder: `refcoco`, `refcoco+`, `refcocog`, or the folder itself; none if there is none.

    Args:
        place: a set's folder, or one that holds several.
        opening: where indices are kept, and the folder of the images if it is not beside the sets.
        division: `unc`, `google` or `umd`; None: the first that each set has.

    Raises:
        DocumentError: a file is missing or damaged.
    """
    if not (found := _set_folders(place)):
        return []
    read = [Annotations.read(folder, opening, division) for folder in found]
    evaluated = np.concatenate([one.evaluated for one in read])
    return [RefSet(one, evaluated) for one in read]


def _set_folders(place: Place) -> list[Place]:
    return [folder for folder in (place, *folders(place)) if _divisions(folder)]


def _divisions(folder: Place) -> dict[str, Place]:
    """The files with expressions in a folder, by whom they are."""
    found = {match[1]: path for path in folder.iterdir() if (match := _REFS.fullmatch(path.name))}
    return {name: found[name] for name in DIVISIONS if name in found}


def _refs_file(folder: Place, division: str | None) -> Place:
    found = _divisions(folder)
    if division is not None and division not in found:
        raise DocumentError(f"{folder} has no refs({division}).p: put it there, or choose {' or '.join(found)}")
    return found[division or next(iter(found))]


def _images(folder: Place, named: Place | None) -> Place:
    """Where people unpack COCO's images: beside the files, beside the sets, or where the authors' own code has them; below a
    named folder or, without these, in it."""
    inner = ("train2014", "images/train2014", "images/mscoco/images/train2014")
    above = (folder, folder.parent) if named is None else (named,)
    places = [one / name for one in above for name in inner]
    # The last one serves for the message that names a missing image.
    return next((one for one in places if one.is_dir()), named or folder.parent / "train2014")


def scan_refs(file: Place) -> Arrays:
    """The objects of a file of expressions: numbers of annotation and image, split, and sentences with their owner.

    Raises:
        DocumentError: it is damaged.
    """
    entries = plain_pickle(whole(file), str(file))
    if not isinstance(entries, list) or not entries:
        raise DocumentError(f"{file} holds no list of referred objects: get it again")
    numbers, texts, owners, empty = [], [], [], 0
    for at, entry in enumerate(entries):
        where = f"{file} entry {at + 1}"
        split = field(entry, "split", str, where)
        if split not in SPLITS:
            raise DocumentError(
                f"{where}: its split is {split!r:.40}, but there are {', '.join(SPLITS)}: get the file again"
            )
        numbers.append((field(entry, "ann_id", int, where), field(entry, "image_id", int, where), SPLITS.index(split)))
        for sentence in field(entry, "sentences", list, where):
            text = field(sentence, "sent", str, f"{where}: in its sentences").strip()
            check_no_places(text, where)
            if text:
                texts.append(text)
                owners.append(at)
            empty += not text
    annotation, image, split_code = np.array(numbers, np.int64).T
    letters, ends = packed(texts)
    return {
        "annotation": annotation,
        "image": image,
        "split": split_code,
        "text": letters,
        "ends": ends,
        "owner": np.array(owners, np.int64),  # (S,): which object each sentence refers to
        "empty": np.array(empty),
    }


def scan_instances(file: Place) -> Arrays:
    """The images and annotated objects of a file of COCO's layout.

    Raises:
        DocumentError: it is damaged.
    """
    images, names, sizes = [], [], []
    annotations, boxes = [], []
    for key, (row, _, content) in elements(file):
        if key not in ("images", "annotations"):
            continue
        where = f"{file} {key.removesuffix('s')} {row}"
        entry = parsed(content, where)
        if key == "images":
            images.append(field(entry, "id", int, where))
            names.append(field(entry, "file_name", str, where))
            sizes.append([number(entry, side, where) for side in ("height", "width")])
        else:
            annotations.append((field(entry, "id", int, where), field(entry, "image_id", int, where)))
            boxes.append(_sides(entry, where))
    if not images or not annotations:
        raise DocumentError(f"{file} has no images, or no annotations: get it again")
    check_once(images, f"{file} image", "number")
    check_once([one for one, _ in annotations], f"{file} annotation", "number")
    text, ends = packed(names)
    annotation, of_image = np.array(annotations, np.int64).T
    return {
        "image": np.array(images, np.int64),
        "names": text,
        "name_ends": ends,
        "size": np.array(sizes),  # (I, 2): height, width
        "annotation": annotation,
        "annotation_image": of_image,
        "box": np.array(boxes),  # (A, 4): x, y, width, height in pixels
    }


def _sides(entry: Any, where: str) -> list[float]:
    """Left, top, width and height of an object."""
    sides = field(entry, "bbox", list, where)
    if len(sides) != 4:
        raise DocumentError(f"{where}: its bbox has {len(sides)} numbers instead of four: get the file again")
    return [number({"bbox": side}, "bbox", where) for side in sides]
