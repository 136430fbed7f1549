"""Visual Genome as it is published (Krishna et al., 2016): lists with an element per image; all but the first may be missing. The
first one alone tells which images of GQA, whose numbers are the same, are which of COCO.

image_data.json           [{"image_id" (older: "id"), "width", "height", "url": ".../VG_100K_2/1.jpg", "coco_id"}, ...]
region_descriptions.json  [{"id", "regions": [{"x", "y", "width", "height", "phrase"}, ...]}, ...]
objects.json              [{"image_id", "objects": [{"x", "y", "w", "h", "names"}, ...]}, ...]
attributes.json           [{"image_id", "attributes": [{"x", "y", "w", "h", "names", "attributes"}, ...]}, ...]
relationships.json        [{"image_id", "relationships": [{"subject": {...}, "predicate", "object": {...}}, ...]}, ...]
question_answers.json     [{"id", "qas": [{"question", "answer"}, ...]}, ...]
VG_100K/2.jpg, VG_100K_2/1.jpg

Sides are called h and w or height and width, names `names` or `name`, as the versions have them. Of objects, attributes and
relationships only what a name says once in an image is taken. There are no published splits: a hundredth of the images, by a hash
of their numbers, is `val`.

Dimension key: I images, E elements of a file.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import numpy as np
from jaxtyping import Int

from generalist.data.files import DocumentError, parsed
from generalist.data.formats.documents import DocumentOpening
from generalist.data.formats.fields import check_no_places, check_once, field, number, optional
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.json_list import elements
from generalist.data.formats.places import Place, read_range
from generalist.data.grounded import Grounded, GroundedSet, Question, Region, pixel_box
from generalist.data.images import Size
from generalist.data.stable_hash import stable_hash

IMAGES = "image_data.json"
QUESTIONS = "question_answers.json"
FOLDERS = ("VG_100K", "VG_100K_2")
HELD_OUT = 100  # one of so many images is evaluated
NO_COCO = -1  # of an image that COCO does not have
ANY_SIZE = (1.0, 1.0)  # of an image, where only the fields of an element are checked
_IDS = ("image_id", "id")
_HEIGHT, _WIDTH = ("h", "height"), ("w", "width")
_SPACE = re.compile(r"\s+")


class GenomeSet(GroundedSet):
    """The images of a folder for which there is a region or a question.

    Args:
        folder: holds the files.
        opening: where indices are kept, and the folder of the images if it is not beside the files.
        evaluated: numbers of COCO's images that another set evaluates, and which are not trained on.
        asked_elsewhere: numbers of its own images of which the same is true.
    """

    splits = ("val",)

    def __init__(
        self,
        folder: Place,
        opening: DocumentOpening,
        evaluated: Int[np.ndarray, "_"],
        asked_elsewhere: Set[int] = frozenset(),
    ):
        self.name, self._folder = folder.absolute().name, folder
        (self._known,) = indexed([folder / IMAGES], scan_images, kind="genome-images once", opening=opening)
        self._files = [folder / name for name in READERS if (folder / name).exists()]
        self.has_questions = folder / QUESTIONS in self._files
        self.has_regions = len(self._files) > int(self.has_questions)
        self._elements = indexed(self._files, scan_elements, kind="genome-elements placeless", opening=opening)
        # A named folder may hold the images themselves, or the published folders.
        self._images = [opening.images, *_image_folders(opening.images)] if opening.images else _image_folders(folder)
        # (I,): where each image stands in image_data.json, by its number
        self._at = {one: at for at, one in enumerate(self._known["image"].tolist())}
        described = np.unique(np.concatenate([np.zeros(0, np.int64), *(one["image"] for one in self._elements)]))
        for file, one in zip(self._files, self._elements, strict=True):
            if unknown := [(row, image) for row, image in enumerate(one["image"].tolist()) if image not in self._at]:
                row, image = unknown[0]
                raise DocumentError(
                    f"{file} entry {row + 1} is about image {image}, which is not in {IMAGES}: get files of the same version"
                )
        held_out = np.array([stable_hash(str(one)) % HELD_OUT == 0 for one in described.tolist()], bool)
        coco = self._known["coco"][[self._at[one] for one in described.tolist()]]
        elsewhere = np.isin(coco, evaluated) | np.isin(described, sorted(asked_elsewhere))
        self._left_out = int((~held_out & elsewhere).sum())
        self._shown = {"train": described[~held_out & ~elsewhere], "val": described[held_out]}
        of_others = self._known["image"][np.isin(self._known["coco"], evaluated)]
        self.evaluated = {*described[held_out].tolist(), *of_others.tolist()}
        """Numbers of the images that its evaluation or one of RefCOCO shows."""
        shown = np.isin(self._known["image"], [*described[held_out].tolist(), *asked_elsewhere])
        self.evaluated_coco = {number for number in self._known["coco"][shown].tolist() if number != NO_COCO}
        """COCO's numbers of the images that its evaluation or one of GQA shows."""
        # Where each image's element is, in each file.
        self._rows = [{image: row for row, image in enumerate(one["image"].tolist())} for one in self._elements]

    @property
    def files(self) -> list[Place]:
        return [self._folder / IMAGES, *self._files]

    def count(self, split: str) -> int:
        return len(self._shown[split])

    def file(self, split: str, index: int) -> Place:
        image = int(self._shown[split][index])
        places = [folder / f"{image}.jpg" for folder in self._images]
        # The first serves for the message that it is missing.
        return next((one for one in places if one.exists()), places[0])

    def size(self, split: str, index: int) -> Size | None:
        tall, wide = self._known["size"][self._at[int(self._shown[split][index])]].tolist()
        return tall, wide

    def image(self, split: str, index: int) -> Grounded:
        image = int(self._shown[split][index])
        tall, wide = self._known["size"][self._at[image]].tolist()
        regions, questions, where = [], [], f"{self._folder / IMAGES} entry {self._at[image] + 1}"
        for file, arrays, rows in zip(self._files, self._elements, self._rows, strict=True):
            if image in rows:
                where = f"{file} entry {rows[image] + 1}"
                for one in READERS[file.name](_element(file, arrays, rows[image], where), (tall, wide), where):
                    (questions if isinstance(one, Question) else regions).append(one)
        return Grounded(image=self.file(split, index), regions=regions, questions=questions, where=where)

    def notes(self) -> list[str]:
        if not self._files:
            return [
                f"{self._folder} has {IMAGES} alone, which tells other sets the numbers of images: for Visual Genome itself, put "
                f"{', '.join(READERS)} there, or some of them"
            ]
        found = [
            f"{self._folder} has no {name}: nothing of it is read"
            for name in READERS
            if not (self._folder / name).exists()
        ]
        if self._left_out:
            found.append(
                f"{self._left_out:,} training images of {self.name} are left out, since evaluations of other sets show them"
            )
        return found


def matches(place: Place) -> bool:
    """Whether a folder has such a set."""
    return (place / IMAGES).exists()


def _image_folders(folder: Place) -> list[Place]:
    """Where people unpack the images: beside the files, or in `images`, in two folders or in one."""
    places = [above / name for above in (folder, folder / "images") for name in FOLDERS]
    found = [one for one in (*places, folder / "images") if one.is_dir()]
    return found or [folder / FOLDERS[0]]


def _element(file: Place, arrays: Arrays, row: int, where: str) -> Any:
    try:
        content = read_range(file, int(arrays["offset"][row]), int(arrays["length"][row]))
    except (OSError, ValueError) as error:
        raise DocumentError(f"{where} can't be read ({error})") from error
    return parsed(content, where)


# ---- indices


def scan_images(file: Place) -> Arrays:
    """Number, size and COCO's number of each image.

    Raises:
        DocumentError: the file is damaged.
    """
    images, sizes, coco = [], [], []
    for row, _, _, entry in _entries(file):
        where = f"{file} entry {row}"
        images.append(field(entry, _IDS, int, where))
        sizes.append([number(entry, side, where) for side in (_HEIGHT, _WIDTH)])
        if min(sizes[-1]) <= 0:
            raise DocumentError(
                f"{where}: image {images[-1]} has {sizes[-1][1]:g} × {sizes[-1][0]:g} pixels: get the file again, or put in the "
                "image's size"
            )
        coco.append(optional(entry, "coco_id", int, where, NO_COCO))
    check_once(images, f"{file} entry", "image")
    return {"image": np.array(images, np.int64), "size": np.array(sizes), "coco": np.array(coco, np.int64)}


def scan_elements(file: Place) -> Arrays:
    """Which image each element is about, and where it is in the file: (E,) each. All that an element says is read once, so that
    damage is found before a run and not within it.

    Raises:
        DocumentError: the file is damaged.
    """
    found = []
    for row, at, size, entry in _entries(file):
        where = f"{file} entry {row}"
        found.append((field(entry, _IDS, int, where), at, size))
        for _ in READERS[file.name](entry, ANY_SIZE, where):
            pass
    image, offset, length = np.array(found, np.int64).T
    check_once(image.tolist(), f"{file} entry", "image")
    return {"image": image, "offset": offset, "length": length}


def _entries(file: Place) -> Iterator[tuple[int, int, int, Any]]:
    """Number, offset, size in bytes and value of each element."""
    row = 0
    for key, (row, offset, content) in elements(file):
        if key:
            raise DocumentError(f"{file} holds an object instead of a list of images: get it again")
        yield row, offset, len(content), parsed(content, f"{file} entry {row}")
    if not row:
        raise DocumentError(f"{file} has no entry: get it again")


# ---- what an element says


def _described(element: Any, size: Size, where: str) -> Iterator[Region]:
    for entry, at in _list(element, "regions", where):
        yield from _region(entry, _text(field(entry, "phrase", str, at)), size, at)


def _objects(element: Any, size: Size, where: str) -> Iterator[Region]:
    yield from _unambiguous(
        [(entry, _object_name(entry, at), at) for entry, at in _list(element, "objects", where)], size
    )


def _attributes(element: Any, size: Size, where: str) -> Iterator[Region]:
    found = []
    for entry, at in _list(element, "attributes", where):
        # Most objects have none, and no such field.
        known = optional(entry, "attributes", list, at, [])
        texts = [_text(one).lower() for one in known if isinstance(one, str)]
        # All are counted: of two blocks, one may be `red` and the other `big` first and then `red`.
        found += [(entry, _joined(one, _object_name(entry, at)), at) for one in dict.fromkeys(texts)]
    yield from _unambiguous(found, size)


def _relationships(element: Any, size: Size, where: str) -> Iterator[Region]:
    """A relationship describes its subject: `man wearing hat`."""
    found = []
    for entry, at in _list(element, "relationships", where):
        subject, other = (field(entry, role, dict, at) for role in ("subject", "object"))
        predicate = _text(field(entry, "predicate", str, at)).lower()
        found.append((subject, _joined(_object_name(subject, at), predicate, _object_name(other, at)), at))
    yield from _unambiguous(found, size)


def _asked(element: Any, size: Size, where: str) -> Iterator[Question]:
    for entry, at in _list(element, "qas", where):
        question, answer = (_text(field(entry, key, str, at)) for key in ("question", "answer"))
        check_no_places(f"{question} {answer}", at)
        # Answers are written as sentences, `Green.`: the full stop is no part of what is asked for.
        if question and (answer := answer.removesuffix(".")):
            yield Question(text=question, answer=answer)


Reader = Callable[[Any, Size, str], Iterator[Region | Question]]
READERS: Mapping[str, Reader] = {
    "region_descriptions.json": _described,
    "objects.json": _objects,
    "attributes.json": _attributes,
    "relationships.json": _relationships,
    QUESTIONS: _asked,
}
"""How the elements of each file are read."""


def _list(element: Any, key: str, where: str) -> Iterator[tuple[Any, str]]:
    """The entries of an element's list, each with its place for messages."""
    for step, entry in enumerate(field(element, key, list, where), 1):
        yield entry, f"{where}, number {step} of its {key}"


def _unambiguous(found: list[tuple[Any, str, str]], size: Size) -> Iterator[Region]:
    """The entries whose text no other entry of the image has."""
    counts = Counter(text for _, text, _ in found)
    for entry, text, where in found:
        if counts[text] == 1:
            yield from _region(entry, text, size, where)


def _region(entry: Any, text: str, size: Size, where: str) -> Iterator[Region]:
    """The region of an entry; none if it has no text, or lies outside of the image, as some of the published ones do."""
    x, y, width, height = (number(entry, key, where) for key in ("x", "y", _WIDTH, _HEIGHT))
    check_no_places(text, where)
    box = pixel_box(x, y, width, height, of=size)
    if text and box is not None:
        yield Region(box=box, phrase=text)


def _object_name(entry: Any, where: str) -> str:
    """The first name of an object, whose names are a list or, of the subjects and objects of relationships, often one text."""
    keys = ("names", "name", "object_names")  # the last in the first version's attributes
    names = next((entry[key] for key in keys if key in entry), None) if isinstance(entry, dict) else None
    if isinstance(names, list) and names:
        names = names[0]
    return _text(field({"name": names}, "name", str, f"{where}: of its names")).lower()


def _joined(*parts: str) -> str:
    """Parts as one text; an empty one if a part is empty, since the others would mean something else."""
    return " ".join(parts) if all(parts) else ""


def _text(text: str) -> str:
    return _SPACE.sub(" ", text).strip()
