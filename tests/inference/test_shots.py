"""Shots from files, RICES, and `generalist prompt`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generalist.cli.main import main
from generalist.cli.prompt import part_of
from generalist.data.files import DocumentError
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import check_parts, rank
from generalist.inference.shots import Retriever, Shot, check_template, load_shots, mean_features
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
        ("", "has no entries"),
        ('{"image": "0.png"}', "line 1 has no answer: give it one"),
        (
            '{"image": "0.png", "answer": "a"}\n{"image": "0.png", "answer": " "}',
            "line 2: its answer is ' ' instead of text",
        ),
        ('{"image": "0.png", "anwser": "a"}', "line 1 has 'anwser': known are answer, image, question"),
        ('{"answer": "a"}', "neither an image nor a question"),
        ('{"image": "../0.png", "answer": "a"}', "outside the folder"),
        ('{"image": "9.png", "answer": "a"}', "there is no image .*9.png"),
        ('{"image": 3, "answer": "a"}', "its image is 3 instead of text"),
        ('{"question": "half a \\ud83d", "answer": "a"}', "line 1: its question .* has half a character"),
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


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_a_line_ends_at_a_line_feed_alone(folder: Path, mark: str):
    entries = [{"question": f"what{mark}is it?", "answer": "a cat"}] * 2
    lines = "".join(json.dumps(entry, ensure_ascii=mark < " ") + "\r\n" for entry in entries)
    (folder / "shots.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert [shot.question for shot in load_shots(folder / "shots.jsonl")] == [f"what{mark}is it?"] * 2


def test_a_json_list_is_read(folder: Path):
    entries = [{"image": "0.png", "answer": "a cat"}, {"question": "what is a plum?", "answer": "a fruit"}]
    lines = load_shots(write(folder / "shots.jsonl", entries))
    (folder / "shots.json").write_text(json.dumps(entries, indent=2), encoding="utf-8-sig")
    assert load_shots(folder / "shots.json") == lines
    (folder / "shots.json").write_text(json.dumps(entries[0]))
    with pytest.raises(DocumentError, match=r"shots.json holds dict instead of a list of shots"):
        load_shots(folder / "shots.json")
    write(folder / "shots.json", entries)
    with pytest.raises(
        DocumentError, match=r"shots.json is not JSON .*; a file with one entry per line must end in .jsonl"
    ):
        load_shots(folder / "shots.json")


def test_shots_whose_images_are_links(folder: Path):
    (folder / "kept").mkdir()
    (folder / "0.png").rename(folder / "kept/blob")
    (folder / "set").mkdir()
    (folder / "set/0.png").symlink_to("../kept/blob")
    (shot,) = load_shots(write(folder / "set/shots.jsonl", [{"image": "0.png", "answer": "a cat"}]))
    np.testing.assert_array_equal(shot.pixels, picture(0))
    with pytest.raises(DocumentError, match="outside the folder"):
        load_shots(write(folder / "set/shots.jsonl", [{"image": str(folder / "kept/blob"), "answer": "a cat"}]))


def test_yaml_runs_nothing(folder: Path):
    path = folder / "shots.yaml"
    path.write_text("- !!python/object/apply:os.system ['touch ran']\n")
    with pytest.raises(DocumentError, match="is not YAML"):
        load_shots(path)
    path.write_text("image: 0.png\n")
    with pytest.raises(DocumentError, match="holds dict instead of a list"):
        load_shots(path)
    path.write_text("- {question: a, question: b, answer: c}\n")
    with pytest.raises(DocumentError, match="entry 1 has 'question' twice, and one of them would be lost"):
        load_shots(path)
    path.write_text("- {question: is it so, answer: yes}\n")
    with pytest.raises(DocumentError, match="entry 1: its answer is True instead of text: put it in quotes"):
        load_shots(path)


@pytest.mark.parametrize(
    "template", ["answer: {answer}", "{question}", "{question} {answer}!", "{question} {x} {answer}"]
)
def test_a_template_that_does_not_say_where(template: str):
    with pytest.raises(ValueError, match="ends with {answer}"):
        check_template(template)


@pytest.mark.slow
def test_the_likest_image_comes_last(make_model: Callable[..., Generalist]):
    images = [picture(number) for number in range(5)]
    retriever = Retriever(make_model("encoder"), images)
    near = np.clip(images[3].astype(int) + 2, 0, 255).astype(np.uint8)
    chosen = retriever.nearest(near, 3)
    assert chosen[-1] == 3 and len(set(chosen.tolist())) == 3
    likeness = retriever.features @ mean_features(make_model("encoder"), [near])[0]
    assert (np.diff(likeness[chosen]) >= 0).all() and likeness[chosen[0]] >= np.sort(likeness)[-3] - 1e-6
    with pytest.raises(ValueError, match="these weights have none"):
        Retriever(make_model("frame"), images)


@pytest.mark.slow
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
    expected = generalist.prompt(asked, after=after, tokens=4)
    assert [line["answer"] for line in lines] == [text.strip() for text in expected]
    assert [line["images"] for line in lines] == [[str(folder / "0.png")], [str(folder / "3.png")]]
    assert [line["question"] for line in lines] == ["", "what?"]
    assert [line["shots"] for line in lines] == [[1, 2], [1, 2]]
    assert main([*command, "--retrieve", "1"]) == 0
    assert all(len(json.loads(line)["shots"]) == 1 for line in capsys.readouterr().out.splitlines())
    chosen = ["prompt", image, "push", "--choices", "block", " left", *weights]
    assert main(chosen) == 0
    told = capsys.readouterr().out.rsplit("\n", 2)[-2]
    assert told in ("block", "left")
    assert main([*chosen, "--json"]) == 0
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["answer"], line["images"], line["question"]) == (told, [image], "push")
    likelihoods = rank(generalist, [[picture(0), "push"]], [" block", " left"])[0]
    np.testing.assert_allclose([one["log_likelihood"] for one in line["choices"]], likelihoods, rtol=1e-4)
    shares = np.exp(likelihoods) / np.exp(likelihoods).sum()
    np.testing.assert_allclose([one["probability"] for one in line["choices"]], shares, rtol=1e-4)
    assert [one["choice"] for one in line["choices"]] == ["block", "left"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either the parts of one prompt"),
        (["none.png"], "there is no image none.png"),
        (["push", "--retrieve", "2"], "--retrieve needs a number above 0, and --shots"),
        (["push", "--shots", "none.jsonl"], "none.jsonl can't be read"),
        (["push", "--template", "{answer}"], "a template has {question} once"),
        (["push", "--tokens", "0"], "tokens must be at least 1"),
        (["push " * 200], "takes 4"),
        (["picture.tga"], "there is no image picture.tga"),
        (["", "push"], "a part of the prompt is empty"),
        (["caf\udce9.png"], "'caf\\udce9.png' is not UTF-8"),
        (["{folder}/", "push"], "is a folder: name an image in it"),
        (["my cat.png"], "there is no image my cat.png; if the text is meant, write a space behind it"),
        (["{folder}/notes"], "notes is no image that can be read (it is none of PNG, JPEG"),
        (["{folder}/cut", "push"], "cut is no image that can be read (image file is truncated"),
        (["push", "--choices", "a", " "], "--choices needs different texts that are not empty"),
        (["push", "--choices", "a", " a"], "--choices needs different texts that are not empty"),
        (["push", "--choices", "a", "--top-p", "0.5"], "--choices writes nothing: leave out --top-p"),
        (["push", "--template", "Q: {question} A: {answer}"], "--template is for questions in files"),
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
    (folder / "notes").write_text("no image")
    (folder / "cut").write_bytes((folder / "0.png").read_bytes()[:2000])
    arguments = [one.replace("{folder}", str(folder)) for one in arguments]
    assert main(["prompt", *arguments, "--weights", str(folder / "weights")]) == 1
    assert message in " ".join(capsys.readouterr().out.split())


def test_a_file_is_an_image_whatever_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "0.png").rename(folder / "a photo")
    monkeypatch.chdir(folder)
    assert part_of("a photo") == Path("a photo")
    assert part_of("a photo of") == "a photo of"
    assert part_of("what is in 1.png? ") == "what is in 1.png? "
    assert part_of("x" * 5000) == "x" * 5000
    with pytest.raises(
        ValueError, match=r"part 2 of the prompt is the text '1.png', but also names an image file: pass Path"
    ):
        check_parts(["a cat", "1.png"])


def test_nothing_written_is_said(
    folder: Path,
    make_model: Callable[..., Generalist],
    capsys: pytest.CaptureFixture[str],
):
    generalist = make_model("frame")
    generalist.save(folder / "weights")
    image = str(folder / "0.png")
    # Writing ends before the first letter, whatever it is: as where the model ends at once.
    letters = ["--stop", *map(chr, range(32, 127)), "\ufffd"]
    assert main(["prompt", image, "push the", "--tokens", "2", "--weights", str(folder / "weights"), *letters]) == 0
    written = generalist.prompt([Path(image), "push the"], tokens=2, stop=letters[1:])
    told = capsys.readouterr()
    assert not written and told.out.endswith("\n\n")
    assert "note: the model wrote nothing on prompt 1: it ended its text at once" in told.err
    assert "'question: what is this? answer:' with the question in it" in told.err
