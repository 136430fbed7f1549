"""Benchmarks from tiny folders in their published layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generalist.data.files import DocumentError
from generalist.eval.fewshot.published import LAYOUTS, Benchmark, read_benchmark


def put(path: Path, value: Any) -> Path:
    """A file: an image, JSON, or a list of lines where its name ends so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".jpg", ".JPEG", ".png"):
        shade = np.full((12, 16, 3), value, np.uint8)
        Image.fromarray(shade).save(path, format="PNG" if path.suffix == ".png" else "JPEG")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(one) for one in value))
    elif path.suffix == ".json":
        path.write_text(json.dumps(value))
    else:
        path.write_text(value)
    return path


def coco(folder: Path) -> None:
    for split, first in (("train", 1), ("val", 11)):
        images = [{"id": one, "file_name": f"{one:012d}.jpg"} for one in (first, first + 1)]
        captions = [{"image_id": first + at % 2, "caption": f"caption {at} of {split}"} for at in range(5)]
        put(folder / f"annotations/captions_{split}2017.json", {"images": images, "annotations": captions})
        for image in images:
            put(folder / f"{split}2017/{image['file_name']}", image["id"])


def karpathy(folder: Path, file: str, images: str, inner: str | None) -> None:
    entries = []
    for number, split in enumerate(("train", "restval", "val", "test")):
        entry = {"filename": f"{number}.jpg", "split": split, "sentences": [{"raw": f"{split} a"}, {"raw": "b"}]}
        entries.append(entry if inner is None else entry | {"filepath": inner})
        put(folder / images / (inner or ".") / f"{number}.jpg", number)
    put(folder / file, {"images": entries})


def vqa(folder: Path, prefix: str) -> None:
    for split, first in (("train", 1), ("val", 11)):
        questions = [{"image_id": first, "question": f"{split} {n}?", "question_id": first + n} for n in range(2)]
        people = [{"answer": "yes", "answer_id": n} for n in range(9)] + [{"answer": "no", "answer_id": 10}]
        answers = [{"question_id": one["question_id"], "answers": people[::-1]} for one in reversed(questions)]
        put(folder / f"{prefix}OpenEnded_mscoco_{split}2014_questions.json", {"questions": questions})
        put(folder / f"{prefix}mscoco_{split}2014_annotations.json", {"annotations": answers})
        put(folder / f"{split}2014/COCO_{split}2014_{first:012d}.jpg", first)


def gqa(folder: Path, inner: str = "") -> None:
    for split, first in (("train", 1), ("val", 11)):
        questions = {
            f"0{first + n}": {
                "imageId": f"n{first}",
                "question": f"{split} {n}?",
                "answer": "pink",
                "fullAnswer": "It is pink.",
                "types": {"structural": "query"},
            }
            for n in range(2)
        }
        put(folder / inner / f"{split}_balanced_questions.json", questions)
        put(folder / f"images/n{first}.jpg", first)


def textvqa(folder: Path) -> None:
    for split in ("train", "val"):
        entry = {"question": "what does it say?", "image_id": f"{split}0", "answers": ["stop"] * 6 + ["halt"] * 4}
        put(folder / f"TextVQA_0.5.1_{split}.json", {"data": [entry]})
        put(folder / f"train_images/{split}0.jpg", 5)


def hateful(folder: Path) -> None:
    for file, first in (("train", 1), ("dev_seen", 11)):
        entries = [{"id": n, "img": f"img/{n}.png", "label": n % 2, "text": f"text {n}"} for n in (first, first + 1)]
        put(folder / f"{file}.jsonl", entries)
        for entry in entries:
            put(folder / str(entry["img"]), 7)


def imagenet(folder: Path) -> None:
    mapping = "n01 tench, Tinca tinca\nn02 maillot\nn03 maillot, tank suit\n"
    put(folder / "LOC_synset_mapping.txt", mapping)
    for split in ("train", "val"):
        for synset in ("n01", "n02", "n03"):
            put(folder / f"{split}/{synset}/{split}_{synset}.JPEG", 9)


def jsonl(folder: Path) -> None:
    for split in ("train", "val"):
        people = ["red"] * 3 + ["dark red"]
        put(folder / f"{split}.jsonl", [{"image": "a.png", "question": "which colour?", "answers": people}])
    put(folder / "a.png", 1)


MADE = {
    "coco": coco,
    "coco-karpathy": lambda folder: karpathy(folder, "dataset_coco.json", ".", "val2014"),
    "flickr30k": lambda folder: karpathy(folder, "dataset_flickr30k.json", "flickr30k-images", None),
    "vqav2": lambda folder: vqa(folder, "v2_"),
    "okvqa": lambda folder: vqa(folder, ""),
    "gqa": gqa,
    "textvqa": textvqa,
    "hateful-memes": hateful,
    "imagenet": imagenet,
    "jsonl": jsonl,
}


def read(name: str, folder: Path, **settings: Any) -> Benchmark:
    MADE[name](folder)
    return read_benchmark(name, folder, **settings)


def short(benchmark: Benchmark) -> list[list[tuple[str, str, tuple[str, ...]]]]:
    """Image, question and answers of supports and queries."""
    return [
        [(one.image.name, one.question, one.answers) for one in several]
        for several in (benchmark.supports, benchmark.queries)
    ]


def test_every_layout_is_made_here():
    assert MADE.keys() == LAYOUTS.keys()


def test_captions(tmp_path: Path):
    found = read("coco", tmp_path / "coco")
    assert (found.kind, found.metric, found.tokens, found.template) == ("caption", "cider", 20, "Output: {answer}")
    assert short(found)[1] == [
        ("000000000011.jpg", "", ("caption 0 of val", "caption 2 of val", "caption 4 of val")),
        ("000000000012.jpg", "", ("caption 1 of val", "caption 3 of val")),
    ]
    assert found.supports[0].shown == "caption 0 of train", "of equally frequent ones the first"
    for name in ("flickr30k", "coco-karpathy"):
        assert short(read(name, tmp_path / name)) == [
            [("0.jpg", "", ("train a", "b")), ("1.jpg", "", ("restval a", "b"))],
            [("2.jpg", "", ("val a", "b"))],
        ]


def test_questions(tmp_path: Path):
    for name in ("vqav2", "okvqa"):
        found = read(name, tmp_path / name)
        assert (found.kind, found.metric, found.tokens) == ("vqa", "vqa", 5)
        assert [one.question for one in found.queries] == ["val 0?", "val 1?"]
        assert found.queries[0].answers == ("no", *["yes"] * 9) and found.queries[0].shown == "yes"
        assert found.queries[1].image.name == "COCO_val2014_000000000011.jpg"
    one = read("gqa", tmp_path / "gqa")
    assert (one.kind, one.metric, one.queries[1].question, one.queries[1].answers) == (
        "vqa",
        "exact",
        "val 1?",
        ("pink",),
    )
    assert one.queries[0].image.name == "n11.jpg"
    gqa(tmp_path / "archive", "questions1.2")
    assert short(read_benchmark("gqa", tmp_path / "archive")) == short(one)
    put(tmp_path / "gqa/val_balanced_questions.json", {"07": {"imageId": "../n11", "question": "?", "answer": "a"}})
    with pytest.raises(DocumentError, match="question 07: the image .* is outside"):
        read_benchmark("gqa", tmp_path / "gqa")
    put(tmp_path / "gqa/val_balanced_questions.json", [1])
    with pytest.raises(DocumentError, match="instead of an object with questions by their numbers"):
        read_benchmark("gqa", tmp_path / "gqa")
    text = read("textvqa", tmp_path / "textvqa")
    assert text.tokens == 10 and text.queries[0].image.name == "val0.jpg" and text.queries[0].shown == "stop"


def test_classes(tmp_path: Path):
    memes = read("hateful-memes", tmp_path / "memes")
    assert (memes.kind, memes.metric, memes.classes) == ("classify", "auc", ("no", "yes"))
    assert short(memes)[1] == [("11.png", "text 11", ("yes",)), ("12.png", "text 12", ("no",))]
    found = read("imagenet", tmp_path / "imagenet")
    assert found.classes == ("tench", "maillot", "maillot, tank suit"), "two of the same first name have all names"
    assert short(found)[1][0] == ("val_n01.JPEG", "", ("tench",))
    for image in (tmp_path / "imagenet/val").rglob("*.JPEG"):  # as the archive has them: side by side
        image.rename(tmp_path / "imagenet/val" / image.name)
    lines = "ImageId,PredictionString\nval_n03,n03 1 2 3 4\nval_n01,n01 1 2 3 4 n01 5 6 7 8\n"
    put(tmp_path / "imagenet/LOC_val_solution.csv", lines)
    flat = read_benchmark("imagenet", tmp_path / "imagenet")
    assert [one.answers for one in flat.queries] == [("maillot, tank suit",), ("tench",)]


def test_jsonl_is_of_any_kind(tmp_path: Path):
    found = read("jsonl", tmp_path)
    assert (found.kind, found.metric, found.queries[0].shown) == ("vqa", "vqa", "red")
    chosen = read_benchmark("jsonl", tmp_path, kind="classify")
    assert (chosen.metric, chosen.classes) == ("accuracy", ("dark red", "red"))
    put(tmp_path / "val.jsonl", [{"image": "a.png", "question": "which colour?", "answer": "red"}])
    assert read_benchmark("jsonl", tmp_path).metric == "exact", "one answer is too few for VQA accuracy"
    for split in ("train", "val"):
        put(tmp_path / f"{split}.jsonl", [{"image": "a.png", "answers": ["a red thing"]}])
    captions = read_benchmark("jsonl", tmp_path)
    assert (captions.kind, captions.template, captions.tokens) == ("caption", "Output: {answer}", 20)


def test_of_many_the_same_part_is_taken(tmp_path: Path):
    entries = [{"image": f"{n}.png", "answer": f"thing {n}"} for n in range(50)]
    put(tmp_path / "train.jsonl", entries)
    put(tmp_path / "val.jsonl", entries[:3])
    for number in range(50):
        put(tmp_path / f"{number}.png", number)
    one, same, other = (read_benchmark("jsonl", tmp_path, supports=8, seed=seed).supports for seed in (0, 0, 1))
    numbers = [int(example.image.stem) for example in one]
    assert len(numbers) == 8 and numbers == sorted(set(numbers)) and one == same != other
    assert len(read_benchmark("jsonl", tmp_path, supports=0).supports) == 50
    for number in set(range(50)) - set(numbers) - {0, 1, 2}:
        (tmp_path / f"{number}.png").unlink()
    assert read_benchmark("jsonl", tmp_path, supports=8).supports == one, "only the images of that part are needed"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "../b.png", "answer": "a"}, "val.jsonl line 1: the image .* is outside .*: put it .* inside"),
        ({"image": "b.png", "answer": "a"}, "val.jsonl line 1: there is no image .*b.png"),
        ({"image": "a\0.png", "answer": "a"}, "line 1: .* is not a file name"),
        ({"image": "a.png", "answers": []}, "line 1: its answers are .. instead of texts, at least one"),
        ({"image": "a.png", "answers": [" "]}, "line 1: its answers are"),
        ({"image": "a.png"}, "line 1: its answer is None instead of text"),
        ({"image": 3, "answer": "a"}, "line 1: its image is 3 instead of text"),
        ({"image": "a.png", "answer": "\ud800"}, "half a character"),
        ({"image": "a.png", "answer": "a", "answers": ["b"]}, "line 1 has answers and an answer, which would be lost"),
        ({"image": "cut.png", "answer": "a"}, "val.jsonl line 1: .*cut.png is no image .*; or take the entry out"),
        ({"image": "a.png", "answer": "a", "id": 3}, "line 1 has 'id': known keys are image, question"),
        ({"image": "a.png", "answer": "a"}, "has no question, but others do"),
        (["a.png"], "line 1 holds .* instead of an object"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path: Path, entry: Any, message: str):
    jsonl(tmp_path)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    put(tmp_path / "val.jsonl", [entry])
    with pytest.raises(DocumentError, match=message):
        read_benchmark("jsonl", tmp_path)


def test_a_damaged_folder_is_named(tmp_path: Path):
    with pytest.raises(DocumentError, match=r"no folder .*: coco is read from annotations/captions"):
        read_benchmark("coco", tmp_path / "nowhere")
    with pytest.raises(DocumentError, match="none of annotations/captions_train2014.json"):
        read_benchmark("coco", tmp_path)
    with pytest.raises(ValueError, match="is of the kind caption: leave out its kind"):
        read_benchmark("coco", tmp_path, kind="vqa")
    with pytest.raises(ValueError, match="there is no benchmark 'cocoa'"):
        read_benchmark("cocoa", tmp_path)
    vqa(tmp_path, "")
    put(tmp_path / "mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(DocumentError, match="question 1 has no answer in mscoco_val2014_annotations.json"):
        read_benchmark("okvqa", tmp_path)
    (tmp_path / "mscoco_val2014_annotations.json").write_text("[" * 100_000)
    with pytest.raises(DocumentError, match="is not JSON .*get it again"):
        read_benchmark("okvqa", tmp_path)
    imagenet(tmp_path)
    put(tmp_path / "val/n09/x.JPEG", 1)
    with pytest.raises(DocumentError, match="n09 is not in LOC_synset_mapping.txt"):
        read_benchmark("imagenet", tmp_path)
    hateful(tmp_path)
    put(tmp_path / "dev_seen.jsonl", [{"img": "img/1.png", "label": 2, "text": "a"}])
    with pytest.raises(DocumentError, match="line 1: its label is 2 instead of 0 or 1"):
        read_benchmark("hateful-memes", tmp_path)


@pytest.mark.parametrize("name", MADE)
def test_images_may_be_links(tmp_path: Path, name: str):
    MADE[name](tmp_path / "given")
    for number, path in enumerate(sorted((tmp_path / "given").rglob("*.*"))):
        if path.suffix in (".jpg", ".JPEG", ".png"):
            blob = put(tmp_path / f"blobs/{number}", "")
            path.rename(blob)
            path.symlink_to(blob)
    direct = read_benchmark(name, tmp_path / "given")
    (tmp_path / "linked").mkdir()
    for path in (tmp_path / "given").iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    linked = read_benchmark(name, tmp_path / "linked")
    assert short(linked) == short(direct)


def test_lines_and_marks_of_other_systems(tmp_path: Path):
    imagenet(tmp_path / "imagenet")
    mapping = tmp_path / "imagenet/LOC_synset_mapping.txt"
    mapping.write_bytes(b"\xef\xbb\xbf" + mapping.read_bytes().replace(b"\n", b"\r\n"))
    assert read_benchmark("imagenet", tmp_path / "imagenet").classes == ("tench", "maillot", "maillot, tank suit")
    put(tmp_path / "imagenet/val/n01/._val_n01.JPEG", 9)
    assert len(read_benchmark("imagenet", tmp_path / "imagenet").queries) == 3
    jsonl(tmp_path)
    asked = {"image": "a.png", "question": "which\u2028colour?", "answer": "red"}
    (tmp_path / "val.jsonl").write_text(json.dumps(asked, ensure_ascii=False) + "\n", encoding="utf-8-sig")
    assert read_benchmark("jsonl", tmp_path).queries[0].question == "which\u2028colour?"
