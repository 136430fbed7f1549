"""The id ranges: in order, apart from each other, and known nowhere else."""

import dataclasses
import subprocess
import sys

import pytest

from generalist.tokenizers.vocabulary import KINDS, SPECIALS, Vocabulary


def test_ranges_stand_in_order():
    vocabulary = Vocabulary(text=10, continuous=4, discrete=3, image_codes=2, locations=1)
    kinds = [vocabulary.kind_of(token) for token in range(vocabulary.size)]
    assert kinds == ["text"] * 10 + ["continuous"] * 4 + ["discrete"] * 3 + ["image_codes"] * 2 + ["locations"] + [
        "special"
    ] * len(SPECIALS)
    specials = [getattr(vocabulary, name) for name in SPECIALS]
    assert specials == [20, 21, 22, 23, 24, 25, 26] == list(vocabulary.range("special"))


def test_gato_ranges():
    """Text and continuous ids are the paper's; discrete ids have a range of their own (papers, trap 4)."""
    vocabulary = Vocabulary()
    assert vocabulary.range("text") == range(0, 32000)
    assert vocabulary.range("continuous") == range(32000, 33024)
    assert vocabulary.range("discrete") == range(33024, 34048)


def test_ranges_are_disjoint_and_cover_all_ids():
    vocabulary = Vocabulary(text=300, continuous=16, discrete=8, image_codes=5)
    ids = [token for kind in (*KINDS, "special") for token in vocabulary.range(kind)]
    assert ids == list(range(vocabulary.size))


def test_survives_a_dictionary():
    vocabulary = Vocabulary(text=300, locations=7)
    assert Vocabulary(**dataclasses.asdict(vocabulary)) == vocabulary


@pytest.mark.parametrize("token", [-1, 34055])
def test_an_id_outside_is_an_error(token):
    with pytest.raises(ValueError, match="outside the vocabulary of 34055 ids"):
        Vocabulary().kind_of(token)


@pytest.mark.parametrize(
    ("sizes", "message"), [({"text": -1}, "text"), ({"discrete": 1.5}, "discrete"), ({"text": 2**31}, "int32")]
)
def test_impossible_sizes_are_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(**sizes)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="unknown kind of token 'texts'"):
        Vocabulary().range("texts")


def test_the_tokenizers_do_without_jax_and_tensorflow():
    program = (
        "import sys, generalist.tokenizers.sequence;"
        "found = {'jax', 'tensorflow', 'tensorflow_datasets', 'flax'} & set(sys.modules);"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
