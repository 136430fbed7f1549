"""VQAv2 as it is published, read as documents."""

import json
from pathlib import Path
from typing import Any

import pytest
from document_checks import check_mutations, content, opened
from PIL import Image

from generalist.data.files import DocumentError


def published(folder: Path, prefix: str = "v2_", split: str = "train") -> Path:
    """Three questions about two images; returns the file of questions."""
    images = folder / f"{split}2014"
    images.mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (8, 6), (10 * number, 0, 0)).save(images / f"COCO_{split}2014_{number:012d}.jpg", quality=100)
    asked = [(10, 1, "what is it?"), (30, 2, "is it red?"), (20, 1, "é?")]
    given = {30: ["no", "yes", "yes"], 10: [" a cat "], 20: ["2", "1", "1"]}
    questions: dict[str, Any] = {"info": {"year": [2014, {"a": "]"}]}, "license": None, "questions": []}
    for number, image, question in asked:
        questions["questions"].append({"image_id": image, "question": question, "question_id": number})
    answers = [
        {"question_id": number, "answers": [{"answer": one} for one in several]} for number, several in given.items()
    ]
    file = folder / f"{prefix}OpenEnded_mscoco_{split}2014_questions.json"
    file.write_text(json.dumps(questions, ensure_ascii=False, indent=1))
    (folder / f"{prefix}mscoco_{split}2014_annotations.json").write_text(json.dumps({"annotations": answers}))
    return file


EXPECTED = [
    [1, "Question: what is it? Answer: a cat"],
    [2, "Question: is it red? Answer: yes"],
    [1, "Question: é? Answer: 1"],
]


@pytest.mark.parametrize("prefix", ["v2_", ""])
def test_questions_with_the_answer_most_people_gave(tmp_path: Path, prefix: str):
    file = published(tmp_path / "vqa", prefix)
    published(tmp_path / "vqa", prefix, "val")
    for place in (file, tmp_path / "vqa"):
        found = opened(place, index=tmp_path / "index")
        assert found.format == "VQA" and content(found) == EXPECTED and found.pairs.tolist() == [0, 1, 2]
    assert opened(tmp_path / "vqa", split="validation").where(0).endswith("val2014_questions.json question 1")


def test_what_does_not_fit(tmp_path: Path):
    file = published(tmp_path / "vqa")
    answers = file.with_name("v2_mscoco_train2014_annotations.json")
    answers.write_text(answers.read_text().replace('"question_id": 30', '"question_id": 31'))
    found = opened(file)
    with pytest.raises(DocumentError, match=r"questions\.json question 2 has no answer in v2_mscoco"):
        found.parts(1)
    answers.unlink()
    with pytest.raises(DocumentError, match="there is no .*annotations.json"):
        opened(file)


@pytest.mark.slow
def test_damaged_files_are_refused_by_name(tmp_path: Path):
    file = published(tmp_path)
    assert check_mutations(file, count=200, same=lambda parts, sound: len(parts) == 2) > 60
