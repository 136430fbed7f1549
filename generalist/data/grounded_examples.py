"""Training examples of images whose regions and questions are known: point to what a text describes, describe what is at a place,
and answer, all about one image.

    <image> point to the man in black: <loc0102><loc0256><loc0511><loc0640> chunk_end
            what is at <loc0300><loc0701><loc0460><loc0990>? answer: parked car chunk_end
            Question: what is he holding? Answer: umbrella chunk_end
"""

import dataclasses
from functools import cached_property

import numpy as np

from generalist.data.document_examples import stretched
from generalist.data.documents import UNREADABLE, tell
from generalist.data.files import DocumentError
from generalist.data.formats.faults import Faults
from generalist.data.formats.vqa import ANSWER
from generalist.data.grounded import Grounded, GroundedSet, Question, Region
from generalist.tokenizers.locations import box_text
from generalist.tokenizers.sequence import CHUNK_END, Assembler, Part, Predicted, Sequence

_ARTICLES = ("the ", "a ", "an ", "his ", "her ", "their ", "its ")


def pointing_text(phrase: str) -> str:
    """The instruction to point to what a phrase describes, in the words of composed scenes."""
    article = "" if phrase.lower().startswith(_ARTICLES) else "the "
    return f"point to {article}{phrase}:"


def question_text(question: str) -> str:
    """A question, as benchmarks of questions ask it."""
    # Not str.format: a question may have braces.
    return ANSWER.replace("{question}", question).removesuffix(" {answer}")


def pointing(region: Region) -> list[Part]:
    """A phrase, and its box to predict."""
    return [pointing_text(region.phrase), Predicted(box_text(region.box))]


def describing(region: Region) -> list[Part]:
    """A box, and its phrase to predict."""
    return [f"what is at {box_text(region.box)}? answer:", Predicted(f" {region.phrase}")]


def answering(question: Question) -> list[Part]:
    """A question, and its answer to predict."""
    return [question_text(question.text), Predicted(f" {question.answer}")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundedExamples:
    """The training images of a set, one per example, each with some of what is known of it."""

    grounded: GroundedSet
    assembler: Assembler
    length: int
    """Maximum number of positions; what does not fit is left out."""
    questions: int
    """Maximum number of regions and questions per example."""
    describe: float
    """Share of the regions that are described from their box instead of pointed to."""
    unreadable: float = UNREADABLE
    """Share of the images that may be unreadable; these are left out, counted and named."""

    def __len__(self) -> int:
        return self.grounded.count("train")

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        """An image with questions in random order or, if it can't be read, the next one that can.

        Raises:
            TooManyBroken: more images than may be left out are missing, damaged, or not the annotated ones.
            DocumentError: none can be read.
        """
        for step in range(len(self)):
            number = (index + step) % len(self)
            # Tried even if it was left out before, so that a resumed run sees the same examples.
            try:
                return self._example(number, rng)
            except DocumentError as error:
                self.faults.add(number, error)
        raise DocumentError(f"no image of {self.grounded.name} can be read: repair them")

    @cached_property
    def faults(self) -> Faults:
        """Which images can't be read, as far as is known."""
        return Faults(self.grounded.files[0], len(self), self.unreadable, tell)

    def _example(self, index: int, rng: np.random.Generator) -> Sequence:
        one = self.grounded.image("train", index)
        asked = self._asked(one, rng)
        image = stretched(self.grounded.photograph("train", index).read(), self.assembler, self.length)
        while asked:
            sequence = self.assembler.document(document(image, asked))
            if len(sequence) <= self.length:
                return sequence
            asked = asked[:-1]
        # Not even one fits: nothing is learned from this image.
        return self.assembler.text(np.zeros(0, np.int32), eos=False)

    def _asked(self, one: Grounded, rng: np.random.Generator) -> list[list[Part]]:
        known = [*one.regions, *one.questions]
        # One text per place: the box that one of them gives would be the answer to the next about the same object.
        places: set[str] = set()
        chosen: list[Region | Question] = []
        for at in rng.permutation(len(known)):
            if isinstance(what := known[at], Region):
                if (place := box_text(what.box)) in places:
                    continue
                places.add(place)
            chosen.append(what)
        return [
            answering(what)
            if isinstance(what, Question)
            else (describing if rng.random() < self.describe else pointing)(what)
            for what in chosen[: self.questions]
        ]


def document(image: np.ndarray, asked: list[list[Part]]) -> list[Part]:
    """The parts of a document that asks several questions about one image."""
    parts: list[Part] = [image]
    for number, one in enumerate(asked):
        parts += [CHUNK_END, *one] if number else one
    return parts
