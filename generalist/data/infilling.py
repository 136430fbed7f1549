"""Fill-in-the-middle: windows of text whose end is moved to the beginning (Bavarian et al., 2022, section 3, suffix first).

    bos  <hidden>  suffix  <separator>  prefix  middle  eos
    bos  text                                              without a hole: plain left-to-right

The marks are ids that the vocabulary has anyway: `hidden` stands in for what is not shown yet, and `separator` between what
follows and what precedes it. The middle continues the prefix as in plain text. With the prefix first, its end would have to be
found again behind the suffix, which small models learn late (docs/pointing.md).

Dimension key: n ids.
"""

import dataclasses

import numpy as np
from jaxtyping import Int32

from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.sequence import Sequence as TokenSequence

MARKS = 3
"""Ids that a hole adds to a window: `hidden`, `separator` and the end marker."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hole:
    """A text with a part of it missing."""

    prefix: Int32[np.ndarray, "_n"]
    middle: Int32[np.ndarray, "_n"]
    suffix: Int32[np.ndarray, "_n"]


def draw_hole(ids: Int32[np.ndarray, "n"], rng: np.random.Generator) -> Hole:
    """Two random cuts: the middle is anything from one id to all of a text of at least one id."""
    # Without replacement, so that the middle is not empty: an empty one teaches nothing but its end.
    first, last = np.sort(rng.choice(len(ids) + 1, 2, replace=False)).tolist()
    return Hole(prefix=ids[:first], middle=ids[first:last], suffix=ids[last:])


def filled(hole: Hole, assembler: Assembler, *, middle_only: bool = False) -> TokenSequence:
    """The text in the order suffix, prefix, middle.

    Args:
        middle_only: the loss is on the middle alone, without its end, to be scored; otherwise on all of the text (Bavarian et
            al. train on all of it too, section 3).
    """
    vocabulary = assembler.vocabulary
    given = np.concatenate([[vocabulary.hidden], hole.suffix, [vocabulary.separator], hole.prefix]).astype(np.int32)
    sequence = assembler.text(np.concatenate([given, hole.middle]), eos=True)
    weight = sequence.loss_weight.copy()
    # The beginning marker comes first, so the token at place p of the text is predicted from position p. The marks are given.
    weight[[0, len(hole.suffix) + 1]] = 0.0
    if middle_only:
        weight[: len(given)] = 0.0
        weight[len(given) + len(hole.middle) :] = 0.0
    return dataclasses.replace(sequence, loss_weight=weight)


def left_to_right(hole: Hole, assembler: Assembler) -> TokenSequence:
    """The prefix and then the middle, with the loss on the middle alone: what a model knows of it without the suffix."""
    sequence = assembler.text(np.concatenate([hole.prefix, hole.middle]), eos=False)
    weight = sequence.loss_weight.copy()
    weight[: len(hole.prefix)] = 0.0
    return dataclasses.replace(sequence, loss_weight=weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfillingExamples:
    """Windows of concatenated documents, each with a hole to fill in."""

    ids: Int32[np.ndarray, "n"]
    """Tokens of all documents, each followed by the end marker."""
    length: int
    """Positions per example, marks included."""
    assembler: Assembler

    def __len__(self) -> int:
        return max(1, len(self.ids) // self.length)

    def example(self, index: int, rng: np.random.Generator) -> TokenSequence:
        # One position is for the beginning marker; the end marker takes none.
        size = self.length - MARKS
        start = min(index * self.length + int(rng.integers(self.length)), max(0, len(self.ids) - size))
        return filled(draw_hole(self.ids[start : start + size], rng), self.assembler)
