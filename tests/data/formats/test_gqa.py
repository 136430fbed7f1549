"""GQA in its published layout: balanced questions to train on, images of evaluations left out, damaged files named."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generalist.data.episodes import EpisodeCache
from generalist.data.files import DocumentError
from generalist.data.formats.documents import DocumentOpening
from generalist.data.formats.json_list import members
from generalist.data.formats.places import place
from generalist.data.grounded import Question
from generalist.data.grounded_sets import open_grounded
from generalist.data.source import Reading, Stored
from generalist.data.sources.regions import Regions
from generalist.data.stable_hash import stable_hash
from generalist.eval.held_out.regions import asked_of, score_questions
from generalist.eval.parts.regions import DescribedRegions
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

REFERRING = Path(__file__).parents[2] / "fixtures" / "formats" / "referring"
# Numbers that Visual Genome's division by their hash trains on, and one that it evaluates.
TRAINED = [number for number in range(1, 400) if stable_hash(str(number)) % 100]
HELD_OUT = next(number for number in range(1, 400) if stable_hash(str(number)) % 100 == 0)
IMAGES = {"train": [*map(str, TRAINED[:3]), "n4"], "val": [str(TRAINED[2]), "n5"], "testdev": ["n6", "n7"]}


def entry(image: str, question: str = "Is it  red?", answer: str = "yes") -> dict[str, Any]:
    return {"imageId": image, "question": question, "answer": answer, "fullAnswer": "…", "isBalanced": True}


def write(folder: Path, split: str, entries: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_balanced_questions.json").write_text(json.dumps(entries))


@pytest.fixture
def gqa(tmp_path: Path) -> Path:
    """Two questions about each image, those of an image apart from each other."""
    folder = tmp_path / "sets" / "gqa"
    (folder / "images").mkdir(parents=True)
    for split, images in IMAGES.items():
        asked = [(number, image) for number in range(2) for image in images]
        entries = {f"0{row}": entry(image, f"{image} {number}?") for row, (number, image) in enumerate(asked)}
        write(folder / ("questions1.2" if split == "val" else "."), split, entries)
        for image in images:
            Image.new("RGB", (40, 32), (200, 30, 30)).save(folder / "images" / f"{image}.jpg")
    return folder


def sets(folder: Path) -> list[Any]:
    return open_grounded(place(str(folder)), DocumentOpening(index=None, workers=1))


def test_questions_of_an_image_are_together_and_images_of_evaluations_are_not_trained_on(gqa: Path):
    (found,) = sets(gqa)
    assert (found.name, found.splits, found.kinds) == ("gqa", ("val", "testdev"), ("questions",))
    shown = [found.image("train", index) for index in range(found.count("train"))]
    assert [one.image.name for one in shown] == [
        f"{name}.jpg" for name in sorted({*IMAGES["train"]} - {*IMAGES["val"]})
    ]
    assert [one.text for one in shown[0].questions] == [f"{shown[0].image.stem} 0?", f"{shown[0].image.stem} 1?"]
    assert "1 training images of gqa are left out" in found.notes()[0]
    assert found.count("val") == found.count("testdev") == 2 and not found.image("val", 0).regions
    assert len(asked_of(found, "val", "questions", 0)) == 4


def test_answers_are_compared_as_they_are_and_by_type(gqa: Path):
    asked = [
        ("verify", "yes", " yes"),
        ("query", "the dog", "dog"),
        ("query", "two", "2"),
        ("choose", "left", "left"),
        ("query", "red", "Red."),
        ("logical", "no", "yes"),
    ]
    entries = {
        str(row): entry(f"n{6 + row % 2}", answer=answer) | {"types": {"structural": structure, "semantic": "attr"}}
        for row, (structure, answer, _) in enumerate(asked)
    }
    write(gqa, "testdev", entries)
    (found,) = sets(gqa)
    written = {answer: text for _, answer, text in asked}
    questions = asked_of(found, "testdev", "questions", 0)
    texts = [written[one.about.answer] for one in questions if isinstance(one.about, Question)]
    scored = score_questions(questions, {"image": texts, "wrong": [""] * 6}, literal=found.literal_answers)
    # Articles, words for numbers, full stops and capitals count, as in the official scorer, and spaces around a text do not.
    assert scored["exact"]["value"] == pytest.approx(100 * 2 / 6)
    shares = {name: (one["exact"]["value"], one["items"]) for name, one in scored["types"].items()}
    assert shares == {
        "binary": (pytest.approx(100 * 2 / 3), 3),
        "choose": (100.0, 1),
        "logical": (0.0, 1),
        "open": (0.0, 3),
        "query": (0.0, 3),
        "verify": (100.0, 1),
    }
    part = DescribedRegions()
    results = {"regions": {"gqa testdev questions": scored}}
    part.check(results)
    assert [row.label for row in part.rows(results)][:2] == [
        "gqa testdev questions, %",
        "gqa testdev questions, binary, %",
    ]
    scored["types"]["open"]["exact"] = scored["types"]["choose"]["exact"]
    with pytest.raises(ValueError, match="gqa testdev questions open"):
        part.check(results)


def test_visual_genome_in_the_same_folder_shares_what_is_held_out(gqa: Path):
    genome = gqa.parent / "visual_genome"
    genome.mkdir()
    numbers = [*TRAINED[:3], HELD_OUT]
    known = [{"image_id": one, "width": 40, "height": 32, "coco_id": None} for one in numbers]
    (genome / "image_data.json").write_text(json.dumps(known))
    asked = [{"id": one, "qas": [{"question": "what?", "answer": "It."}]} for one in numbers]
    (genome / "question_answers.json").write_text(json.dumps(asked))
    write(gqa, "train", {str(one): entry(str(one)) for one in numbers})
    of_genome, found = sets(gqa.parent)
    assert [of_genome.file("train", index).name for index in range(of_genome.count("train"))] == [
        f"{one}.jpg" for one in TRAINED[:2]
    ]
    trained = {found.file("train", index).stem for index in range(found.count("train"))}
    assert trained == {str(one) for one in TRAINED[:2]}


def test_the_list_of_images_alone_tells_what_refcoco_shares(gqa: Path):
    shutil.copytree(REFERRING, gqa.parent, dirs_exist_ok=True)
    refcoco, _, _, before = sets(gqa.parent)
    trained, evaluated = (int(refcoco.file(split, 0).stem[-12:]) for split in ("train", "val"))
    # GQA evaluates an image that RefCOCO trains on, and the other way around.
    listed = [(TRAINED[2], trained), (TRAINED[0], evaluated)]
    (gqa.parent / "visual_genome").mkdir()
    (gqa.parent / "visual_genome" / "image_data.json").write_text(
        json.dumps([{"image_id": one, "width": 40, "height": 32, "coco_id": coco} for one, coco in listed])
    )
    again, _, _, genome, after = sets(gqa.parent)
    assert genome.kinds == () and "has image_data.json alone" in genome.notes()[0]
    assert again.count("train") == refcoco.count("train") - 1
    left = {before.file("train", index).stem for index in range(before.count("train"))}
    assert {after.file("train", index).stem for index in range(after.count("train"))} == left - {str(TRAINED[0])}


def test_two_sets_in_one_folder_are_refused(gqa: Path):
    known = [{"image_id": one, "width": 40, "height": 32, "coco_id": None} for one in TRAINED[:3]]
    (gqa / "image_data.json").write_text(json.dumps(known))
    assert len(sets(gqa)) == 2
    asked = [{"id": one, "qas": [{"question": "what?", "answer": "It."}]} for one in TRAINED[:3]]
    (gqa / "question_answers.json").write_text(json.dumps(asked))
    with pytest.raises(
        DocumentError, match="image_data.json and .*train_balanced_.* both are called gqa by their folder: move"
    ):
        sets(gqa)


def test_questions_need_no_ids_for_places(gqa: Path, make_model: Callable[..., Any]):
    model, part = make_model("frame"), DescribedRegions()
    config = dataclasses.replace(model.config, data=model.config.data.with_sources(regions=Regions(path=str(gqa))))
    part.prepare(config)
    tokenizers = dataclasses.replace(model.tokenizers, config=config)
    jobs = part.jobs(dataclasses.replace(model, tokenizers=tokenizers))
    assert [job.key for job in jobs] == ["gqa val questions", "gqa testdev questions"]


def test_it_is_trained_on(gqa: Path):
    source, said = Regions(weight=1.0, path=str(gqa)), list[str]()
    stored = Stored(folder=gqa, corrections=(), cache=EpisodeCache(1))
    source.check("regions", stored, True, said.append)
    texts = list(source.texts(stored))
    text = TextTokenizer.train([*texts, "abcdefghijklmnopqrstuvwxyz" * 3], 300)
    assembler = Assembler(vocabulary=Vocabulary(text=300, locations=16), text_tokenizer=text, images="patches")
    # A named folder may hold the folder with the images.
    dataclasses.replace(source, images_folder=str(gqa)).check("regions", stored, True, said.append)
    (examples,) = source.open(stored, Reading(assembler=assembler, layouts={}, length=128))
    sequence = examples.example(0, np.random.default_rng(0))
    learned = sequence.targets[sequence.loss_weight > 0]
    assert len(examples) == 3 and text.decode(learned[learned < 300]).count("yes") == 2
    (gqa / "train_balanced_questions.json").unlink()
    with pytest.raises(DocumentError, match="has no image to train on: add the training files"):
        source.check("regions", stored, True, said.append)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds no object"),
        ("{}", "has no question"),
        ('{"1": {"imageId": "1", "question": "?"', "is cut off|is not JSON"),
        ('{"1": {"imageId": "../1", "question": "?", "answer": "a"}}', "question 1: its imageId is '../1'"),
        ('{"1": {"imageId": 1, "question": "?", "answer": "a"}}', "its imageId is 1 instead of a text"),
        ('{"1": {"imageId": "1", "question": " ", "answer": "a"}}', "empty question or answer"),
        ('{"1": {"imageId": "1", "question": "?", "answer": "<loc9999>"}}', "question 1 has <loc9999> in a text"),
        ('{"1": {"imageId": "1", "question": "?", "answer": "a"}} {}', "something behind its end"),
    ],
)
def test_damaged_files_are_named(gqa: Path, content: str, message: str):
    (gqa / "train_balanced_questions.json").write_text(content)
    with pytest.raises(DocumentError, match=f"train_balanced_questions.json.*({message})"):
        sets(gqa)


def test_values_of_an_object_with_their_places(tmp_path: Path):
    path = tmp_path / "one.json"
    path.write_text(' {"a": 1, "b" : {"c": [2]}, "d":"é"}', encoding="utf-8")
    content = path.read_bytes()
    found = list(members(place(str(path))))
    assert [row for row, _, _ in found] == [1, 2, 3]
    assert [content[at : at + len(value)] for _, at, value in found] == [value for _, _, value in found]
    assert [json.loads(value) for _, _, value in found] == [1, {"c": [2]}, "é"]
