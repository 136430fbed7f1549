"""A results file that was edited, or is of other weights, is recognized, and what was edited is named."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

from generalist.envs import registry
from generalist.eval.control.lanes import Episode, summarize
from generalist.eval.report.page import build
from generalist.eval.results import file as report
from generalist.eval.results.checks import digest
from generalist.inference.fingerprint import fingerprint
from generalist.inference.generalist import Generalist

DOOR = "metaworld/door-open"
SCORES = {DOOR: [1, 1, 1, 0, 0], "metaworld/reach": [1, 1, 1, 1, 1], "babyai/GoTo": [0.5, 0.25]}


@pytest.fixture
def path(tmp_path: Path, results: Callable) -> Path:
    path = tmp_path / "results.json"
    report.save(path, results(SCORES))
    return path


def test_an_untouched_file_is_read(path: Path) -> None:
    found = report.load(path)
    assert found["control"]["metaworld"]["tasks"][DOOR]["percent"]["value"] == 60.0
    report.save(path, found)
    assert report.load(path) == found, "saved again it is the same"


@pytest.mark.slow
def test_files_of_earlier_versions_are_read(tmp_path: Path, results: Callable) -> None:
    """Those without a format have empty sections for what was not evaluated; the shipped scores are one."""
    shipped = report.load(Path(report.__file__).parents[2] / "shipped" / "scores.json")
    assert "format" not in shipped and shipped["naming"] == shipped["language"] == {}
    console = Console(record=True, width=120)
    report.show(shipped, console)
    assert "of 169 tasks above half of the expert" in console.export_text()
    assert "<h2>Control</h2>" in build(shipped) and "Naming" not in build(shipped)
    first = {name: value for name, value in results(SCORES).items() if name not in ("format", "date")}
    report.save(tmp_path / "first.json", first)
    assert report.load(tmp_path / "first.json")["naming"] == first["naming"]


def test_what_evaluation_writes_fits_together(tmp_path: Path, results: Callable) -> None:
    rng, tasks = np.random.default_rng(0), registry.tasks(["classic/*", "atari/*"])
    episodes = [
        Episode(
            task=one.name,
            seed=seed,
            score=float(rng.normal(one.expert_score, 5)),
            steps=steps,
            cut_off=steps == one.max_steps,
        )
        for one in tasks
        for seed, steps in enumerate((one.max_steps, 3, 4))
    ]
    found = results({}) | {"control": {"all": summarize(tasks, episodes)}}
    report.save(tmp_path / "run" / "results.json", found)
    assert report.load(tmp_path / "run" / "results.json")["control"]["all"]["cut_off"] == len(tasks)


def task(found: dict[str, Any]) -> dict[str, Any]:
    return found["control"]["metaworld"]["tasks"][DOOR]


def put(owner: dict[str, Any], key: str, value: Any) -> None:
    owner[key] = value


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: put(task(r)["percent"], "value", 80.0), f"the mean of {DOOR} is 80 in the file but its episodes give 60"),
        (lambda r: put(task(r)["percent"], "low", 55.0), f"the low end of the interval of the mean of {DOOR} is 55"),
        (lambda r: put(task(r), "score", 0.8), f"the mean score of {DOOR} is 0.8 in the file but its episodes give 0.6"),
        (lambda r: put(task(r)["episodes"][3], "score", 1.0), f"the mean score of {DOOR} is 0.6 .* episodes give 0.8"),
        (lambda r: put(task(r), "expert_score", 0.8), f"the mean of {DOOR} is 60 .* give 75"),
        (lambda r: put(task(r)["episodes"][3], "steps", 200), f"cut off episodes of {DOOR} is 0 .* give 1"),
        (lambda r: task(r)["episodes"].pop(), f"the mean score of {DOOR} is 0.6"),
        (lambda r: r["control"]["metaworld"]["tasks"].pop(DOOR), "the mean of metaworld is 80 .* give 100"),
        (lambda r: put(r["control"]["metaworld"]["percent"], "value", 99.0), "the mean of metaworld is 99"),
        (lambda r: put(r["control"]["metaworld"]["interquartile_mean"], "value", 99.0), "interquartile mean of metaworld"),
        (lambda r: put(r["control"]["metaworld"]["tasks_above_half"], "value", 1.0), "tasks above half of metaworld is 1"),
        (lambda r: put(r["control"]["metaworld"]["task_profile"]["value"], 3, 1.0), "the task profile of metaworld is 1"),
        (lambda r: put(r["control"]["metaworld"], "episodes", 500), "number of episodes of metaworld is 500"),
        (lambda r: put(r["naming"]["drawings"]["accuracy"], "value", 90.0), "accuracy of naming drawings is 90 .* answers"),
        (lambda r: put(r["language"]["prose"]["perplexity"], "value", 1.0), "the digest does not fit"),
        (lambda r: put(r, "weights", "cd" * 32), "the digest does not fit"),
        (lambda r: put(r["versions"], "jax", "9.9"), "the digest does not fit"),
        (lambda r: put(r, "step", 10_000), "the digest does not fit"),
        (lambda r: task(r).pop("percent"), "KeyError 'percent'"),
        (lambda r: r.pop("digest"), "has no digest: an earlier version wrote it.*evaluate again"),
        (lambda r: r.pop("control"), "the digest does not fit"),
        (lambda r: r.pop("settings"), "is no results file"),
        (lambda r: put(r, "format", 99), "has the format 99, but this version reads 1 to 2: update generalist"),
        (lambda r: put(r, "format", "2"), "has the format '2', but"),
    ],
)  # fmt: skip
def test_every_edit_is_named(path: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    edit(found)
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        report.load(path)


def test_a_new_digest_does_not_hide_an_edited_mean(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    task(found)["percent"]["value"] = 80.0
    found["digest"] = digest(found)
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ValueError, match=f"the mean of {DOOR} is 80"):
        report.load(path)


def test_a_damaged_or_missing_file_has_a_remedy(path: Path) -> None:
    path.write_text('{"control"', encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged.*evaluate again"):
        report.load(path)
    with pytest.raises(FileNotFoundError, match="train.py writes one into a run's folder"):
        report.load(path.with_name("other.json"))


@pytest.mark.slow
def test_weights_are_known_by_their_fingerprint(tmp_path: Path, weights: Callable) -> None:
    one, same, other = weights(0), weights(0), weights(1)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    one.save(tmp_path / "whole")
    assert fingerprint(Generalist.load(tmp_path / "whole")) == fingerprint(one)
    one.save(tmp_path / "rounded", ml_dtypes.bfloat16)
    rounded = fingerprint(Generalist.load(tmp_path / "rounded"))
    assert rounded != fingerprint(one) and rounded == fingerprint(Generalist.load(tmp_path / "rounded"))


def test_one_changed_number_or_shape_is_another_fingerprint(weights: Callable) -> None:
    one = weights(0)
    leaves, tree = jax.tree.flatten(one.params)
    for changed in (leaves[0].at[(0,) * leaves[0].ndim].add(1e-3), jnp.reshape(leaves[0], (-1,))):
        other = dataclasses.replace(one, params=jax.tree.unflatten(tree, [changed, *leaves[1:]]))
        assert fingerprint(other) != fingerprint(one)


def test_results_of_other_weights_are_recognized(results: Callable, weights: Callable) -> None:
    own, other = weights(0), weights(1)
    found = results(SCORES, weights=fingerprint(own))
    report.check_weights(found, own)
    with pytest.raises(ValueError, match="of other weights: of .* at step 20, but these are .* at step 7"):
        report.check_weights(found, other)
    with pytest.raises(ValueError, match="do not say which weights"):
        report.check_weights(found | {"weights": None}, own)
