"""Drawing as a sequence: exact tables of positions, the same order when drawing step by step, refused input."""

import dataclasses
import itertools

import numpy as np
import pytest

from generalist.tokenizers.drawing import drawing, drawing_prefix, drawn_code
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

TEXT = TextTokenizer.train(["a red heart"] * 9, 280)
VOCABULARY = Vocabulary(text=280, continuous=3, discrete=2, image_codes=10)
FIRST = 285  # id of code 0


class Codes:
    """Two by two codes; their images do not matter here."""

    side, codebook, fingerprint = 2, 10, "codes"

    def encode(self, images):
        raise AssertionError("a sequence is made of codes, not of images")

    decode = encode


ASSEMBLER = Assembler(vocabulary=VOCABULARY, text_tokenizer=TEXT, codes=Codes())
CODES = np.array([7, 1, 4, 9])
T, D, S = Modality.TEXT, Modality.DISCRETE, Modality.SPECIAL


def table(sequence) -> list[list]:
    fields = ("tokens", "targets", "loss_weight", "modality", "local_position")
    return [getattr(sequence, name).tolist() for name in fields]


def test_a_whole_image_after_a_text():
    words = TEXT.encode("red").tolist()
    n, v = len(words), VOCABULARY
    assert table(drawing(ASSEMBLER, "red", CODES)) == [
        # bos   text       separator     c0         c1         c2
        [v.bos, *words, v.separator, FIRST + 7, FIRST + 1, FIRST + 4],
        [v.pad, *[v.pad] * n, FIRST + 7, FIRST + 1, FIRST + 4, FIRST + 9],
        [0, *[0] * n, 1, 1, 1, 1],
        [T, *[T] * n, S, D, D, D],
        # the cell that is predicted next, counted from 1
        [0, *[0] * n, 1, 2, 3, 4],
    ]


def test_the_rest_of_an_image_of_which_some_codes_are_given():
    v = VOCABULARY
    assert table(drawing(ASSEMBLER, "", CODES, np.array([False, True, True, False]))) == [
        # bos     c0         c3      separator      c1
        [v.bos, FIRST + 7, FIRST + 9, v.separator, FIRST + 1],
        [v.pad, v.pad, v.pad, FIRST + 1, FIRST + 4],
        [0, 0, 0, 1, 1],
        [T, D, D, S, D],
        [0, 1, 4, 2, 3],
    ]


@pytest.mark.parametrize("drawn", [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0]])
def test_drawing_step_by_step_gives_the_sequence_of_training(drawn):
    drawn = np.array(drawn, bool)
    cells = np.flatnonzero(drawn)
    steps = [drawn_code(ASSEMBLER, CODES[cell], after) for cell, after in itertools.pairwise(cells)]
    # What is not given yet does not matter.
    hidden = np.where(drawn, 0, CODES)
    built = ASSEMBLER.concatenate([drawing_prefix(ASSEMBLER, "a heart", hidden, cells), *steps])
    trained = drawing(ASSEMBLER, "a heart", CODES, drawn)
    for name in ("tokens", "modality", "local_position"):
        np.testing.assert_array_equal(getattr(built, name), getattr(trained, name))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="have no image tokenizer"):
        drawing(dataclasses.replace(ASSEMBLER, codes=None), "red", CODES)
    with pytest.raises(ValueError, match="no cell is drawn"):
        drawing(ASSEMBLER, "red", CODES, np.zeros((4,), bool))
    with pytest.raises(ValueError, match="an image has 600 codes, but only 510"):
        drawing(ASSEMBLER, "red", np.zeros((600,), np.int64))
