"""Evaluation of referring expressions: by the rule of RefCOCO, on every expression, beside a wrong image."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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
    overlap,
    score_questions,
    score_regions,
    written,
)
from generalist.eval.parts.part import Beside
from generalist.eval.parts.regions import DescribedRegions
from generalist.tokenizers.locations import BINS, Box, box_text

FOLDER = Path(__file__).parents[2] / "fixtures" / "formats" / "referring"
GENOME = FOLDER.parent / "visual_genome"


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
    found = score_regions(asked, written(asked, lambda file: file, generate))  # type: ignore[arg-type, return-value]
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
    found = accuracies("accuracy", [0.5, 0.49, 0.8, 0.0])
    assert (found["accuracy_0.5"]["value"], found["accuracy_0.8"]["value"]) == (50.0, 25.0)


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


def test_answers_are_scored_as_those_of_gqa():
    genome = open_grounded(GENOME, DocumentOpening())[0]
    asked = asked_of(genome, "val", "questions", 0)
    assert len(asked) == 6 and all(one.text.startswith("Question: What color is the block") for one in asked)
    known = {(one.image, one.text): f" {one.about.answer.upper()}." for one in asked if isinstance(one.about, Question)}

    def generate(documents: list[list[Any]]) -> list[str]:
        return [known.get((image, text), "no idea") for image, text in documents]

    found = score_questions(asked, written(asked, lambda file: file, generate))  # type: ignore[arg-type, return-value]
    assert found["exact"]["value"] == 100.0 and found["wrong"]["value"] < 100.0 and len(found["answers"]) == 6
    assert exact([("Green", " the green"), ("Green", "greenish")])["value"] == 50.0


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
