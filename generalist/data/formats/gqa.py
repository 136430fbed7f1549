"""GQA as it is published (Hudson & Manning, 2019): the balanced questions, by their numbers, about images of Visual Genome.

train_balanced_questions.json    {"07333408": {"imageId": "2405722", "question": "...", "answer": "yes",
                                               "types": {"structural": "verify", ...}, ...}, ...}
val_balanced_questions.json, testdev_balanced_questions.json; all also in questions/ or questions1.2/
images/2405722.jpg

Dimension key: Q questions, I images.
"""

import re
from collections.abc import Set
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from generalist.data.files import DocumentError, parsed
from generalist.data.formats.documents import DocumentOpening
from generalist.data.formats.fields import check_no_places, field, optional
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.json_list import members
from generalist.data.formats.places import Place, read_range
from generalist.data.grounded import Grounded, GroundedSet, Question
from generalist.data.images import Size

FOLDERS = (".", "questions", "questions1.2")
SPLITS = ("train", "val", "testdev")
_IMAGE = re.compile(r"[A-Za-z0-9_-]{1,40}", re.ASCII)


class QuestionSet(GroundedSet):
    """The images of a folder with their questions.

    Args:
        folder: holds the files, or a folder with them.
        opening: where indices are kept, and the folder of the images if it is not in the folder.
    """

    has_regions = False
    has_questions = True
    literal_answers = True  # as its authors score it

    def __init__(self, folder: Place, opening: DocumentOpening):
        self.name, self._folder = folder.absolute().name, folder
        self._file = {split: found for split in SPLITS if (found := _question_file(folder, split))}
        self.splits = tuple(split for split in self._file if split != "train")
        arrays = indexed(list(self._file.values()), scan_questions, kind="gqa checked", opening=opening)
        self._asked = dict(zip(self._file, arrays, strict=True))
        self._images = _images_folder(folder, opening.images)
        self._left_out: Set[str] = frozenset()

    @property
    def evaluated(self) -> set[str]:
        """Names of the images that its evaluations show."""
        return {name for split in self.splits for name in _names(self._asked[split])}

    def leave_out(self, names: Set[str]) -> None:
        """Trains on none of these images, nor on those that its own evaluations show."""
        self._left_out = names | self.evaluated
        self.__dict__.pop("_shown", None)

    @cached_property
    def _shown(self) -> dict[str, list[tuple[str, Int[np.ndarray, "_Q"]]]]:
        """The images of each split in the order of their names, each with its questions."""
        found = {}
        for split, arrays in self._asked.items():
            order = np.argsort(arrays["image"], kind="stable")
            cuts = np.flatnonzero(arrays["image"][order][1:] != arrays["image"][order][:-1]) + 1
            shown = [(arrays["image"][rows[0]].decode(), rows) for rows in np.split(order, cuts)]
            found[split] = [one for one in shown if split != "train" or one[0] not in self._left_out]
        return found

    @property
    def files(self) -> list[Place]:
        return list(self._file.values())

    def count(self, split: str) -> int:
        return len(self._shown.get(split, ()))

    def file(self, split: str, index: int) -> Place:
        return self._images / f"{self._shown[split][index][0]}.jpg"

    def size(self, split: str, index: int) -> Size | None:
        # It has no places.
        return None

    def image(self, split: str, index: int) -> Grounded:
        file, arrays = self._file[split], self._asked[split]
        questions, where = [], str(file)
        for row in self._shown[split][index][1].tolist():
            where = f"{file} question {row + 1}"
            questions.append(_question(_entry(file, arrays, row, where), where))
        return Grounded(image=self.file(split, index), questions=questions, where=where)

    def notes(self) -> list[str]:
        found = [
            f"{self._folder} has no {split}_balanced_questions.json: nothing of it is read"
            for split in SPLITS[:2]
            if split not in self._file
        ]
        if "train" in self._file and (without := len(_names(self._asked["train"])) - self.count("train")):
            found.append(
                f"{without:,} training images of {self.name} are left out, since an evaluation of this folder shows them"
            )
        return found


def _images_folder(folder: Place, named: Place | None) -> Place:
    """The named folder, or `images` in it; by default that of the set."""
    if named is None or (named / "images").is_dir():
        return (named or folder) / "images"
    return named


def matches(place: Place) -> bool:
    """Whether a folder has such a set."""
    return any(_question_file(place, split) for split in SPLITS)


def _question_file(folder: Place, split: str) -> Place | None:
    files = (folder / inner / f"{split}_balanced_questions.json" for inner in FOLDERS)
    return next((file for file in files if file.exists()), None)


def _names(arrays: Arrays) -> set[str]:
    return {name.decode() for name in np.unique(arrays["image"]).tolist()}


def _entry(file: Place, arrays: Arrays, row: int, where: str) -> Any:
    try:
        content = read_range(file, int(arrays["offset"][row]), int(arrays["length"][row]))
    except (OSError, ValueError) as error:
        raise DocumentError(f"{where} can't be read ({error})") from error
    return parsed(content, where)


def _question(entry: Any, where: str) -> Question:
    texts = [" ".join(field(entry, key, str, where).split()) for key in ("question", "answer")]
    if not all(texts):
        raise DocumentError(f"{where} has an empty question or answer: get the file again")
    check_no_places(" ".join(texts), where)
    types = optional(entry, "types", dict, where, {})
    return Question(text=texts[0], answer=texts[1], structure=optional(types, "structural", str, where, ""))


def scan_questions(file: Place) -> Arrays:
    """The image of each question, and where the question is in the file: (Q,) each.

    Raises:
        DocumentError: the file is damaged.
    """
    images, offsets, lengths = [], [], []
    for row, offset, content in members(file):
        where = f"{file} question {row}"
        entry = parsed(content, where)
        _question(entry, where)
        image = field(entry, "imageId", str, where)
        # It becomes the name of a file, which must not lead out of the folder.
        if not _IMAGE.fullmatch(image):
            raise DocumentError(f"{where}: its imageId is {image!r:.60} instead of an image's name: get the file again")
        images.append(image.encode())
        offsets.append(offset)
        lengths.append(len(content))
    if not images:
        raise DocumentError(f"{file} has no question: get it again")
    return {"image": np.array(images), "offset": np.array(offsets, np.int64), "length": np.array(lengths, np.int64)}
