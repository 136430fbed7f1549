"""Visual Genome: regions and questions are read as their maker wrote them, in its versions, and damage is named."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.data.episodes import EpisodeCache
from generalist.data.files import DocumentError
from generalist.data.formats.documents import DocumentOpening
from generalist.data.formats.visual_genome import READERS, GenomeSet
from generalist.data.grounded import GroundedSet, Question, Region
from generalist.data.grounded_examples import GroundedExamples
from generalist.data.grounded_sets import open_grounded
from generalist.data.images import read_image
from generalist.data.source import Stored
from generalist.data.sources.regions import Regions
from generalist.tokenizers.locations import Box
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary
from tests.fixtures.make_refcoco import COLOURS, HEIGHT, WIDTH, boxes

FORMATS = Path(__file__).parents[2] / "fixtures" / "formats"
FOLDER = FORMATS / "visual_genome"
NONE = np.zeros(0, np.int64)
NUMBERS, HELD_OUT = (1, 2, 3), (225, 299)
"""Images that are trained on, and evaluated."""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(FOLDER, tmp_path / "visual_genome"))


@pytest.fixture(scope="module")
def genome() -> GenomeSet:
    return GenomeSet(FOLDER, DocumentOpening(), NONE)


def _box(box: list[float]) -> Box:
    x, y, width, height = box
    return Box.of_pixels(y, x, y + height, x + width, height=HEIGHT, width=WIDTH)


def _number(genome: GroundedSet, split: str, index: int) -> int:
    return int(genome.file(split, index).stem)


def test_splits_and_images_of_both_folders(genome: GenomeSet):
    shown = {
        split: [_number(genome, split, index) for index in range(genome.count(split))] for split in ("train", "val")
    }
    assert shown == {"train": list(NUMBERS), "val": list(HELD_OUT)}
    files = [genome.file("train", index) for index in range(3)]
    assert all(file.is_file() for file in files) and {file.parent.name for file in files} == {"VG_100K", "VG_100K_2"}
    assert genome.has_regions and genome.has_questions and genome.notes() == []


def test_what_is_said_of_an_image_and_where_it_is(genome: GenomeSet):
    shown = genome.image("val", 0)
    rectangles = boxes(_number(genome, "val", 0))
    wanted = {f"a {colour} block {side}": _box(box) for colour, side, box in rectangles}
    wanted |= {f"{colour} block": _box(box) for colour, _, box in rectangles}
    wanted |= {f"{colour} block left of {rectangles[1][0]} block": _box(box) for colour, _, box in rectangles[:1]}
    # Of attributes only two objects have some; `red block` is also the name of an object.
    found = {region.phrase: region.box for region in shown.regions}
    assert found == wanted and len(shown.regions) == 3 + 3 + 2 + 1
    assert [*shown.questions] == [
        Question(text=f"What color is the block {side}?", answer=colour.capitalize()) for colour, side, _ in rectangles
    ]
    pixels = read_image(shown.image).astype(float)
    for colour, _, (x, y, width, height) in rectangles:
        inside = pixels[int(y) + 1 : int(y + height) - 1, int(x) + 1 : int(x + width) - 1].mean(axis=(0, 1))
        assert min(COLOURS, key=lambda name: float(np.abs(inside - COLOURS[name]).sum())) == colour


def test_what_cannot_be_pointed_at_is_left_out(genome: GenomeSet):
    rectangles = boxes(1)
    phrases = [region.phrase for region in genome.image("train", 0).regions]
    assert "nowhere" not in phrases and "" not in phrases
    # Two objects have the first one's name: it says neither. Its attribute does.
    assert phrases.count(f"{rectangles[0][0]} block") == 1 and phrases.count(f"{rectangles[2][0]} block") == 1


@pytest.mark.parametrize("name", READERS)
def test_each_file_alone_is_enough(copied: Path, name: str):
    for other in READERS:
        if other != name:
            (copied / other).unlink()
    found = GenomeSet(copied, DocumentOpening(), NONE)
    shown = found.image("train", 1)
    assert bool(shown.regions) == found.has_regions == (name != "question_answers.json")
    assert bool(shown.questions) == found.has_questions == (name == "question_answers.json")
    assert len(found.notes()) == 4 and all("nothing of it is read" in note for note in found.notes())


def test_an_older_layout_says_the_same(copied: Path, genome: GenomeSet):
    names = {"h": "height", "w": "width", "image_id": "id", "names": "name"}
    for file in copied.glob("*.json"):
        text = file.read_text()
        for new, old in names.items():
            text = text.replace(f'"{new}":', f'"{old}":')
        file.write_text(text)
    # Entries of regions have had both: the image's number and their own.
    older = GenomeSet(copied, DocumentOpening(), NONE)
    for split in ("train", "val"):
        for index in range(genome.count(split)):
            assert [*older.image(split, index).regions] == [*genome.image(split, index).regions]


def test_an_index_says_the_same(tmp_path: Path, genome: GenomeSet):
    opening = DocumentOpening(index=tmp_path)
    for found in (GenomeSet(FOLDER, opening, NONE) for _ in range(2)):
        assert [found.image("train", index) for index in range(3)] == [
            genome.image("train", index) for index in range(3)
        ]
    assert len(list(tmp_path.glob("genome-*.npz"))) == 6


def test_no_image_that_refcoco_evaluates_is_trained_on():
    sets = open_grounded(FORMATS, DocumentOpening())
    assert [one.name for one in sets] == ["visual_genome"]
    whole = GenomeSet(FOLDER, DocumentOpening(), np.array([36]))
    assert whole.count("train") == 2 and [_number(whole, "train", index) for index in range(2)] == [1, 2]
    assert "1 training images of visual_genome are left out, since evaluations of other sets show them" in whole.notes()


def test_together_with_refcoco(tmp_path: Path):
    shutil.copytree(FORMATS / "referring", tmp_path, dirs_exist_ok=True)
    shutil.copytree(FOLDER, tmp_path / "visual_genome")
    sets = open_grounded(tmp_path, DocumentOpening())
    assert [one.name for one in sets] == ["refcoco", "refcoco+", "refcocog", "visual_genome"]
    assert sets[3].count("train") == 2
    with pytest.raises(DocumentError, match=r"has no refs\(unc\).p, .* no image_data.json .*, and no folder with one"):
        open_grounded(tmp_path / "train2014", DocumentOpening())
    with pytest.raises(DocumentError, match="there is no folder .*elsewhere: name one"):
        open_grounded(tmp_path / "elsewhere", DocumentOpening())


def test_refcoco_trains_on_no_image_that_visual_genome_evaluates(tmp_path: Path):
    shutil.copytree(FORMATS / "referring", tmp_path, dirs_exist_ok=True)
    genome = Path(shutil.copytree(FOLDER, tmp_path / "visual_genome"))
    refcoco = open_grounded(tmp_path, DocumentOpening())[0]
    assert refcoco.count("train") == 1
    number = int(refcoco.file("train", 0).stem[-12:])
    _changed("image_data.json", lambda entries: entries[3].update(coco_id=number))(genome)
    sets = open_grounded(tmp_path, DocumentOpening())
    assert sets[0].count("train") == 0 and sets[0].count("val") == refcoco.count("val")
    assert sets[0].notes() == ["2 of 2 training images of refcoco are left out, since an evaluation shows them"]


def _changed(file: str, edit: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        entries = json.loads(path.read_text())
        changed = edit(entries)
        # Edits in place give what was taken out, or nothing.
        path.write_text(json.dumps(changed if isinstance(changed, list | dict) else entries))

    return change


REGIONS, OBJECTS, QUESTIONS = "region_descriptions.json", "objects.json", "question_answers.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed("image_data.json", lambda entries: entries[0].pop("width")), "image_data.json entry 1: its w or width is None"),
        (_changed("image_data.json", lambda entries: entries[:2]), "is about image 3, which is not in image_data.json: get"),
        (_changed("image_data.json", lambda entries: {"images": entries}), "holds an object instead of a list of images"),
        (_changed(REGIONS, lambda entries: entries[2].pop("id")), "region_descriptions.json entry 3: its image_id or id is None"),
        (_changed(OBJECTS, lambda entries: []), "objects.json has no entry: get it again"),
        (_changed("image_data.json", lambda entries: [*entries, entries[1]]),
         "image_data.json entry 6: image 2 has entry 2 too: get the file again, or take one of them out"),
        (_changed(REGIONS, lambda entries: [*entries, entries[0]]), "region_descriptions.json entry 6: image 1 has entry 1 too"),
        (_changed("image_data.json", lambda entries: entries[1].update(height=0)),
         "image_data.json entry 2: image 2 has 64 × 0 pixels: get the file again, or put in the image's size"),
        (lambda folder: (folder / REGIONS).write_text((folder / REGIONS).read_text()[:90]), "descriptions.json .*get it"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(copied: Path, damage: Callable[[Path], Any], message: str):
    damage(copied)
    with pytest.raises(DocumentError, match=message):
        GenomeSet(copied, DocumentOpening(), NONE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed(REGIONS, lambda entries: entries[0]["regions"][1].update(phrase=7)),
         "entry 1, number 2 of its regions: its phrase is 7 instead of a text"),
        (_changed(REGIONS, lambda entries: entries[0]["regions"][0].update(height="5")),
         "number 1 of its regions: its h or height is '5' instead of a number"),
        (_changed(OBJECTS, lambda entries: entries[0]["objects"][0].update(names=[])),
         "entry 1, number 1 of its objects: of its names: its name is a list instead of a text"),
        (_changed(OBJECTS, lambda entries: entries[0].update(objects=None)), "entry 1: its objects is None instead of a list"),
        (_changed(REGIONS, lambda entries: entries[0]["regions"][1].update(phrase="a <loc9999>")),
         "descriptions.json entry 1, number 2 of its regions has <loc9999> in a text, which is how a place is written"),
        (_changed(QUESTIONS, lambda entries: entries[0]["qas"][2].update(answer="<loc0001>")),
         "number 3 of its qas has <loc0001> in a text"),
        (_changed(QUESTIONS, lambda entries: entries[0]["qas"][2].pop("answer")), "number 3 of its qas: its answer is None"),
    ],
)  # fmt: skip
def test_a_damaged_entry_is_named(copied: Path, damage: Callable[[Path], Any], message: str):
    damage(copied)
    with pytest.raises(DocumentError, match=message):
        GenomeSet(copied, DocumentOpening(), NONE)


def test_a_list_of_images_alone_is_no_set(copied: Path):
    for name in READERS:
        (copied / name).unlink()
    with pytest.raises(
        DocumentError, match="no image_data.json with one of region_descriptions.json, .*put the files there"
    ):
        open_grounded(copied, DocumentOpening())
    assert "has image_data.json alone" in GenomeSet(copied, DocumentOpening(), NONE).notes()[0]


def test_what_a_small_set_cannot_evaluate_is_told(copied: Path):
    source, said = Regions(path=str(copied)), list[str]()
    stored = Stored(folder=Path("data"), corrections=(), cache=EpisodeCache(1))
    _changed(QUESTIONS, lambda entries: [one | ({"qas": []} if one["id"] in HELD_OUT else {}) for one in entries])(
        copied
    )
    source.check("regions", stored, False, said.append)
    assert (
        said[0].startswith("note: questions of visual_genome val are not evaluated: it has 2 images, and")
        and len(said) == 2
    )
    for name in READERS:
        _changed(name, lambda entries: entries[:4])(copied)
    assert source.sets()[0].scored("val") == ()


def test_attributes_of_all_objects_are_counted_and_parts_may_not_be_empty():
    def block(x: int, name: str, *attributes: str) -> dict[str, Any]:
        return {"x": x, "y": 0, "w": 2, "h": 2, "names": [name], "attributes": [*attributes]}

    blocks = [
        block(0, "block", "red"),
        block(2, "Block", "big", "Red"),
        block(4, " ", "tall"),
        block(6, "hat", " ", "Blue"),
    ]
    found = READERS["attributes.json"]({"attributes": blocks}, (10.0, 10.0), "here")
    assert [one.phrase for one in found if isinstance(one, Region)] == ["big block", "blue hat"]
    pairs = [(blocks[0], "on", blocks[3]), (blocks[2], "on", blocks[0]), (blocks[3], " ", blocks[0])]
    listed = [{"subject": one, "predicate": predicate, "object": other} for one, predicate, other in pairs]
    found = READERS["relationships.json"]({"relationships": listed}, (10.0, 10.0), "here")
    assert [one.phrase for one in found if isinstance(one, Region)] == ["block on hat"]


def test_examples_ask_for_regions_and_answers(genome: GenomeSet):
    text = TextTokenizer.train(
        ["point to the red block: what is at Question: What color is the block? Answer: Green"] * 9, 400
    )
    assembler = Assembler(vocabulary=Vocabulary(text=400, locations=1024), text_tokenizer=text, images="patches")
    examples = GroundedExamples(grounded=genome, assembler=assembler, length=256, questions=3, describe=0.5)
    learned = ""
    for number in range(20):
        sequence = examples.example(number % 3, np.random.default_rng(number))
        targets = sequence.targets[(sequence.loss_weight > 0) & (sequence.targets != assembler.vocabulary.chunk_end)]
        learned += assembler.written(targets)
    assert "<loc" in learned and " block" in learned and any(f" {colour.capitalize()}" in learned for colour in COLOURS)


def test_the_source_with_one_missing_image(copied: Path):
    source = Regions(weight=1.0, path=str(copied))
    stored = Stored(folder=Path("data"), corrections=(), cache=EpisodeCache(1))
    source.check("regions", stored, True, lambda line: None)
    assert any(
        text.startswith("Question: What color is the block on the left? Answer: ") for text in source.texts(stored)
    )
    (copied / "VG_100K_2" / "1.jpg").unlink()
    with pytest.raises(
        DocumentError, match="1 of 3 images of visual_genome .train. are missing, the first is .*/1.jpg"
    ):
        source.check("regions", stored, False, lambda line: None)
    assert isinstance(GenomeSet(copied, DocumentOpening(), NONE).image("val", 1).regions[0], Region)
    for name in ("VG_100K", "VG_100K_2"):
        shutil.rmtree(copied / name)
    # A named folder has both published ones.
    dataclasses.replace(source, images_folder=str(FOLDER)).check("regions", stored, True, lambda line: None)
