"""Few-shot evaluation with a tiny random model, through a synthetic data set."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from generalist.cli.main import main
from generalist.data.documents import read_image
from generalist.eval.fewshot import benchmark_prompts as asking_module
from generalist.eval.fewshot import new_words
from generalist.eval.fewshot import scoring as fewshot
from generalist.eval.fewshot.benchmark_prompts import Asked, Asking, choose, log_likelihoods, write
from generalist.eval.fewshot.new_words import evaluate_new_words
from generalist.eval.fewshot.published import Benchmark, read_benchmark
from generalist.eval.fewshot.scoring import evaluate
from generalist.eval.fewshot.vqa import normalized
from generalist.eval.results import checks
from generalist.eval.results import file as report
from generalist.eval.results.file import Parts
from generalist.eval.results.scores import area, area_under_curve
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import rank
from generalist.inference.shots import Retriever
from generalist.tokenizers.sequence import CHUNK_END

Models = Callable[..., Generalist]
COLOURS = ("red", "blue", "left")
QUICK = {"shots": (0, 2), "seeds": 2, "beams": 2, "tokens": 3}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five supports and three queries with questions; the first query's image is nearly the fourth support's."""
    for split, first, count in (("train", 0, 5), ("val", 10, 3)):
        entries = []
        for number in range(first, first + count):
            pixels = np.clip(picture(3).astype(int) + 2, 0, 255).astype(np.uint8) if number == 10 else picture(number)
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
            entries.append({"image": f"{number}.png", "question": "push?", "answer": COLOURS[number % 3]})
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return tmp_path


def classes(folder: Path, **changed: Any) -> Benchmark:
    found = read_benchmark("jsonl", folder, kind="classify")
    return dataclasses.replace(found, **{"template": "Output: {answer}", "classes": COLOURS} | changed)


def without_questions(benchmark: Benchmark) -> Benchmark:
    several = ([dataclasses.replace(one, question="") for one in of] for of in (benchmark.supports, benchmark.queries))
    supports, queries = several
    return dataclasses.replace(benchmark, supports=supports, queries=queries)


def test_shots_and_query(folder: Path, make_model: Models):
    benchmark = read_benchmark("jsonl", folder)
    asked = Asked(make_model("frame"), benchmark, Asking())
    image = [one.image for one in benchmark.supports]
    shots = [image[3], "Question: push? Answer:", " red", image[1], "Question: push? Answer:", " blue"]
    query = [benchmark.queries[0].image, "Question: push? Answer:"]
    assert asked.prompt(0, [3, 1]) == [*shots, *query]
    text = ["Question: push? Answer:", " red", CHUNK_END, "Question: push? Answer:", " blue", CHUNK_END]
    assert asked.prompt(0, [3, 1], with_images=False) == [*text, *query], "zero shots: text alone, but for the query"
    bare = Asked(make_model("frame"), benchmark, Asking(template="{answer}"))
    assert bare.prompt(0, [3]) == [image[3], " red", query[0]]


@pytest.mark.parametrize("images", ["frame", "frame+encoder", "patches"])
def test_as_many_shots_as_fit(folder: Path, make_model: Models, images: str):
    whole = make_model(images)
    benchmark = read_benchmark("jsonl", folder)
    for with_images in (True, False):
        sizes = []
        for count in range(4):
            shots = [4, 0, 2][3 - count :]
            parts = Asked(whole, benchmark, Asking()).prompt(1, shots, with_images=with_images)
            parts = [read_image(part) if isinstance(part, Path) else part for part in parts]
            sizes.append(len(whole.assembler.document(parts, is_open=True)) + benchmark.tokens)
        for count, size in enumerate(sizes):
            for length, fitting in ((size, count), (size - 1, count - 1)):
                data = dataclasses.replace(whole.config.data, length=length)
                narrow = whole.with_config(dataclasses.replace(whole.config, data=data))
                asked = Asked(narrow, benchmark, Asking())
                assert asked.fitting(1, [4, 0, 2], with_images=with_images) == fitting


@pytest.mark.slow
def test_too_many_shots_are_left_out_and_named(folder: Path, make_model: Models):
    generalist = make_model("frame")
    asked = Asked(generalist, classes(folder), Asking())
    benchmark = without_questions(asked.benchmark)
    size = 1 + asked.length(benchmark.queries[0], answered=False) + asked.tokens
    size += max(asked.length(one, answered=True) for one in benchmark.supports)
    data = dataclasses.replace(generalist.config.data, length=size)
    narrow = generalist.with_config(dataclasses.replace(generalist.config, data=data))
    found = evaluate(narrow, benchmark, Asking(shots=(0, 4), seeds=1))
    assert [cell["shots"] for cell in found["cells"]] == [0]
    (left,) = found["left_out"]
    assert left["shots"] == 4 and left["context"] == size and 1 <= left["fitting"] < 4
    with pytest.raises(ValueError, match=rf"longer than the context of {size}, in which {left['fitting']} shots fit"):
        evaluate(narrow, benchmark, Asking(shots=(4,), seeds=1))


@pytest.mark.slow
def test_orders_are_averaged(folder: Path, make_model: Models):
    generalist = make_model("frame")
    benchmark = without_questions(classes(folder, metric="auc"))
    asked = Asked(generalist, benchmark, Asking())
    orders = [asked.prompt(1, shots) for shots in ([0, 1], [1, 0])]
    names = [f" {name}" for name in COLOURS]
    each = np.concatenate([rank(generalist, [one], names) for one in orders])
    assert np.abs(each[0] - each[1]).max() > 1e-3, "the order matters"
    mean = each.mean(axis=0)
    (answer, alone) = choose(asked, [orders, orders[:1]])
    assert answer["answer"] == COLOURS[int(mean.argmax())] and alone["answer"] == COLOURS[int(each[0].argmax())]
    assert answer["log_odds"] == pytest.approx(mean[2] - np.logaddexp(mean[0], mean[1]), abs=1e-4)
    assert alone["log_odds"] == pytest.approx(each[0, 2] - np.logaddexp(each[0, 0], each[0, 1]), abs=1e-4)
    # Of what the orders write, the likeliest an id after all of them.
    written = [write(asked, [[one]])[0]["answer"] for one in orders]
    (together,) = write(asked, [orders])
    assert together["answer"] in written


@pytest.mark.slow
def test_many_classes_after_one_reading(folder: Path, make_model: Models, monkeypatch: pytest.MonkeyPatch):
    generalist = make_model("frame")
    asked = Asked(generalist, classes(folder), Asking())
    prompts, names = [asked.prompt(0, [0]), asked.prompt(1, [])], [" red", " blue block", " left"]
    together = log_likelihoods(generalist, prompts, names)
    monkeypatch.setattr(asking_module, "CHOICES_AT_ONCE", 2)
    np.testing.assert_allclose(log_likelihoods(generalist, prompts, names), together, atol=1e-4)


@pytest.mark.slow
def test_the_nearest_image_comes_last(folder: Path, make_model: Models, tmp_path: Path):
    generalist = make_model("encoder")
    benchmark = without_questions(classes(folder))
    found = evaluate(generalist, benchmark, Asking(shots=(3,), retrieve=True))
    (cell,) = found["cells"]
    (answers,) = cell["answers"]  # nothing is drawn: one seed
    retriever = Retriever(generalist, [read_image(one.image) for one in benchmark.supports])
    nearest = [retriever.nearest(read_image(one.image), 3).tolist() for one in benchmark.queries]
    assert [one["shots"] for one in answers] == nearest and nearest[0][-1] == 3
    with pytest.raises(ValueError, match="these weights have none"):
        evaluate(make_model("frame"), benchmark, Asking(retrieve=True, shots=(1,)))


def test_what_was_finished_is_kept(folder: Path, make_model: Models, monkeypatch: pytest.MonkeyPatch):
    benchmark, kept = without_questions(classes(folder)), Parts(folder=folder / "parts")
    settings = Asking(shots=(1,), seeds=1)
    first = evaluate(make_model("frame"), benchmark, settings, kept=kept)

    def never(*given: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(fewshot, "choose", never)
    assert evaluate(make_model("frame"), benchmark, settings, kept=kept) == first
    with pytest.raises(AssertionError, match="asked again"):
        evaluate(make_model("frame"), benchmark, dataclasses.replace(settings, template="a {answer}"), kept=kept)


def test_area_under_curve():
    positive = np.array([True, True, False, False])
    assert area_under_curve(np.array([3.0, 2.0, 1.0, 0.0]), positive) == 100.0
    np.testing.assert_allclose(
        area_under_curve(np.array([[0, 1, 2, 3], [1, 1, 1, 1], [3, 1, 2, 0]]), positive), [0, 50, 75]
    )
    estimate = area(np.array([[3.0, 1.0, 2.0, 0.0], [3.0, 2.0, 1.0, 0.0]]), positive)
    assert estimate.value == 87.5 and estimate.low < 87.5 <= estimate.high == 100.0
    with pytest.raises(ValueError, match="both kinds of queries, got 4 of 4"):
        area_under_curve(np.zeros(4), np.ones(4, bool))


@pytest.mark.slow
def test_the_command(folder: Path, make_model: Models, capsys: pytest.CaptureFixture[str]):
    make_model("frame").save(folder / "weights")
    out = folder / "results.json"
    given = ["eval", "fewshot", "--weights", str(folder / "weights"), "--data", "jsonl", "--folder", str(folder)]
    given += ["--shots", "0", "2", "9", "--seeds", "2", "--beams", "2", "--tokens", "3", "--out", str(out)]
    assert main(given) == 1
    assert "9 shots need as many examples, but jsonl has 5" in capsys.readouterr().out
    given.remove("9")
    assert main(given) == 0
    shown, stored = capsys.readouterr().out, json.loads(out.read_text())
    assert "exact match %" in shown and not list(folder.glob(".*parts"))
    assert stored["digest"] == checks.digest(stored) and stored["command"][:3] == ["generalist", "eval", "fewshot"]
    found = stored["fewshot"]
    assert [cell["shots"] for cell in found["cells"]] == [0, 2] and not found["left_out"]
    assert report.load_fewshot(out) == stored
    for cell in found["cells"]:
        assert np.shape(cell["by_seed"]) == (2,) and cell["score"]["value"] == pytest.approx(np.mean(cell["by_seed"]))
        for answers, mean in zip(cell["answers"], cell["by_seed"], strict=True):
            right = [
                normalized(one["answer"]) == query["answers"][0]
                for one, query in zip(answers, found["queries"], strict=True)
            ]
            assert [one["score"] for one in answers] == [100.0 * one for one in right]
            assert mean == pytest.approx(100.0 * np.mean(right))
            assert all(len(set(one["shots"])) == 2 for one in answers)
    drawn = [[one["shots"] for one in answers] for answers in found["cells"][1]["answers"]]
    assert drawn[0] != drawn[1]
    # An answer in the file is what the prompt gives.
    generalist, benchmark = make_model("frame"), read_benchmark("jsonl", folder)
    asked = Asked(generalist, benchmark, Asking(**QUICK))
    text = generalist.prompt(asked.prompt(2, drawn[1][2]), tokens=3, beams=2)
    assert found["cells"][1]["answers"][1][2]["answer"] == text.strip()
    assert main(given) == 1
    assert "exists already" in capsys.readouterr().out
    check_report(out, [f"{one} shots" for one in (0, 2)], images=3 + 3 * 3)
    found["cells"][1]["by_seed"][0] += 1.0
    check_edited(out, stored, "score by seed with 2 shots")


def check_report(results: Path, texts: list[str], images: int) -> None:
    """The report has these texts and as many images as are needed, all within it."""
    page = results.with_suffix(".html")
    assert main(["eval", "report", str(results), "--out", str(page)]) == 0
    html = page.read_text()
    assert all(text in html for text in texts) and "no image" not in html
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == images and all(source.startswith("data:image/webp;base64,") for source in sources)


def check_edited(path: Path, results: dict[str, Any], message: str) -> None:
    """An edited number is recognised even under a new digest."""
    edited = path.with_name("edited.json")
    results = {name: value for name, value in results.items() if name != "digest"}
    report.save(edited, results)
    with pytest.raises(ValueError, match=f"not as it was written: the {message}"):
        report.load_fewshot(edited)


@pytest.mark.slow
def test_new_words(tmp_path: Path, make_model: Models, capsys: pytest.CaptureFixture[str]):
    make_model("frame+encoder").save(tmp_path / "weights")
    out = tmp_path / "results.json"
    given = ["--queries", "2", "--shots", "1", "--weights", str(tmp_path / "weights"), "--out", str(out)]
    assert main(["eval", "fewshot", *given]) == 0
    stored = report.load_fewshot(out)
    found = stored["new_words"]
    assert [(cell["ways"], cell["shots"]) for cell in found["cells"]] == [(2, 1), (5, 1)]
    for cell in found["cells"]:
        for name in ("model", "shuffled", "rices", "nearest"):
            right = np.array(cell["answers"][name]) == cell["right"]
            assert len(right) == 2 and cell[name]["value"] == 100.0 * right.mean()
        example = cell["examples"][0]
        assert len(example["shots"]) == cell["ways"] * cell["shots"] and example["right"] == cell["right"][0]
        assert example["answer"] == cell["answers"]["model"][0]
    shown = capsys.readouterr().out
    assert "new words for new things" in shown and "RICES" in shown
    name = found["cells"][0]["examples"][0]["names"][0].strip()
    texts = ["New words for new things", "RICES", "2 ways, 1 shots per class", name]
    check_report(out, texts, images=2 * 3 + 2 * 6)
    other = tmp_path / "other.json"
    report.save(other, {name: value for name, value in stored.items() if name != "digest"} | {"weights": "others"})
    assert main(["eval", "report", str(out), "--fewshot", str(other), "--out", str(tmp_path / "page.html")]) == 1
    assert "is of other weights than" in " ".join(capsys.readouterr().out.split())
    found["cells"][0]["rices"]["value"] += 1.0
    check_edited(out, stored, "accuracy of rices, 2 ways, 1 shots")


@pytest.mark.slow
def test_new_words_go_on_where_they_were_stopped(tmp_path: Path, make_model: Models, monkeypatch: pytest.MonkeyPatch):
    model, kept = make_model("frame+encoder"), Parts(folder=tmp_path / "parts")
    asked = {"count": 2, "ways": (2,), "shots": (0, 1), "console": Console(quiet=True)}
    whole = evaluate_new_words(model, **asked)
    ask, calls = new_words._answers, []

    def stopped(*given: Any) -> list[int]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(given)
        return ask(*given)

    monkeypatch.setattr(new_words, "_answers", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate_new_words(model, **asked, kept=kept)
    assert len(list(kept.folder.iterdir())) == 2
    calls[:] = []
    monkeypatch.setattr(new_words, "_answers", lambda *given: calls.append(given) or ask(*given))
    assert evaluate_new_words(model, **asked, kept=kept) == whole and len(calls) == 2


@pytest.mark.slow
def test_captions(folder: Path, make_model: Models):
    benchmark = without_questions(read_benchmark("jsonl", folder, kind="caption"))
    found = evaluate(make_model("frame"), benchmark, Asking(**QUICK | {"shots": (1,), "seeds": 1}))
    (cell,) = found["cells"]
    assert found["metric"] == "cider" and len(cell["bleu"]) == 4 and found["chance"] is None
    assert cell["score"]["value"] == pytest.approx(np.mean([one["score"] for one in cell["answers"][0]]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data", "jsonl"], "name the folder of jsonl with --folder: train.jsonl"),
        (["--seeds", "3"], "--seeds is for benchmarks"),
        (["--queries", "0"], "--queries must be at least 1"),
        (["--queries", "-1"], "--queries must be at least 0"),
        (["--shots", "1", "1"], "--shots must be different numbers"),
        (["--data", "jsonl", "--folder", ".", "--beams", "0"], "beams must be at least 1"),
        (["--data", "jsonl", "--folder", ".", "--shots", "-1"], "shots must be different numbers of at least 0"),
        (["--data", "jsonl", "--folder", ".", "--template", "{answer}."], "a template must end with {answer}"),
        (["--data", "jsonl", "--folder", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "fewshot", *given]) == 1
    assert message in " ".join(capsys.readouterr().out.split())


def test_a_question_needs_its_place(folder: Path, make_model: Models):
    with pytest.raises(ValueError, match=r"write \{question\} into the template 'Output: \{answer\}'"):
        evaluate(make_model("frame"), read_benchmark("jsonl", folder), Asking(shots=(0,), template="Output: {answer}"))


def test_a_language_model_answers_from_the_texts_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    weights = Path(__file__).parents[2] / "fixtures" / "language" / "qwen3"
    out = tmp_path / "blind.json"
    options = ["--data", "jsonl", "--folder", str(folder), "--shots", "0", "2", "--seeds", "1", "--out", str(out)]
    assert main(["eval", "fewshot", "--weights", str(weights), *options]) == 0
    assert "a language model sees no images" in capsys.readouterr().out
    cells = json.loads(out.read_text())["fewshot"]["cells"]
    assert [cell["shots"] for cell in cells] == [0, 2]
    generalist = Generalist.load(weights)
    asked = Asked(generalist, read_benchmark("jsonl", folder), Asking(shots=(0, 2)))
    ids = generalist.assembler.document(asked.prompt(0, [0, 1]), is_open=True).tokens
    assert generalist.tokenizers.text.decode(ids).count("\n") == 2  # one behind each shot
    assert asked.length(asked.benchmark.supports[0], answered=True) + asked.length(
        asked.benchmark.supports[1], answered=True
    ) + asked.length(asked.benchmark.queries[0], answered=False) == len(ids)
    # What is written ends with its line.
    assert all("\n" not in one["answer"] for cell in cells for answers in cell["answers"] for one in answers)
