"""Shots from files, RICES, and `generalist prompt`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generalist.cli import main
from generalist.data.files import DocumentError
from generalist.inference.load import Generalist
from generalist.inference.shots import Retriever, Shot, check_template, load_shots
from generalist.tokenizers.sequence import CHUNK_END


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    return tmp_path


def write(path: Path, entries: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def test_shots_of_both_files_are_the_same(folder: Path):
    entries = [
        {"image": "0.png", "answer": "a cat"},
        {"image": "1.png", "question": "what is this?", "answer": " a dog"},
        {"question": "what is a plum?", "answer": "a fruit"},
    ]
    lines = load_shots(write(folder / "shots.jsonl", entries))
    (folder / "shots.yaml").write_text(
        "- {image: 0.png, answer: a cat}\n- image: 1.png\n  question: what is this?\n  answer: ' a dog'\n"
        "- {question: 'what is a plum?', answer: a fruit}\n"
    )
    assert load_shots(folder / "shots.yaml") == lines
    parts = [shot.parts() for shot in lines]
    np.testing.assert_array_equal(parts[0][0], picture(0))
    assert parts[0][1:] == [" a cat"]
    assert parts[1][1:] == ["question: what is this? answer:", " a dog"]
    assert parts[2] == ["question: what is a plum? answer:", " a fruit", CHUNK_END]
    assert lines[1].parts("Q {question} A {answer}", with_image=False) == ["Q what is this? A", " a dog", CHUNK_END]
    assert Shot(image=picture(0), question="why").parts()[1:] == ["question: why answer:"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no entry"),
        ('{"image": "0.png"}', "line 1 has no answer: give it one"),
        (
            '{"image": "0.png", "answer": "a"}\n{"image": "0.png", "answer": " "}',
            "line 2: its answer is ' ' instead of text",
        ),
        ('{"image": "0.png", "anwser": "a"}', "line 1 has 'anwser': there are answer, image, question"),
        ('{"answer": "a"}', "neither an image nor a question"),
        ('{"image": "../0.png", "answer": "a"}', "outside the folder"),
        ('{"image": "9.png", "answer": "a"}', "there is no image .*9.png"),
        ('{"image": 3, "answer": "a"}', "its image is 3 instead of text"),
        ("[1]", "line 1 holds .1. instead of an image"),
        ("{", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_a_damaged_file_names_its_entry(folder: Path, content: str, message: str):
    path = folder / "shots.jsonl"
    path.write_text(content)
    with pytest.raises(DocumentError, match=message):
        load_shots(path)


def test_yaml_runs_nothing(folder: Path):
    path = folder / "shots.yaml"
    path.write_text("- !!python/object/apply:os.system ['touch ran']\n")
    with pytest.raises(DocumentError, match="is not YAML"):
        load_shots(path)
    path.write_text("image: 0.png\n")
    with pytest.raises(DocumentError, match="holds dict instead of a list"):
        load_shots(path)


@pytest.mark.parametrize(
    "template", ["answer: {answer}", "{question}", "{question} {answer}!", "{question} {x} {answer}"]
)
def test_a_template_that_does_not_say_where(template: str):
    with pytest.raises(ValueError, match="ends with {answer}"):
        check_template(template)


def test_the_likest_image_comes_last(make_model: Callable[..., Generalist]):
    images = [picture(number) for number in range(5)]
    retriever = Retriever(make_model("encoder"), images)
    near = np.clip(images[3].astype(int) + 2, 0, 255).astype(np.uint8)
    chosen = retriever.nearest(near, 3)
    assert chosen[-1] == 3 and len(set(chosen.tolist())) == 3
    likeness = retriever.features @ retriever.embed([near])[0]
    assert (np.diff(likeness[chosen]) >= 0).all() and likeness[chosen[0]] >= np.sort(likeness)[-3] - 1e-6
    with pytest.raises(ValueError, match="these weights have none"):
        Retriever(make_model("frame"), images)


def test_the_command(folder: Path, make_model: Callable[..., Generalist], capsys: pytest.CaptureFixture[str]):
    generalist = make_model("frame+encoder")
    generalist.save(folder / "weights")
    weights = ["--weights", str(folder / "weights")]
    image, told = str(folder / "0.png"), ["--tokens", "4"]
    assert main(["prompt", image, "push the", *told, *weights]) == 0
    expected = generalist.prompt([picture(0), "push the"], tokens=4)
    assert capsys.readouterr().out.endswith(f"{expected}\n")
    shots = write(
        folder / "shots.jsonl", [{"image": f"{number}.png", "answer": f"block {number}"} for number in (1, 2)]
    )
    queries = write(folder / "queries.jsonl", [{"image": "0.png"}, {"image": "3.png", "question": "what?"}])
    command = ["prompt", "--queries", str(queries), "--shots", str(shots), *told, *weights, "--json"]
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    after = generalist.read([picture(1), " block 1", picture(2), " block 2"])
    asked = [[picture(0)], [picture(3), "question: what? answer:"]]
    assert [line["text"] for line in lines] == generalist.prompt(asked, after=after, tokens=4)
    assert [line["shots"] for line in lines] == [[1, 2], [1, 2]]
    assert main([*command, "--retrieve", "1"]) == 0
    assert all(len(json.loads(line)["shots"]) == 1 for line in capsys.readouterr().out.splitlines())
    assert main(["prompt", image, "--choices", "block", "left", *weights]) == 0
    assert capsys.readouterr().out.strip().rsplit("\n", 1)[-1].strip() in ("block", "left")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the parts of one prompt"),
        (["none.png"], "there is no image none.png"),
        (["push", "--retrieve", "2"], "--retrieve takes a number above 0 and needs --shots"),
        (["push", "--shots", "none.jsonl"], "none.jsonl can't be read"),
        (["push", "--template", "{answer}"], "a template has {question} once"),
        (["push", "--tokens", "0"], "tokens must be at least 1"),
        (["push " * 200], "takes 4"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path,
    make_model: Callable[..., Generalist],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
):
    make_model("frame").save(folder / "weights")
    assert main(["prompt", *arguments, "--weights", str(folder / "weights")]) == 1
    assert message in " ".join(capsys.readouterr().out.split())
