"""VQAv2 and OK-VQA as they are published: questions, annotations with the answers of several people, and COCO's images.

v2_OpenEnded_mscoco_train2014_questions.json    {"questions": [{"question_id": ..., "image_id": ..., "question": ...}, ...]}
v2_mscoco_train2014_annotations.json            {"annotations": [{"question_id": ..., "answers": [{"answer": ...}, ...]}, ...]}
train2014/COCO_train2014_000000000009.jpg
"""

import re
from array import array
from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from generalist.data.files import DocumentError, parsed
from generalist.data.formats.documents import DocumentOpening, DocumentSet, Part, listed
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.json_list import elements
from generalist.data.formats.places import Place, read_range
from generalist.data.formats.records import checked_text

ANSWER = "Question: {question} Answer: {answer}"
"""How a question and its answer are written, in training and in prompts (Flamingo, appendix B)."""
# VQAv2: v2_OpenEnded_mscoco_train2014_questions.json; OK-VQA: OpenEnded_mscoco_val2014_questions.json. The test
# questions have no answers.
QUESTIONS = re.compile(r"(?P<prefix>.*)OpenEnded_mscoco_(?P<images>(?P<split>train|val)\d+)_questions\.json")


class QuestionDocuments(DocumentSet):
    """The questions of one split, each with its image and the answer that most people gave."""

    format = "VQA"

    def __init__(self, place: Place, opening: DocumentOpening):
        super().__init__(place, opening)
        found = question_files(place)
        split = opening.split.removesuffix("idation")  # which are called val
        # A file that is named itself is of the split that is wanted, whatever it says.
        wanted = found if found == [place] else [one for one in found if f"_{split}" in one.name]
        if len(wanted) != 1:
            names = ", ".join(one.name for one in wanted or found)
            raise DocumentError(
                f"{place} has {len(wanted)} files with questions of the split {opening.split}: name one of {names}"
            )
        self._questions = wanted[0]
        name: Any = QUESTIONS.fullmatch(self._questions.name)
        folder = self._questions.parent
        self._answers = folder / f"{name['prefix']}mscoco_{name['images']}_annotations.json"
        if not self._answers.exists():
            raise DocumentError(f"there is no {self._answers}: put it there as it is published")
        self._image = f"COCO_{name['images']}_{{:012d}}.jpg"
        # Where people unpack COCO's zip: beside the questions, in `images`, or all in one folder.
        beside = [folder / name["images"], folder / "images" / name["images"], folder]
        # The folder itself always is one, so that a missing image is reported by name when it is read.
        self._images = opening.images or next(one for one in beside if one.is_dir())
        (self._asked,) = self._index(self._questions, "questions")
        (self._answered,) = self._index(self._answers, "annotations")
        if not len(self):
            raise DocumentError(f"{self._questions} has no question")
        # (annotations,): annotations need not have the order of the questions, and are found by bisection.
        self._order = np.argsort(self._answered["id"], kind="stable")
        self.pairs = np.arange(len(self))

    @classmethod
    def matches(cls, place: Place) -> bool:
        return bool(question_files(place))

    def __len__(self) -> int:
        return len(self._asked["id"])

    @property
    def files(self) -> list[Place]:
        return [self._questions, self._answers]

    def where(self, index: int) -> str:
        return f"{self._questions} question {index + 1}"

    def parts(self, index: int) -> list[Part]:
        where = self.where(index)
        question = self._element(self._questions, self._asked, index, where)
        number = question.get("image_id")
        # `type`, since True is an int for `isinstance`.
        if type(number) is not int or number < 0:
            raise DocumentError(f"{where}: its image_id is {number!r:.60} instead of a number")
        asked = checked_text(question.get("question"), where)
        answers = self._element(self._answers, self._answered, self._annotation(index), where).get("answers")
        answers = answers if isinstance(answers, list) else []
        given = [one.get("answer") if isinstance(one, dict) else None for one in answers]
        texts = [one.strip() for one in given if isinstance(one, str) and one.strip()]
        # The published files have a text in each of the ten answers.
        if not asked or not texts or len(texts) < len(given):
            raise DocumentError(f"{where} has no question, or no answer in {self._answers.name}: get both files again")
        # Of several answers that are as frequent, the first in the file.
        most = checked_text(Counter(texts).most_common(1)[0][0], where)
        # Not str.format: a question may have braces.
        text = ANSWER.replace("{question}", asked).replace("{answer}", most)
        return [self._images / self._image.format(number), text]

    def _annotation(self, index: int) -> int:
        """The number of a question's annotation."""
        wanted = self._asked["id"][index]
        at = int(np.searchsorted(self._answered["id"], wanted, sorter=self._order))
        if at == len(self._order) or self._answered["id"][self._order[at]] != wanted:
            raise DocumentError(
                f"{self.where(index)} has no answer in {self._answers.name}: get both files of the same version"
            )
        return int(self._order[at])

    def _index(self, file: Place, key: str) -> list[Arrays]:
        return indexed([file], partial(scan_elements, key=key), kind=f"vqa {key}", opening=self.opening)

    @staticmethod
    def _element(file: Place, arrays: Arrays, at: int, where: str) -> dict[str, Any]:
        try:
            content = read_range(file, int(arrays["offset"][at]), int(arrays["length"][at]))
        except (OSError, ValueError) as error:
            raise DocumentError(f"{where} can't be read ({error})") from error
        found = parsed(content, where)
        if not isinstance(found, dict):
            raise DocumentError(f"{where} holds {type(found).__name__} instead of an object")
        return found


def question_files(place: Place) -> list[Place]:
    """The place itself, or the files of a folder, if they are called as published questions are."""
    return [file for file in listed(place, ("_questions.json",)) if QUESTIONS.fullmatch(file.name)]


def scan_elements(file: Place, key: str) -> Arrays:
    """Where the elements of the list `key` are, and their question's number.

    Raises:
        DocumentError: the file is damaged, or an element has no such number.
    """
    found = array("q")
    for name, (row, offset, content) in elements(file):
        if name == key:
            element = parsed(content, f"{file} {key} {row}")
            number = element.get("question_id") if isinstance(element, dict) else None
            if type(number) is not int or abs(number) >= 2**63:
                raise DocumentError(f"{file} {key} {row} has no question_id: get the file again")
            found.extend((number, offset, len(content)))
    # (N, 3) to three of (N,)
    ids, offsets, lengths = np.array(found, np.int64).reshape(-1, 3).T
    return {"id": ids, "offset": offsets, "length": lengths}
