"""RefCOCO, RefCOCO+ and RefCOCOg: read as their maker wrote them, never run, and refused with a line that says what to do."""

import dataclasses
import json
import pickle
import pickletools
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
from generalist.data.formats.faults import TooManyBroken
from generalist.data.formats.plain_pickle import plain_pickle
from generalist.data.formats.refcoco import open_refs
from generalist.data.grounded import pixel_box
from generalist.data.grounded_examples import GroundedExamples, pointing_text, question_text
from generalist.data.images import read_image
from generalist.data.source import Reading, Stored, Ways
from generalist.data.sources.regions import Regions
from generalist.tokenizers.locations import box_text
from generalist.tokenizers.sequence import Assembler, Modality
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary
from tests.fixtures.make_refcoco import COLOURS, boxes

FOLDER = Path(__file__).parents[2] / "fixtures" / "formats" / "referring"
COUNTS = {
    "refcoco": {"train": 2, "val": 2, "testA": 2, "testB": 2},
    "refcoco+": {"train": 2, "val": 2, "testA": 2, "testB": 2},
    "refcocog": {"train": 3, "val": 2, "test": 2},
}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(FOLDER, tmp_path / "referring"))


@pytest.mark.parametrize("name", COUNTS)
def test_every_split_is_read(name: str):
    (found,) = open_refs(FOLDER / name, DocumentOpening())
    assert found.name == name and {split: found.count(split) for split in ("train", *found.splits)} == COUNTS[name]
    assert all(file.is_file() for file in found.files)


def test_a_box_is_that_of_what_the_expression_names():
    (found,) = open_refs(FOLDER / "refcoco", DocumentOpening())
    for split in ("train", *found.splits):
        for index in range(found.count(split)):
            shown = found.image(split, index)
            pixels = read_image(shown.image).astype(float)
            height, width = pixels.shape[:2]
            assert shown.image == found.file(split, index) and len(shown.regions) == 4
            for region in shown.regions:
                top, left, bottom, right = (
                    np.multiply(region.box.sides, (height, width, height, width)).round().astype(int)
                )
                inside = pixels[top + 1 : bottom - 1, left + 1 : right - 1].mean(axis=(0, 1))
                colour = min(COLOURS, key=lambda name: float(np.abs(inside - COLOURS[name]).sum()))
                side = region.phrase.split("block ")[-1].removeprefix("the one ")
                known = next(one for one in boxes(int(shown.image.stem[-12:])) if one[1] == side)
                assert colour == known[0]
                assert "block" not in region.phrase or region.phrase.startswith(colour)


def test_other_divisions():
    google = open_refs(FOLDER / "refcoco", DocumentOpening(), "google")[0]
    assert google.splits == ("val", "test") and google.count("train") == 4
    with pytest.raises(DocumentError, match=r"refcoco\+ has no refs\(google\).p: put it there, or choose unc"):
        open_refs(FOLDER, DocumentOpening(), "google")


def test_no_image_of_any_evaluation_is_trained_on():
    sets = open_refs(FOLDER, DocumentOpening())
    assert [one.name for one in sets] == ["refcoco", "refcoco+", "refcocog"]
    evaluated = {one.file(split, index) for one in sets for split in one.splits for index in range(one.count(split))}
    trained = {one.file("train", index) for one in sets for index in range(one.count("train"))}
    assert trained and not trained & evaluated
    # RefCOCOg alone trains on two images that RefCOCO evaluates, and RefCOCO on one that RefCOCOg evaluates.
    assert sets[2].count("train") == 1 and sets[0].count("train") == 1
    assert sets[2].notes() == ["2 of 3 training images of refcocog are left out, since an evaluation shows them"]


def test_an_index_says_the_same(tmp_path: Path):
    opening = DocumentOpening(index=tmp_path)
    first, again = (open_refs(FOLDER / "refcoco", opening)[0] for _ in range(2))
    plain = open_refs(FOLDER / "refcoco", DocumentOpening())[0]
    assert len(list(tmp_path.glob("refcoco-*.npz"))) == 2
    for split in ("train", *plain.splits):
        for index in range(plain.count(split)):
            assert first.image(split, index) == again.image(split, index) == plain.image(split, index)


def test_a_folder_without_sets_has_none():
    assert open_refs(FOLDER / "train2014", DocumentOpening()) == []


# ---- damage


def _edited(file: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "refcoco" / file
        if path.suffix == ".json":
            path.write_text(json.dumps(edit(json.loads(path.read_text()))), encoding="utf-8")
        else:
            path.write_bytes(pickle.dumps(edit(pickle.loads(path.read_bytes())), protocol=2))

    return change


def _first(**changed: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda entries: [entries[0] | changed, *entries[1:]]


def _instance(kind: str, **changed: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda whole: whole | {kind: _first(**changed)(whole[kind])}


REFS, INSTANCES = "refs(unc).p", "instances.json"
DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / "refcoco" / INSTANCES).unlink(),
     r"there is no .*instances.json: put it there as it is published"),
    (_edited(REFS, lambda entries: entries[:0]), r"refs\(unc\).p holds no list of referred objects: get it again"),
    (_edited(REFS, _first(ann_id="7")),
     r"refs\(unc\).p entry 1: its ann_id is '7' instead of a whole number: get the file again"),
    (_edited(REFS, _first(ann_id=True)), r"entry 1: its ann_id is True instead of a whole number"),
    (_edited(REFS, _first(split="dev")), r"entry 1: its split is 'dev', but there are train, val, test, testA, testB"),
    (_edited(REFS, _first(sentences={"sent": "a"})), r"entry 1: its sentences is an object instead of a list"),
    (_edited(REFS, _first(sentences=["a"])), r"entry 1: in its sentences holds 'a' instead of an object"),
    (_edited(REFS, _first(sentences=[{}])), r"entry 1: in its sentences: its sent is None instead of a text"),
    (_edited(REFS, _first(sentences=[{"sent": "man <loc9999>"}])),
     r"refs\(unc\).p entry 1 has <loc9999> in a text, which is how"),
    (_edited(REFS, _first(ann_id=5)), r"entry 1: its ann_id 5 is not in instances.json: get both files of the same set"),
    (_edited(REFS, _first(image_id=25)), r"entry 1: its ann_id is of another image than its image_id"),
    (_edited(INSTANCES, lambda whole: whole | {"images": []}), r"instances.json has no images, or no annotations"),
    (_edited(INSTANCES, lambda whole: whole | {"images": [*whole["images"], whole["images"][0]]}),
     r"instances.json image 9: number \d+ has image 1 too: get the file again, or take one of them out"),
    (_edited(INSTANCES, lambda whole: whole | {"annotations": [whole["annotations"][0], *whole["annotations"]]}),
     r"instances.json annotation 2: number \d+ has annotation 1 too"),
    (_edited(INSTANCES, _instance("images", height="48")), r"instances.json image 1: its height is '48' instead of a number"),
    (_edited(INSTANCES, _instance("images", file_name=None)), r"image 1: its file_name is None instead of a text"),
    (_edited(INSTANCES, _instance("annotations", bbox=[1, 2, 3])), r"annotation 1: its bbox has 3 numbers instead of four"),
    (_edited(INSTANCES, _instance("annotations", bbox=[1, 2, 3, None])), r"annotation 1: its bbox is None instead of a number"),
    (_edited(INSTANCES, _instance("annotations", bbox=[70, 2, 3, 4])),
     r"annotation 1: its bbox \[70.0, 2.0, 3.0, 4.0\] is not within the image of 64 × 48"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_named(copied: Path, damage: Callable[[Path], Any], message: str):
    damage(copied)
    with pytest.raises(DocumentError, match=message):
        open_refs(copied, DocumentOpening())


def test_an_image_outside_of_the_folder(copied: Path):
    _edited(INSTANCES, _instance("images", file_name="../secret.jpg"))(copied)
    (found,) = open_refs(copied / "refcoco", DocumentOpening())
    with pytest.raises(DocumentError, match=r"image 1: the image '../secret.jpg' is outside the folder"):
        found.image("train", 0)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_all_protocols(protocol: int):
    shared = ["a", "ä"]
    tuples = ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))
    value = {"x": [1, -(2**40), 2**70, 1.5, None, True, False], "y": (), "z": tuples, "s": [shared, shared]}
    found = plain_pickle(pickle.dumps(value, protocol), "file")
    assert found == value and found["s"][0] is found["s"][1]


class _Call:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize("protocol", range(5))
def test_a_program_is_refused_and_not_run(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DocumentError, match=r"file has the instruction \w+, which lists, dictionaries, texts and numbers do not need"
    ):
        plain_pickle(pickle.dumps([_Call()], protocol), "file")
    assert not list(tmp_path.iterdir())


def _deep(levels: int) -> bytes:
    return b"\x80\x02}" + b")" + b"\x85" * levels + b"I1\ns."


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no pickle", pickle.dumps([1, 2])[:-3], b"(lp1\n", b"\x80\x02]\x8b\xff\xff\xff\x7fabc.",
        b"]r\xff\xff\xff\xff", b"e.", b"(I1\ns.", b"}(I1\nu.", b"h\x05.", b"}]I1\ns.", b"(.", _deep(60_000),
        # A text of 2^62 bytes, by its own account.
        b"\x8d" + (2**62).to_bytes(8, "little") + b".",
    ],
)  # fmt: skip
def test_damaged_pickles_are_named_and_cost_nothing(content: bytes):
    with pytest.raises(DocumentError, match="file (is damaged, or is no pickle|has no end)"):
        plain_pickle(content, "file")


def test_any_cut_and_any_changed_byte_is_an_error_or_a_plain_value():
    content = (FOLDER / "refcoco" / REFS).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(content)
        changed[int(rng.integers(len(content)))] = int(rng.integers(256))
        for damaged in (bytes(changed), content[: int(rng.integers(len(content)))]):
            try:
                assert isinstance(plain_pickle(damaged, "file"), list | dict | str | int | float | tuple | None)
            except DocumentError as error:
                assert str(error).startswith("file ")


def test_old_pickles_are_in_python_2s_protocol():
    names = {one.name for one, _, _ in pickletools.genops((FOLDER / "refcoco" / REFS).read_bytes())}
    assert "STRING" in names and "PROTO" not in names
    assert "PROTO" in {
        one.name for one, _, _ in pickletools.genops((FOLDER / "refcoco" / "refs(google).p").read_bytes())
    }


def test_a_box_that_sticks_out_is_cut():
    box = pixel_box(-5.0, 10.0, 20.0, 100.0, of=(40.0, 30.0))
    assert box is not None and box.sides == (0.25, 0.0, 1.0, 0.5)
    assert pixel_box(30.0, 0.0, 5.0, 5.0, of=(40.0, 30.0)) is None
    assert pixel_box(3.0, 3.0, 0.0, 5.0, of=(40.0, 30.0)) is None


# ---- the source


@pytest.fixture(scope="module")
def assembler() -> Assembler:
    text = TextTokenizer.train(
        ["point to the red block on the left: what is at ? answer: green blue middle right"] * 9, 400
    )
    return Assembler(vocabulary=Vocabulary(text=400, locations=1024), text_tokenizer=text, images="patches")


def test_examples_show_the_image_and_learn_boxes_and_phrases(assembler: Assembler):
    (found,) = open_refs(FOLDER / "refcoco", DocumentOpening())
    examples = GroundedExamples(grounded=found, assembler=assembler, length=256, questions=4, describe=0.3)
    assert len(examples) == 2
    regions = [region for index in range(2) for region in found.image("train", index).regions]
    boxes_written, phrases = set(), set()
    for number in range(40):
        sequence = examples.example(number % 2, np.random.default_rng(number))
        assert len(sequence) <= 256 and (sequence.modality == Modality.PATCH).sum() == 64
        learned = assembler.written(
            sequence.targets[(sequence.loss_weight > 0) & (sequence.targets != assembler.vocabulary.chunk_end)]
        )
        boxes_written |= {region.box for region in regions if box_text(region.box) in learned}
        phrases |= {region.phrase for region in regions if f" {region.phrase}" in learned}
    assert phrases == {region.phrase for region in regions} and boxes_written == {region.box for region in regions}
    # A row with little room has fewer questions, and one with none has nothing to learn.
    short = GroundedExamples(grounded=found, assembler=assembler, length=110, questions=4, describe=0.0)
    assert all(len(short.example(0, np.random.default_rng(number))) <= 110 for number in range(9))
    tiny = GroundedExamples(grounded=found, assembler=assembler, length=8, questions=4, describe=0.0)
    assert not tiny.example(0, np.random.default_rng(0)).loss_weight.any()


def test_no_example_has_the_same_box_twice(assembler: Assembler):
    (found,) = open_refs(FOLDER / "refcoco", DocumentOpening())
    # Each object has two expressions: with all of an image in one row, one box would tell the other's answer.
    boxes = [box_text(region.box) for region in found.image("train", 0).regions]
    assert len(boxes) == 2 * len(set(boxes))
    examples = GroundedExamples(grounded=found, assembler=assembler, length=512, questions=4, describe=0.5)
    for number in range(9):
        text = assembler.written(examples.example(0, np.random.default_rng(number)).tokens)
        assert [text.count(box) for box in sorted(set(boxes))] == [1, 1]


def test_texts_of_questions():
    assert pointing_text("man in black") == "point to the man in black:"
    assert pointing_text("the man") == "point to the man:" and pointing_text("A man") == "point to A man:"
    assert question_text("what {is} it?") == "Question: what {is} it? Answer:"


def _said(source: Regions, *, whole: bool = False) -> list[str]:
    said: list[str] = []
    source.check("regions", _stored(), whole, said.append)
    return said


def _stored() -> Stored:
    return Stored(folder=Path("data"), corrections=(), cache=EpisodeCache(1))


def test_the_source(assembler: Assembler):
    source = Regions(weight=1.0, path=str(FOLDER))
    assert source.takes_part and not Regions(weight=1.0).takes_part and source.evaluation_parts == ("regions",)
    assert any("2 of 3 training images of refcocog are left out" in line for line in _said(source, whole=True))
    texts = list(source.texts(_stored()))
    assert "the one on the left" in texts
    reading = Reading(assembler=assembler, layouts={}, length=256)
    assert [len(one) for one in source.open(_stored(), reading)] == [1, 1, 1]
    note = _said(Regions(path=str(FOLDER)))[-1]
    assert "is evaluated but not trained on: data.regions.weight is 0" in note


def test_settings_are_checked(assembler: Assembler):
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"division": "berkeley"}, "data.regions.division must be one of unc, umd, google, got 'berkeley'"),
        ({"unreadable": 1.0}, "data.regions.unreadable must be at least 0 and below 1, got 1.0"),
        ({"questions": 0}, "data.regions.questions must be at least 1, got 0"),
        ({"describe": 1.5}, "data.regions.describe is a share from 0 to 1, got 1.5"),
        ({"evaluation_expressions": -1}, r"data.regions.evaluation_expressions must be at least 0 \(all\), got -1"),
    )
    for changed, message in cases:
        with pytest.raises(ValueError, match=message):
            Regions(**changed)
    with pytest.raises(ValueError, match=r"which data.regions has not: use computed"):
        ways = Ways(images=("frame",), documents=("encoder",), row_images=8, features="stored")
        Regions().check_settings("regions", ways)
    with pytest.raises(
        ValueError, match=r"data.regions.weight is 0.2, but data.regions.path names no folder: set it, or"
    ):
        _said(Regions(weight=0.2))


def test_a_folder_that_was_copied_in_part(copied: Path):
    source = Regions(weight=1.0, path=str(copied))
    images = sorted((copied / "train2014").iterdir())
    images[2].write_bytes(images[2].read_bytes()[:200])
    with pytest.raises(DocumentError, match="000000000030.jpg is no image that can be read"):
        _said(source)
    images[3].unlink()
    missing = "1 of 6 images of refcoco .val, testA, testB. are missing, the first is .*000000000034.jpg: copy the whole folder"
    with pytest.raises(DocumentError, match=missing):
        _said(source)
    elsewhere = Regions(weight=1.0, path=str(copied), images_folder=str(FOLDER / "train2014"))
    assert _said(elsewhere, whole=True)
    assert _said(dataclasses.replace(elsewhere, images_folder=str(FOLDER)), whole=True)


def test_boxes_are_of_the_annotated_pixels(copied: Path, assembler: Assembler):
    source = Regions(weight=1.0, path=str(copied / "refcoco"))
    (found,) = open_refs(copied / "refcoco", DocumentOpening())
    known, photograph = found.photograph("val", 0).read(), found.photograph("val", 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = found.file("val", 0)
    # The camera's note to turn the image is newer than its annotations.
    Image.fromarray(known).save(file, quality=95, exif=exif)
    assert read_image(file).shape == (64, 48, 3)
    assert photograph.read().shape == known.shape
    np.testing.assert_array_less(np.abs(photograph.read().astype(float) - known), 60)
    # The annotations are of the turned image.
    Image.fromarray(np.rot90(known)).save(file, quality=95, exif=exif)
    np.testing.assert_array_less(np.abs(photograph.read().astype(float) - known), 60)
    _said(source)
    Image.fromarray(known).resize((31, 23)).save(file)
    _said(source, whole=True)
    Image.fromarray(known).resize((48, 48)).save(file)
    for whole in (False, True):
        with pytest.raises(
            DocumentError, match=f"{file.name} has 48 × 48 pixels, but its annotations are of 64 × 48: get"
        ):
            _said(source, whole=whole)
    Image.fromarray(known).resize((48, 48)).save(found.file("train", 0))
    examples = GroundedExamples(grounded=found, assembler=assembler, length=256, questions=4, describe=0.0)
    with pytest.raises(TooManyBroken, match="1 of 2 records of .* has 48 × 48 pixels"):
        examples.example(0, np.random.default_rng(0))


def test_an_unreadable_image_is_left_out_and_told(
    copied: Path, assembler: Assembler, capsys: pytest.CaptureFixture[str]
):
    (found,) = open_refs(copied / "refcoco", DocumentOpening())
    file = found.file("train", 0)
    file.write_bytes(file.read_bytes()[:200])
    examples = GroundedExamples(
        grounded=found, assembler=assembler, length=256, questions=4, describe=0.0, unreadable=0.5
    )
    instead = examples.example(0, np.random.default_rng(0))
    assert instead.loss_weight.any() and len(examples.faults.reasons) == 1
    examples.example(0, np.random.default_rng(0))
    told = capsys.readouterr().err
    assert told.count("note: record left out, number 1 of 2") == 1 and file.name in told
