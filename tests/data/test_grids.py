"""Grids: what is said of them is what minigrid holds and draws, and held-out pairs are never trained on."""

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from generalist.data.episodes import EpisodeCache
from generalist.data.grids import CELLS, COLOURS, THINGS, TILE, draw_grid, is_held_out
from generalist.data.scene_questions import ASKING, YES_NO, Kind, covered, detection
from generalist.data.scenes import Scene, Split
from generalist.data.source import KINDS, Reading, Stored
from generalist.data.sources.grids import Grids
from generalist.tokenizers.locations import box_text, read_objects
from generalist.tokenizers.sequence import Assembler, Modality, Predicted
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

minigrid = pytest.importorskip("minigrid")

SPLITS: tuple[Split, ...] = ("train", "pairs")


def _cell(scene: Scene, row: int, column: int) -> np.ndarray:
    return scene.image[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]


def _tiles(thing: str, colour: str) -> list[np.ndarray]:
    """The object alone, as minigrid draws it."""
    from minigrid.core.grid import Grid
    from minigrid.core.world_object import Ball, Box, Door, Key

    doors = [Door(colour, is_open=True), Door(colour), Door(colour, is_locked=True)]
    several = doors if thing == "door" else [{"ball": Ball, "key": Key, "box": Box}[thing](colour)]
    # Not rounded: a whole grid is drawn into whole numbers.
    return [Grid.render_tile(one, tile_size=TILE).astype(np.uint8) for one in several]


@pytest.mark.parametrize("split", SPLITS)
def test_the_cell_of_each_thing_shows_it_and_no_other_cell_does(split: Split):
    rng = np.random.default_rng(0)
    for number in range(30):
        count = 1 + number % 6
        scene = draw_grid(split, count, rng)
        assert scene.image.shape == (CELLS * TILE, CELLS * TILE, 3) and len({one.name for one in scene.placed}) == count
        for one in scene.placed:
            assert is_held_out(one.colour, one.thing) == (split == "pairs")
            tiles = _tiles(one.thing, one.colour)
            shown = {
                (row, column)
                for row, column in itertools.product(range(CELLS), repeat=2)
                if any(np.array_equal(_cell(scene, row, column), tile) for tile in tiles)
            }
            row, column = round(one.box.top * CELLS), round(one.box.left * CELLS)
            assert shown == {(row, column)}
            assert one.box.sides == (row / CELLS, column / CELLS, (row + 1) / CELLS, (column + 1) / CELLS)
            # Doors are in a wall, which goes on to both sides or ends there; everything else is on the floor.
            at_the_border = row in (0, CELLS - 1) or column in (0, CELLS - 1)
            assert one.thing == "door" or not at_the_border


def test_held_out_pairs():
    pairs = [(colour, thing) for colour in COLOURS for thing in THINGS if is_held_out(colour, thing)]
    assert (
        len(pairs) == 6
        and {colour for colour, _ in pairs} == set(COLOURS)
        and {thing for _, thing in pairs} == set(THINGS)
    )


def test_the_same_on_every_machine():
    first, second = (draw_grid("train", 4, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first.image, second.image) and first.placed == second.placed


def test_a_wrong_name_is_always_found():
    rng = np.random.default_rng(4)
    for _ in range(300):
        scene = draw_grid("train", 6, rng)
        assert max(Counter(one.thing for one in scene.placed).values()) <= 3
        assert ASKING["exists"](scene, rng) is not None and ASKING["match"](scene, rng) is not None


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ASKING)
def test_answers_are_true_and_among_the_choices(kind: Kind, split: Split):
    rng, asked = np.random.default_rng(3), 0
    while asked < 40:
        scene = draw_grid(split, int(rng.integers(1, 5)), rng)
        if (one := ASKING[kind](scene, rng)) is None:
            continue
        asked += 1
        by_name = {thing.name: thing for thing in scene.placed}
        assert not one.choices or one.answer in one.choices
        if kind == "exists":
            name = one.text.removeprefix("is there a ").split("?")[0]
            assert (name in by_name) == (one.answer == YES_NO[0]) and name.split()[1] in THINGS
            # What training never shows it must not deny either.
            assert split == "pairs" or not is_held_out(*name.split())
        elif kind == "colour":
            assert one.choices == tuple(f" {colour}" for colour in COLOURS)
        elif kind == "relation":
            first, second = (by_name[name] for name in re.findall(r"the (\w+ \w+)(?= |\?)", one.text))
            down, right = np.subtract(first.centre, second.centre)
            on_side = {"left": right < 0, "right": right > 0, "above": down < 0, "below": down > 0}
            assert on_side[next(side for side in on_side if f" {side} " in one.text)] == (one.answer == YES_NO[0])
        elif kind == "hidden":
            assert one.covered is not None
            row, column = round(one.covered.top * CELLS), round(one.covered.left * CELLS)
            grey = covered(scene, one)[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            assert (grey == 128).all()
        elif kind in ("point", "refer"):
            assert one.target is not None and one.answer == box_text(one.target.box)


def test_the_ball_left_of_the_key_is_the_only_one_there():
    rng, several = np.random.default_rng(9), 0
    for _ in range(400):
        scene = draw_grid("train", 4, rng)
        if (one := ASKING["refer"](scene, rng)) is None:
            continue
        thing, rest = one.text.removeprefix("point to the ").removesuffix(":").split(" ", 1)
        side, name = rest.split(" the ")
        (other,) = (each for each in scene.placed if each.name == name)
        axis, sign = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}[side]
        fitting = [
            each for each in scene.placed
            if each.thing == thing and sign * (each.centre[axis] - other.centre[axis]) > 0
        ]  # fmt: skip
        assert fitting == [one.target]
        several += sum(each.thing == thing for each in scene.placed) > 1
    assert several > 50, "often the thing alone does not tell which is meant"


def test_numbers_of_things_are_balanced():
    rng = np.random.default_rng(1)
    counts = Counter(len(draw_grid("train", int(rng.integers(1, 5)), rng).placed) for _ in range(200))
    assert set(counts) == {1, 2, 3, 4} and max(counts.values()) < 80
    things = Counter(one.thing for _ in range(150) for one in draw_grid("train", 2, rng).placed)
    assert set(things) == set(THINGS) and min(things.values()) > 30


def test_detection_names_every_thing():
    rng = np.random.default_rng(2)
    scene = draw_grid("train", 3, rng)
    text = "".join(part.text for part in detection(scene, 3, rng)[2:] if isinstance(part, Predicted))
    assert {one.label for one in read_objects(text)} == {one.name for one in scene.placed}


def test_the_source():
    source = Grids(weight=1.0)
    stored = Stored(folder=Path("data"), corrections=(), cache=EpisodeCache(1))
    source.check("grids", stored, False, lambda line: None)
    assert KINDS["grids"] is Grids and source.drawings("pairs") == (6, 4) and source.drawings("drawings") == (0, 0)
    texts = source.texts(stored)
    assert all(any(f"{colour} {thing}" in text for text in texts) for colour in COLOURS for thing in THINGS)
    text = TextTokenizer.train(texts, 400)
    assembler = Assembler(vocabulary=Vocabulary(text=400, locations=1024), text_tokenizer=text, images="patches")
    (examples,) = source.open(stored, Reading(assembler=assembler, layouts={}, length=160))
    for number in range(20):
        sequence = examples.example(number, np.random.default_rng(number))
        assert len(sequence) <= 160 and (sequence.modality == Modality.PATCH).sum() == CELLS**2
    with pytest.raises(ValueError, match=r"data.grids.objects must be from 1 to 6, got 7"):
        Grids(objects=7)
