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
from generalist.eval.fewshot.baselines import described, with_copied, without_model
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


def shots_of(*several: list[int]) -> list[list[dict[str, Any]]]:
    """One seed's answers, each that of the last shot of query 0, with these shots."""
    return [[{"shots": shots, "answer": "Red."} for shots in several]]


@pytest.mark.parametrize("images", ["frame", "encoder"])
def test_what_the_shots_alone_give_away(folder: Path, make_model: Models, images: str):
    """Supports are red, blue, left, red and blue; the image of query 0 is nearly that of support 3."""
    asked = Asked(make_model(images), classes(folder), Asking())
    given = shots_of([4, 1, 3], [2, 4, 1], [1, 0, 2])
    found = without_model(asked, 3, given)
    majority, nearest = ([one["answer"] for one in (found[name] or [[]])[0]] for name in ("majority", "nearest"))
    assert majority == ["blue", "blue", "blue"]  # of equally frequent ones the first
    assert nearest[0] == "red" and (found["nearest"] or [[]])[0][0]["nearest"] == 3
    distances = {}
    known = described(asked.generalist, [one.image for one in (*asked.benchmark.queries, *asked.benchmark.supports)])
    for number in (1, 0, 2):
        apart = known[asked.benchmark.queries[2].image] - known[asked.benchmark.supports[number].image]
        distances[COLOURS[number % 3]] = np.linalg.norm(apart)
    assert nearest[2] == min(distances, key=distances.__getitem__)
    assert [one["copied"] for one in with_copied(asked, given)[0]] == [True, False, False]
    # Where images are in the order of likeness, nothing is compared again.
    sorted_ones = Asked(asked.generalist, asked.benchmark, Asking(retrieve=True))
    assert [one["answer"] for one in (without_model(sorted_ones, 3, given)["nearest"] or [[]])[0]] == [
        "red",
        "blue",
        "left",
    ]


def test_without_images_or_shots_some_baselines_have_no_answer(folder: Path, make_model: Models):
    frame, benchmark = make_model("frame"), classes(folder, metric="auc", classes=("red", "left", "blue"))
    asked = Asked(frame, benchmark, Asking(permutations=2))
    assert without_model(asked, 0, shots_of([])) == {"majority": None, "nearest": None}
    assert "copied" not in with_copied(asked, shots_of([0]))[0][0]  # of several orders none is the last
    assert without_model(asked, 0, shots_of([0, 1]))["nearest"] is None  # shots of text alone
    votes = without_model(asked, 4, shots_of([4, 1, 3, 0]))
    assert [[(one["answer"], one["log_odds"]) for one in (several or [[]])[0]] for several in votes.values()] == [
        [("blue", 0.5)],
        [("red", 0.0)],
    ]


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
            last = [found["supports"][one["shots"][-1]]["answers"][0] for one in answers]
            assert [one["copied"] for one in answers] == [
                normalized(one["answer"]) == answer for one, answer in zip(answers, last, strict=True)
            ]
        assert (cell["baselines"]["nearest"] is None) == (cell["shots"] == 0)
    for one in found["cells"][1]["baselines"].values():
        assert np.shape(one["by_seed"]) == (2,) and one["score"]["value"] == pytest.approx(np.mean(one["by_seed"]))
    assert all(name in shown for name in ("majority", "nearest", "copied %")) and "shot, by pixels" in " ".join(
        shown.split()
    )
    drawn = [[one["shots"] for one in answers] for answers in found["cells"][1]["answers"]]
    assert drawn[0] != drawn[1]
    # An answer in the file is what the prompt gives.
    generalist, benchmark = make_model("frame"), read_benchmark("jsonl", folder)
    asked = Asked(generalist, benchmark, Asking(**QUICK))
    text = generalist.prompt(asked.prompt(2, drawn[1][2]), tokens=3, beams=2)
    assert found["cells"][1]["answers"][1][2]["answer"] == text.strip()
    assert main(given) == 1
    assert "exists already" in capsys.readouterr().out
    texts = ["majority of the shots", "nearest shot by pixels", "answers of the last shot"]
    check_report(out, [*texts, *(f"{one} shots" for one in (0, 2))], images=3 + 3 * 3)
    cell = found["cells"][1]
    for edited, message in (
        (cell, "score by seed"),
        (cell["copied"], "copy rate by seed"),
        (cell["baselines"]["nearest"], "score of nearest by seed"),
    ):
        edited["by_seed"][0] += 1.0
        check_edited(out, stored, message.replace(" by seed", " with 2 shots by seed"))
        edited["by_seed"][0] -= 1.0
    # A file of an earlier version has none of these.
    for one in found["cells"]:
        del one["copied"], one["baselines"]
    del found["nearest_by"]
    out.unlink()
    report.save(out, {name: value for name, value in stored.items() if name != "digest"})
    assert report.load_fewshot(out)["fewshot"] == found
    out.with_suffix(".html").unlink()
    check_report(out, ["2 shots"], images=3 + 3 * 3)


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
    found["cells"][0]["rices"]["value"] -= 1.0
    assert found["cells"][0]["copied"]["value"] == 100.0 * np.mean(
        np.array(found["cells"][0]["answers"]["model"]) == found["cells"][0]["last"]
    )
    found["cells"][0]["copied"]["value"] += 1.0
    check_edited(out, stored, "copy rate, 2 ways, 1 shots")
    for cell in found["cells"]:  # of an earlier version
        del cell["copied"], cell["last"]
    out.unlink()
    report.save(out, {name: value for name, value in stored.items() if name != "digest"})
    out.with_suffix(".html").unlink()
    check_report(out, texts, images=2 * 3 + 2 * 6)


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
    shown = " ".join(capsys.readouterr().out.split())
    assert "a language model sees no images" in shown and "skipped, since a language model" in shown
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
