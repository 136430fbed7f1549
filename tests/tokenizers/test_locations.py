"""Boxes as tokens: both directions agree to half a bin, through resizing and cropping; texts carry them as ids of their own."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generalist.config.run import TokenConfig
from generalist.tokenizers.locations import (
    BINS,
    NOISE,
    Box,
    Labelled,
    box_text,
    first_box,
    objects_text,
    place_in,
    read_objects,
)
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

HALF_BIN = 0.5 / BINS + 1e-9


@st.composite
def boxes(draw: Any) -> Box:
    """Any box, empty ones included."""
    shares = st.floats(0, 1)
    (top, bottom), (left, right) = (sorted((draw(shares), draw(shares))) for _ in range(2))
    return Box(top=top, left=left, bottom=bottom, right=right)


def apart(one: Box, other: Box) -> float:
    """The largest distance of two sides."""
    return float(np.abs(np.subtract(one.sides, other.sides)).max())


@given(boxes())
def test_a_box_survives_to_half_a_bin_and_its_tokens_exactly(box: Box):
    (read,) = read_objects(box_text(box))
    assert apart(read.box, box) <= HALF_BIN
    assert box_text(read.box) == box_text(box)


@given(boxes(), st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 3000))
def test_the_tokens_are_those_of_any_size_of_the_image(box: Box, height: int, width: int, other: int, another: int):
    def pixels(high: int, wide: int) -> Box:
        top, left, bottom, right = (side * size for side, size in zip(box.sides, (high, wide) * 2, strict=True))
        return Box.of_pixels(top, left, min(bottom, high), min(right, wide), height=high, width=wide)

    assert apart(pixels(height, width), pixels(other, another)) < 1e-9
    assert apart(read_objects(box_text(pixels(height, width)))[0].box, pixels(other, another)) <= HALF_BIN


@given(boxes(), boxes())
def test_a_cropped_box_stands_where_its_pixels_do(box: Box, crop: Box):
    cropped = box.cropped(crop)
    assert (cropped is None) == (box.overlap(crop) == 0)
    if cropped is not None:
        high, wide = crop.bottom - crop.top, crop.right - crop.left
        origin, extent = (crop.top, crop.left) * 2, (high, wide) * 2
        back = [start + side * size for start, side, size in zip(origin, cropped.sides, extent, strict=True)]
        pairs = list(zip(box.sides, crop.sides, strict=True))
        shared = [*(max(pair) for pair in pairs[:2]), *(min(pair) for pair in pairs[2:])]
        assert np.allclose(back, shared, atol=1e-9)
        (read,) = read_objects(box_text(cropped))
        assert apart(read.box, cropped) <= HALF_BIN


def test_order_and_form_are_paligemma_s():
    heart = Labelled(Box.of_pixels(10, 20, 50, 100, height=100, width=200), "red heart")
    everything = Labelled(Box(top=0, left=0, bottom=1, right=1), "blue cat")
    text = objects_text([heart, everything])
    assert text == ("<loc0102><loc0102><loc0512><loc0512> red heart ; <loc0000><loc0000><loc1023><loc1023> blue cat")
    assert [one.label for one in read_objects(text)] == ["red heart", "blue cat"]


def test_boxes_of_noise_are_no_objects():
    box = Box(top=0, left=0, bottom=0.5, right=0.5)
    text = objects_text([Labelled(box, "red heart"), Labelled(box, NOISE), Labelled(box, "white noise")])
    assert [one.label for one in read_objects(text)] == ["red heart", "white noise"]
    assert [one.label for one in read_objects(text, with_noise=True)] == ["red heart", NOISE, "white noise"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "<loc0001><loc0002><loc0003> cat",
        "<loc0900><loc0002><loc0003><loc0004> upside down",
        "<loc1><loc2>",
    ],
)
def test_what_is_no_box_is_left_out(text: str):
    assert read_objects(text) == []


def test_the_first_box_is_that_of_the_first_four_tokens_in_a_row():
    right, other = (Box(top=top, left=0, bottom=0.9, right=0.5) for top in (0.1, 0.3))
    for text in ("{} red heart {}", "{} x <loc0001>", "{}{}", "{}<loc0001>", "<loc0001> {} ; {}"):
        found = first_box(text.format(box_text(right), box_text(other)))
        assert found is not None and box_text(found) == box_text(right)
    upside_down = "<loc0900><loc0002><loc0003><loc0004>"
    assert (
        first_box("<loc0001><loc0002><loc0003> cat") is None and first_box(f"{upside_down} {box_text(right)}") is None
    )


def test_intersection_over_union():
    one, other = Box(top=0, left=0, bottom=0.5, right=0.5), Box(top=0, left=0.25, bottom=0.5, right=0.75)
    assert one.iou(other) == other.iou(one) == pytest.approx(1 / 3)
    assert one.iou(one) == 1 and one.iou(Box(top=0.5, left=0.5, bottom=1, right=1)) == 0
    with pytest.raises(ValueError, match="divide pixels by the image's height or width"):
        Box(top=3, left=0, bottom=50, right=1)


@pytest.fixture(scope="module")
def assembler() -> Assembler:
    text = TextTokenizer.train(["point to the red heart ; blue cat"] * 9, 300)
    return Assembler(vocabulary=Vocabulary(text=300, continuous=4, discrete=4, locations=BINS), text_tokenizer=text)


def test_location_tokens_of_a_text_are_one_id_each_and_written_back(assembler: Assembler):
    text = "go to <loc0000><loc1023> ; red <loc0123>é"
    ids, places = assembler.encode(text), assembler.vocabulary.range("locations")
    assert [places.index(int(one)) for one in ids if one in places] == [0, 1023, 123]
    assert assembler.written(ids) == text
    instruction = assembler.instruction(text)
    assert instruction.tokens.tolist() == ids.tolist()
    with pytest.raises(ValueError, match=r"<loc1024> is beyond the last of the 1024 locations"):
        assembler.encode("<loc1024>")


@given(st.lists(st.one_of(st.text(max_size=6), st.integers(0, BINS - 1)), max_size=8))
def test_any_text_with_places_round_trips(parts: list[str | int]):
    model = _shared()
    text = "".join(f"<loc{part:04d}>" if isinstance(part, int) else part.replace("<", "") for part in parts)
    assert model.written(model.encode(text)) == text


@functools.cache  # hypothesis takes no fixture of a function's scope
def _shared() -> Assembler:
    text = TextTokenizer.train(["point to the red heart"] * 9, 300)
    return Assembler(vocabulary=Vocabulary(text=300, continuous=4, discrete=4, locations=BINS), text_tokenizer=text)


def test_without_locations_nothing_changes(assembler: Assembler):
    plain = dataclasses.replace(assembler, vocabulary=Vocabulary(text=300, continuous=4, discrete=4))
    text = "to <loc0123>"
    assert plain.encode(text).tolist() == plain.text_tokenizer.encode(text).tolist()
    assert plain.written(plain.encode(text)) == text
    known = plain.encode("to ")
    assert plain.vocabulary.range("text").stop > max(plain.encode(text)) and len(plain.encode(text)) > len(known) + 1


def test_a_prompt_with_places_for_weights_without_them_is_refused(assembler: Assembler):
    plain = dataclasses.replace(assembler, vocabulary=Vocabulary(text=300, continuous=4, discrete=4))
    plain.check_places("to the <location>")
    assembler.check_places("to <loc0123>")
    with pytest.raises(ValueError, match=r"<loc0123> is a place in an image, but these weights have no ids for places"):
        plain.check_places("to <loc0123>")


@pytest.mark.parametrize("label", ["i <3 you", "a < b", "a; b", ""])
def test_any_label_is_read_back(label: str):
    objects = [Labelled(Box(top=0, left=0, bottom=1, right=1), label)] * 2
    assert [one.label for one in read_objects(objects_text(objects))] == [label] * 2


def test_digits_of_other_scripts_make_no_place():
    assert place_in("<loc\u0660\u0661\u0660\u0662>") is None and place_in("to <loc0102>") == "<loc0102>"


def test_places_have_four_digits():
    with pytest.raises(ValueError, match=r"tokens\.locations must be from 0 to 10,000, got 20000"):
        TokenConfig(locations=20_000)
