"""VQA accuracy is the official scorer's (tests/fixtures/make_vqa.py); its newest version's rules, worked out by hand."""

import json
from pathlib import Path

import pytest

from generalist.eval.fewshot.vqa import normalized, vqa_accuracy

STORED = json.loads((Path(__file__).parents[2] / "fixtures" / "vqa.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("answer", "expected"), STORED["normalized"])
def test_normalisation_is_the_official_scorers(answer: str, expected: str):
    assert normalized(answer) == expected


@pytest.mark.parametrize(("answer", "human", "percent"), STORED["accuracies"])
def test_accuracy_is_the_official_scorers(answer: str, human: list[str], percent: float):
    assert 100 * vqa_accuracy(answer, human) == pytest.approx(percent, abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Cat", "cat"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("y'alldve", "y'alldve"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("a.b.", "ab"),
        ("yes, it is!", "yes it is"),
        ("an apple a day", "apple day"),
        ("it's", "it's"),
        ("I'm  here", "i'm here"),
    ],
)
def test_normalisation(answer: str, expected: str):
    assert normalized(answer) == expected


def test_leaving_each_person_out():
    human = ["cat"] * 3 + ["dog"] * 7
    # Of ten leave-one-outs, three leave a cat out (two are left) and seven keep all three.
    assert vqa_accuracy("cat", human) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert vqa_accuracy("the dog!", human) == 1.0
    assert vqa_accuracy("bird", human) == 0.0
    assert vqa_accuracy("cat", ["cat"]) == 0.0, "one person alone has no others"


def test_where_all_agree_nothing_is_normalised():
    assert vqa_accuracy("the cat", ["cat"] * 10) == 0.0
    assert vqa_accuracy(" cat\n", ["cat"] * 10) == 1.0
    assert vqa_accuracy("the cat", ["cat"] * 9 + ["a cat"]) == 1.0
    with pytest.raises(ValueError, match="no answer"):
        vqa_accuracy("cat", [])
