"""Drawn tasks whose rule only the shots tell."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.cli.main import main
from generalist.data.images import read_image
from generalist.eval.fewshot.benchmark_prompts import Asking
from generalist.eval.fewshot.induction import COLOURS, TASKS, draw_task, scene, written
from generalist.eval.fewshot.published import read_benchmark
from generalist.eval.fewshot.scoring import evaluate
from generalist.inference.generalist import Generalist


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name in TASKS:
        draw_task(name, folder / name)
    return folder


def entries(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", TASKS)
def test_no_query_is_a_shot_and_the_answer_is_not_told(drawn: Path, name: str):
    benchmark = read_benchmark("jsonl", drawn / name)
    assert benchmark.metric == "exact"
    assert len({one.question for one in (*benchmark.supports, *benchmark.queries)}) == 1
    answers: dict[str, set[str]] = defaultdict(set)
    for one in benchmark.supports:
        answers[one.group].add(one.shown)
    for query in benchmark.queries:
        assert len(answers[query.group]) > 1
    assert len(benchmark.supports) == len(entries(drawn / name, "train")), "none is left out by default"
    assert len(benchmark.queries) == len(entries(drawn / name, "val"))
    shown = {(one.group, hashlib.sha256(read_image(one.image).tobytes()).digest()) for one in benchmark.supports}
    asked = {(one.group, hashlib.sha256(read_image(one.image).tobytes()).digest()) for one in benchmark.queries}
    assert not shown & asked


def test_tasks_are_drawn_the_same_again(drawn: Path, tmp_path: Path):
    draw_task("counting", tmp_path / "again")
    for path in sorted((drawn / "counting").rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(drawn / "counting")).read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        draw_task("counting", tmp_path / "again")


def test_operators_are_computed_by_their_group(drawn: Path):
    for entry in entries(drawn / "operators", "val"):
        image = read_image(drawn / "operators" / entry["image"])
        # The digits, found again by drawing all pairs.
        first, second = next(
            (a, b) for a in range(10) for b in range(10) if np.array_equal(written(f"{a} ? {b}"), image)
        )
        right = {"plus": first + second, "minus": first - second, "times": first * second}[entry["group"]]
        assert entry["answer"] == str(right)
        assert right >= 0, "answers are compared without their signs"


def test_scenes_have_what_they_say():
    for seed in range(20):
        picture, things = scene(np.random.default_rng(seed))
        assert 1 <= len(things) <= 9
        colours = {tuple(one) for one in picture.reshape(-1, 3).tolist()} - {(255, 255, 255)}
        assert colours == {COLOURS[colour] for colour, _, _ in things}
        # Shapes do not touch: as many connected areas as things.
        assert _areas(picture.min(axis=2) < 255) == len(things)


def _areas(filled: np.ndarray) -> int:
    from scipy.ndimage import label

    return label(filled, structure=np.ones((3, 3)))[1]


def test_shots_are_of_the_group(drawn: Path, make_model: Callable[..., Generalist]):
    benchmark = read_benchmark("jsonl", drawn / "operators", queries=6)
    model = make_model("frame")
    found = evaluate(model, benchmark, Asking(shots=(2,), seeds=2, beams=1, tokens=2))
    supports, queries = found["supports"], found["queries"]
    for several in found["cells"][0]["answers"]:
        for query, answer in zip(queries, several, strict=True):
            assert {supports[shot]["group"] for shot in answer["shots"]} == {query["group"]}
    with pytest.raises(ValueError, match=r"500 shots need as many examples, but .* of the group 'minus'"):
        evaluate(model, benchmark, Asking(shots=(500,)))


def test_command_draws_a_task_once(
    tmp_path: Path, make_model: Callable[..., Generalist], capsys: pytest.CaptureFixture[str]
):
    weights, folder = tmp_path / "weights", tmp_path / "task"
    make_model("frame").save(weights)
    command = ["eval", "fewshot", "--weights", str(weights), "--data", "operators", "--shots", "1", "--seeds", "1"]
    asked = [*command, "--queries", "3", "--beams", "1", "--tokens", "2"]
    assert main([*command, "--out", str(tmp_path / "0.json")]) == 1
    assert "name the folder of operators with --folder" in capsys.readouterr().out
    for number in range(2):
        assert main([*asked, "--folder", str(folder), "--out", str(tmp_path / f"{number}.json")]) == 0
        assert ("drawing operators" in capsys.readouterr().out) == (number == 0)
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert first["fewshot"] == second["fewshot"]
    assert first["fewshot"]["benchmark"] == "operators"
