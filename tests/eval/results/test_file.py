"""What an evaluation leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from generalist.eval.results import file as report
from generalist.eval.results.file import Parts
from generalist.eval.results.manifest import manifest
from generalist.eval.results.scores import Estimate
from generalist.eval.results.words import counted


def test_a_finished_part_is_not_computed_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"score": len(calls)}

    parts = Parts(folder=tmp_path / "evaluation" / "step-10")
    assert parts.get("control", {"episodes": 2}, compute) == {"score": 1}
    assert parts.get("control", {"episodes": 2}, compute) == {"score": 1}
    assert parts.get("control", {"episodes": 3}, compute) == {"score": 2}, "other settings are another part"
    assert len(list(parts.folder.iterdir())) == 2, "no temporary file is left"


def test_an_interrupted_part_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    parts = Parts(folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        parts.get("control", {}, stopped)
    assert not list(tmp_path.iterdir())
    assert parts.get("control", {}, lambda: 1) == 1


def test_a_damaged_part_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    parts.get("naming", {}, lambda: 1)
    parts.path("naming", {}).write_text('{"result"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"naming-\w+\.json is damaged .*: delete it"):
        parts.get("naming", {}, lambda: 1)


def test_numbers_and_words_are_written_as_people_do() -> None:
    assert str(Estimate(value=-0.04, low=-0.4, high=0.2)) == "0.0 [0, 0]"
    assert str(Estimate(value=-0.06, low=-0.6, high=0.2)) == "-0.1 [-1, 0]"
    assert [counted(number, "episode") for number in (1, 20)] == ["1 episode", "20 episodes"]


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 5, "high": value + 5}


def results() -> dict[str, Any]:
    task = {"percent": interval(84.0), "score": 420.0, "random_score": 0.0, "expert_score": 500.0}
    task["episodes"] = [{"score": 420.0}]
    suite = {
        "percent": interval(71.0),
        "interquartile_mean": interval(75.0),
        "episodes": 20,
        "cut_off": 3,
        "clipped": {"classic/cartpole": 0.0123},
    }
    naming = {
        "accuracy": interval(44.0),
        "blind_accuracy": interval(11.0),
        "imageless_accuracy": interval(9.0),
        "chance": 10.0,
        "items": 400,
    }
    naming |= {"caption_gain_over_wrong": interval(6.0), "caption_gain_over_none": interval(5.5)}
    text = {"perplexity": interval(30.0), "unigram_perplexity": interval(300.0), "bits_per_byte": interval(2.5)}
    found = manifest(["train.py", "debug"], {"name": "debug"}, 20, {"evaluation": 1_000_000}, "cpu")
    found["control"] = {"classic": suite | {"tasks": {"classic/cartpole": task}}}
    found["naming"] = {"drawings": naming}
    found["language"] = {"prose": text | {"tokens": 1000}}
    found["failed"] = {"control-atari": "MissingExtra: atari needs the package ale_py"}
    return found


def test_the_results_file_says_how_to_get_it_again(tmp_path: Path) -> None:
    report.save(tmp_path / "run" / "results.json", results())
    stored = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert stored["command"] == ["train.py", "debug"] and stored["step"] == 20
    assert stored["seeds"] == {"evaluation": 1_000_000} and stored["settings"] == {"name": "debug"}
    assert {"jax", "mujoco", "numpy"} <= stored["versions"].keys()


def test_the_table_shows_every_domain_task_and_failure() -> None:
    console = Console(record=True, width=80)
    report.show(results(), console)
    text = " ".join(console.export_text().split())
    for expected in (
        "71.0 [66, 76]",
        "75.0 [70, 80]",
        "20 episodes",
        "limit of steps: classic 3/20",
        "model: observed numbers clipped to the range that the tokenizers know: classic/cartpole 1.2%",
        "84 cartpole",
        "1 of 1 task above half of the expert: 100.0 [100, 100]%",
        "44.0 [39, 49]",
        "chance 10",
        "11.0 [6, 16]",
        "9.0 [4, 14]",
        "5.5 [0, 10]",
        "no image 0",
        "wrong image 0",
        "30.0 [25, 35]",
        "unigram 300",
        "atari needs the package ale_py",
    ):
        assert expected in text, f"{expected!r} is missing in\n{text}"
