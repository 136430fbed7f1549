"""Evaluation of referring expressions: by the rule of RefCOCO, on every expression, beside a wrong image."""

import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from generalist.data.files import DocumentError
from generalist.data.formats.documents import DocumentOpening
from generalist.data.formats.refcoco import open_refs
from generalist.data.grounded import GroundedSet, Question, Region
from generalist.data.grounded_sets import open_grounded
from generalist.data.images import read_image
from generalist.data.sources.regions import Regions
from generalist.eval.held_out.regions import (
    accuracies,
    asked_of,
    exact,
    score_questions,
    score_regions,
    written,
)
from generalist.eval.held_out.scenes import overlap
from generalist.eval.parts.answers import ANSWER_TOKENS, answer_tokens, answer_writer, has_room
from generalist.eval.parts.part import Beside
from generalist.eval.parts.regions import DescribedRegions
from generalist.eval.results.scores import grouped_proportion, proportion
from generalist.tokenizers.locations import BINS, Box, box_text, first_box
from generalist.vision.encoder import PaddedPreparation
from generalist.vision.load import crops_images

FOLDER = Path(__file__).parents[2] / "fixtures" / "formats" / "referring"
GENOME = FOLDER.parent / "visual_genome"
ENCODERS = FOLDER.parents[1] / "vision"


def as_it_is(file: Any) -> Any:
    """Stands for reading an image where only which one is shown matters."""
    return file


@pytest.fixture(scope="module")
def refcoco() -> GroundedSet:
    return open_refs(FOLDER / "refcoco", DocumentOpening())[0]


def test_who_knows_every_image_is_right_and_with_a_wrong_one_not(refcoco: GroundedSet):
    asked = asked_of(refcoco, "val", "regions", 0)
    assert len(asked) == 8 and all(one.image != one.wrong for one in asked)
    known = {(one.image, one.text): box_text(one.about.box) for one in asked if isinstance(one.about, Region)}

    def generate(documents: list[list[Any]]) -> list[str]:
        return [known.get((image, text), "nowhere") for image, text in documents]

    # Images are read by whoever scores: here they stay files.
    found = score_regions(asked, written(asked, as_it_is, lambda *_: True, generate))
    assert found["accuracy_0.5"]["value"] == found["accuracy_0.8"]["value"] == 100.0 and found["items"] == 8
    assert found["wrong_0.5"]["value"] < 100.0


def test_the_rule():
    box = Box(top=0.0, left=0.0, bottom=0.5, right=0.5)
    assert overlap(box_text(box), box) > 0.99
    assert overlap("nothing", box) == 0.0
    half = box_text(Box(top=0.0, left=0.0, bottom=0.5, right=0.25))
    assert overlap(half, box) == pytest.approx(0.5, abs=0.01)
    # The first box counts, whatever follows.
    assert overlap(f"{half} ; {box_text(box)}", box) == overlap(half, box)
    # Just below a threshold is not rounded to it.
    read = first_box(half)
    assert read is not None
    under = dataclasses.replace(read, right=read.left + 0.49996 * (read.right - read.left))
    assert 0.4999 < overlap(half, under) < 0.5
    found = accuracies("accuracy", [0.5, 0.49, 0.8, 0.0], None)
    assert (found["accuracy_0.5"]["value"], found["accuracy_0.8"]["value"]) == (50.0, 25.0)


def test_a_question_without_room_is_wrong_and_costs_no_other(refcoco: GroundedSet):
    asked = asked_of(refcoco, "val", "regions", 0)
    long = asked[2].text
    screen = io.StringIO()
    with Progress(console=Console(file=screen, width=200), disable=True) as progress:
        found = written(
            asked,
            as_it_is,
            lambda document, _: document[1] != long,
            lambda documents: [text for _, text in documents],
            progress=progress,
            what="refcoco val",
        )
    assert found["image"] == found["wrong"] == ["" if one.text == long else one.text for one in asked]
    count = sum(one.text == long for one in asked)
    assert f"note: {count} of 8 questions of refcoco val count as wrong: a row" in screen.getvalue()


def test_some_expressions_are_the_same_in_every_run(refcoco: GroundedSet):
    first, again = (asked_of(refcoco, "val", "regions", 3) for _ in range(2))
    assert len(first) == 3 and first == again
    assert (
        set(first) < set(asked_of(refcoco, "val", "regions", 0)) and len(asked_of(refcoco, "val", "regions", 99)) == 8
    )


def test_a_split_of_one_image_has_no_wrong_one(refcoco: GroundedSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(refcoco), "count", lambda self, split: 1)
    with pytest.raises(DocumentError, match="refcoco has 1 image in the split val: an evaluation needs two or more"):
        asked_of(refcoco, "val", "regions", 0)


@pytest.fixture
def pointing(make_model: Callable[..., Any]) -> Any:
    """Random weights with places, whose settings name the sets."""
    model = make_model("frame", BINS)
    config = model.config
    data = config.data.with_sources(regions=Regions(path=str(FOLDER), evaluation_expressions=2))
    tokenizers = dataclasses.replace(model.tokenizers, config=dataclasses.replace(config, data=data))
    return dataclasses.replace(model, tokenizers=tokenizers)


def test_room_is_that_of_a_row(pointing: Any):
    fits, image = has_room(pointing), read_image(FOLDER / "train2014" / "COCO_train2014_000000000009.jpg")
    assert fits([image, "point to it:"], 8) and not fits([image, "point to it:" * pointing.config.data.length], 8)


def test_results_are_of_the_annotations_and_images_as_they_are(pointing: Any, tmp_path: Path):
    folder = Path(shutil.copytree(GENOME, tmp_path / "visual_genome"))

    def settings(**changed: Any) -> list[Any]:
        data = pointing.config.data.with_sources(regions=Regions(path=str(folder), **changed))
        tokenizers = dataclasses.replace(pointing.tokenizers, config=dataclasses.replace(pointing.config, data=data))
        return [job.settings for job in DescribedRegions().jobs(dataclasses.replace(pointing, tokenizers=tokenizers))]

    before = settings()
    assert before == settings() and before != settings(images_folder=str(folder / "VG_100K"))
    file = folder / "region_descriptions.json"
    file.write_text(file.read_text().replace("left", "LEFT"))
    assert settings() != before


def test_an_encoder_that_crops_is_refused(make_model: Callable[..., Any]):
    base = make_model("frame").config
    # Padded to a square, nothing is cut off a whole image; stretched beyond the encoder's size, it is.
    padded = PaddedPreparation(size=32, crop=True, shortest=32, background=(0, 0, 0))
    assert not padded.cuts and dataclasses.replace(padded, shortest=36).cuts
    assert dataclasses.replace(padded, stretched=(40, 32)).cuts
    assert not crops_images("efficientnet_lite0") and not crops_images(str(ENCODERS / "siglip"))

    def config(encoder: str) -> Any:
        vision = dataclasses.replace(base.model.vision, encoder=str(ENCODERS / encoder))
        return dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, vision=vision),
            tokens=dataclasses.replace(base.tokens, documents="encoder", locations=BINS),
            data=base.data.with_sources(regions=Regions(path=str(FOLDER))),
        )

    DescribedRegions().prepare(config("siglip"))
    with pytest.raises(
        ValueError, match="clip sees the centre of an image, and the boxes of data.regions are of the whole one"
    ):
        DescribedRegions().prepare(config("clip"))


def test_the_part_is_computed_checked_and_shown(pointing: Any):
    part = DescribedRegions()
    part.prepare(
        dataclasses.replace(pointing.config, tokens=dataclasses.replace(pointing.config.tokens, locations=BINS))
    )
    jobs = part.jobs(pointing)
    assert [job.key for job in jobs] == [
        *("refcoco val", "refcoco testA", "refcoco testB"),
        *("refcoco+ val", "refcoco+ testA", "refcoco+ testB"),
        *("refcocog val", "refcocog test"),
    ]
    with Progress(disable=True) as progress:
        results = {"regions": part.section(pointing, {job.key: job.compute(progress) for job in jobs[:2]})}
    part.check(results)
    assert [row.label for row in part.rows(results)] == [
        *("refcoco val, IoU 0.5, %", "refcoco val, IoU 0.8, %"),
        *("refcoco testA, IoU 0.5, %", "refcoco testA, IoU 0.8, %"),
    ]
    assert len(part.numbers(results)) == 4 and len(part.page(results, Beside())[1].findall(".//tr")) == 5
    found = results["regions"]["refcoco val"]
    found["accuracy_0.5"] = found["accuracy_0.5"] | {"value": 77.0}
    with pytest.raises(ValueError, match="refcoco val accuracy_0.5"):
        part.check(results)


def test_without_places_nothing_is_asked(make_model: Callable[..., Any]):
    model = make_model("frame")
    config = dataclasses.replace(model.config, data=model.config.data.with_sources(regions=Regions(path=str(FOLDER))))
    for locations in (0, 512):
        tokens = dataclasses.replace(config.tokens, locations=locations)
        with pytest.raises(
            ValueError, match=f"data.regions points .* and tokens.locations is {locations}: set it to 1024"
        ):
            DescribedRegions().prepare(dataclasses.replace(config, tokens=tokens))
    tokenizers = dataclasses.replace(model.tokenizers, config=config)
    assert DescribedRegions().jobs(dataclasses.replace(model, tokenizers=tokenizers)) == []
    assert read_image(FOLDER / "train2014" / "COCO_train2014_000000000009.jpg").shape == (48, 64, 3)


def test_answers_are_normalised():
    genome = open_grounded(GENOME, DocumentOpening())[0]
    asked = asked_of(genome, "val", "questions", 0)
    assert len(asked) == 6 and all(one.text.startswith("Question: What color is the block") for one in asked)
    known = {(one.image, one.text): f" {one.about.answer.upper()}." for one in asked if isinstance(one.about, Question)}

    def generate(documents: list[list[Any]]) -> list[str]:
        return [known.get((image, text), "no idea") for image, text in documents]

    found = score_questions(asked, written(asked, as_it_is, lambda *_: True, generate), literal=False)
    assert found["exact"]["value"] == 100.0 and found["wrong"]["value"] < 100.0 and len(found["answers"]) == 6
    assert exact([("Green", " the green"), ("Green", "greenish")], None, literal=False)["value"] == 50.0
    # Normalised, nothing is left of these.
    assert exact([("A", ""), ("?", ""), ("A", " a"), ("?", "?")], None, literal=False)["value"] == 50.0


def test_the_part_asks_questions_too(pointing: Any):
    part, config = DescribedRegions(), pointing.config
    data = config.data.with_sources(regions=Regions(path=str(GENOME), evaluation_expressions=2))
    tokenizers = dataclasses.replace(pointing.tokenizers, config=dataclasses.replace(config, data=data))
    jobs = part.jobs(dataclasses.replace(pointing, tokenizers=tokenizers))
    assert [job.key for job in jobs] == ["visual_genome val", "visual_genome val questions"]
    with Progress(disable=True) as progress:
        results = {"regions": part.section(pointing, {job.key: job.compute(progress) for job in jobs})}
    part.check(results)
    assert [row.label for row in part.rows(results)][-1] == "visual_genome val questions, %"
    found = results["regions"]["visual_genome val questions"]
    found["answers"][0] = ["green", "Green."]
    with pytest.raises(ValueError, match="visual_genome val questions exact"):
        part.check(results)


def test_an_answer_may_be_as_long_as_the_known_one(pointing: Any, monkeypatch: pytest.MonkeyPatch):
    long = "a very long answer " * 6
    needed = len(pointing.assembler.encode(f" {long}")) + 1
    assert needed > ANSWER_TOKENS and answer_tokens(pointing, long) == needed
    assert answer_tokens(pointing, "a") == ANSWER_TOKENS
    calls = []

    def prompt(_: Any, documents: list[Any], decoding: Any) -> list[str]:
        calls.append((len(documents), decoding.tokens))
        return [document[0] for document in documents]

    monkeypatch.setattr("generalist.inference.prompt.prompt", prompt)
    asked = [["short"], ["filled " * 200], ["short too"]]
    room = pointing.config.data.length - len(pointing.assembler.document(asked[1], is_open=True))
    assert room < needed
    # A document without that room is written alone, so that it takes none from the others.
    assert answer_writer(pointing, needed)(asked) == [text for (text,) in asked]
    assert calls == [(2, needed), (1, needed)]


def test_intervals_are_over_images(refcoco: GroundedSet):
    # Ten images, of which all of one are right or none: ten observations and not two hundred.
    images = np.repeat(np.arange(10), 20)
    right = images < 5
    found, independent = grouped_proportion(right, images), proportion(100, 200)
    assert found.value == independent.value == 50.0
    assert found.high - found.low > 3 * (independent.high - independent.low)
    # Where every image says the same, the bootstrap has no width.
    for same in (np.ones(200, bool), np.zeros(200, bool), np.arange(200) % 2 == 0):
        assert grouped_proportion(same, images) == proportion(int(same.sum()), 200)
    asked = asked_of(refcoco, "val", "regions", 0)
    assert len(asked) == 8
    described = [(one.image == asked[0].image, one.about) for one in asked]
    boxes = [box_text(about.box) if shown and isinstance(about, Region) else "" for shown, about in described]
    found_regions = score_regions(asked, {"image": boxes, "wrong": boxes})
    assert found_regions["images"] == [0] * 4 + [1] * 4
    assert (found_regions["accuracy_0.5"]["low"], found_regions["accuracy_0.5"]["high"]) == (0.0, 100.0)
