"""Comparing two results files: a made difference is found, none is made up, and what else differs is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from generalist.cli.main import main
from generalist.eval.control.differences import compare, holm, show
from generalist.eval.report.compare import warnings
from generalist.eval.results import file as report


def coins(rng: np.random.Generator, chance: float, episodes: int = 50) -> list[float]:
    return (rng.random(episodes) < chance).astype(float).tolist()


def test_equal_files_do_not_differ(results: Callable) -> None:
    rng = np.random.default_rng(0)
    found = results({f"babyai/{i}": coins(rng, 0.5) for i in range(5)})
    (domain,) = compare(found, found).domains
    assert (domain.difference.value, domain.difference.low, domain.difference.high) == (0.0, 0.0, 0.0)
    assert domain.improvement.value == 50.0
    assert domain.verdict == "these episodes show no difference: +0.0 [0.0, 0.0]"
    assert all(task.paired and task.p == 1.0 and not task.differs for task in domain.tasks)


@pytest.mark.slow
def test_a_made_difference_is_found_in_the_task_that_has_it(results: Callable) -> None:
    rng = np.random.default_rng(1)
    names = [f"babyai/{i}" for i in range(10)]
    before = {name: coins(rng, 0.5) for name in names}
    after = {name: coins(rng, 0.5) for name in names} | {"babyai/3": coins(rng, 0.95)}
    (domain,) = compare(results(before), results(after)).domains
    assert [task.name for task in domain.tasks if task.differs] == ["babyai/3"]
    task = domain.tasks[3]
    assert task.difference.value == pytest.approx(100 * (np.mean(after["babyai/3"]) - np.mean(before["babyai/3"])))
    assert task.difference.low > 10 and task.p < 0.005
    assert domain.difference.value == pytest.approx(domain.after - domain.before)
    better = {name: coins(rng, 0.8) for name in names}
    (shifted,) = compare(results(before), results(better)).domains
    assert shifted.verdict.startswith("B is better: +") and shifted.improvement.low > 50
    (back,) = compare(results(better), results(before)).domains
    assert back.verdict.startswith("A is better: -") and back.difference.value == pytest.approx(
        -shifted.difference.value
    )


def test_two_draws_of_the_same_chance_seldom_differ(results: Callable) -> None:
    rng = np.random.default_rng(2)
    verdicts = []
    for _ in range(10):
        before, after = ({f"babyai/{i}": coins(rng, 0.6, 20) for i in range(3)} for _ in range(2))
        (domain,) = compare(results(before), results(after)).domains
        verdicts.append(domain.verdict.startswith("these episodes show no difference"))
        assert not any(task.differs for task in domain.tasks)
    assert sum(verdicts) >= 8, "at a level of 5%, 9.5 of 10 are expected"


def test_pairs_find_what_unpaired_episodes_cannot(results: Callable) -> None:
    start = np.linspace(0, 1, 30)  # how hard each seed's start is decides nearly everything
    before, after = (
        results({"classic/pendulum": start.tolist()}),
        results({"classic/pendulum": (start + 0.05).tolist()}),
    )
    (paired,) = compare(before, after).domains
    assert (
        paired.tasks[0].paired and paired.tasks[0].differs and paired.verdict.startswith("B is better: +5.0 [5.0, 5.0]")
    )
    for one in after["control"]["classic"]["tasks"]["classic/pendulum"]["episodes"]:
        one["seed"] += 1000
    comparison = compare(before, after)
    (unpaired,) = comparison.domains
    assert not unpaired.tasks[0].paired and unpaired.verdict.startswith("these episodes show no difference: +5.0")
    assert any(line.startswith("seeds differ in 1 of 1 tasks of classic") for line in comparison.warnings)


def test_probability_of_improvement_by_hand(results: Callable) -> None:
    before, after = results({"classic/a": [0.0, 0.5]}), results({"classic/a": [0.5, 1.0]})
    # B's episodes against A's: 0.5 > 0, 0.5 = 0.5, 1 > 0, 1 > 0.5
    assert compare(before, after).domains[0].improvement.value == pytest.approx(100 * 3.5 / 4)


def test_one_episode_shows_nothing(results: Callable) -> None:
    (domain,) = compare(results({"atari/pong": [0.0]}), results({"atari/pong": [1.0]})).domains
    assert domain.verdict == "one episode per task shows nothing: play at least two"


def test_holm_by_hand() -> None:
    # 5% / 4 = 0.0125, 5% / 3 = 0.0167, 5% / 2 = 0.025: the third fails, so the fourth is not asked.
    assert holm({"a": 0.012, "b": 0.016, "c": 0.026, "d": 0.03}) == {"a", "b"}
    assert holm({"a": 0.013, "b": 0.013, "c": 0.013, "d": 0.013}) == set()
    assert holm({"a": 0.05}) == {"a"} and holm({}) == set()


def test_what_else_differs_is_told(results: Callable) -> None:
    before = results({"atari/pong": [0.5] * 4, "atari/boxing": [0.5] * 4, "babyai/GoTo": [1.0] * 4})
    after = results(
        {"atari/pong": [0.5] * 6, "atari/boxing": [0.5] * 4, "classic/acrobot": [1.0] * 4}, weights="cd" * 32
    )
    after["versions"] = before["versions"] | {"jax": "0.1"}
    after["settings"] = {"name": "other"}
    after["control"]["atari"]["tasks"]["atari/boxing"] |= {"max_steps": 99, "expert_score": 2.0}
    text = "\n".join(warnings(before, after) + compare(before, after).warnings)
    for expected in (
        "other weights: abababababab… at step 20 → cdcdcdcdcdcd… at step 20",
        f"versions differ: jax {before['versions']['jax']} → 0.1",
        "settings differ: name debug → other",
        "episodes per task differ in 1 of 2 tasks of atari, such as 4 → 6 in atari/pong",
        "max_steps differ in 1 of 2 tasks of atari, such as 200 → 99 in atari/boxing",
        "reference scores differ in 1 of 2 tasks of atari, such as (0.0, 1.0) → (0.0, 2.0)",
        "only in A: babyai/GoTo",
        "only in B: classic/acrobot",
    ):
        assert expected in text, f"{expected!r} is missing in\n{text}"
    (atari,) = compare(before, after).domains
    boxing = next(task for task in atari.tasks if task.name == "atari/boxing")
    assert (boxing.before, boxing.after) == (25.0, 25.0), "both on B's scale"


def test_settings_that_differ_are_told_in_short(results: Callable) -> None:
    """Two presets differ in a hundred settings; those that can move no score come last."""
    before, after = results({"atari/pong": [0.5] * 4}), results({"atari/pong": [0.5] * 4})
    before["settings"] = {"name": "a", "model": {f"size{number}": 1 for number in range(100)}, "text": "x" * 200}
    after["settings"] = {"name": "b", "model": {f"size{number}": 2 for number in range(100)}}
    (line,) = [line for line in warnings(before, after) if line.startswith("settings")]
    assert line.startswith("settings differ: model.size0 1 → 2, ") and line.endswith(" and 96 more") and len(line) < 200
    after["settings"] = before["settings"] | {"name": "b", "text": "y" * 200}
    (line,) = [line for line in warnings(before, after) if line.startswith("settings")]
    assert line == f"settings differ: text {'x' * 23}… → {'y' * 23}…, name a → b"


def test_nothing_in_common(results: Callable) -> None:
    with pytest.raises(ValueError, match="no task in common"):
        compare(results({"atari/pong": [1.0]}), results({"babyai/GoTo": [1.0]}))


def test_the_command(tmp_path: Path, results: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    scores: list[dict[str, Any]] = [
        {"babyai/GoTo": coins(rng, chance), "atari/pong": [0.5] * 5} for chance in (0.2, 0.9)
    ]
    for name, one in zip(("a", "b"), scores, strict=True):
        report.save(tmp_path / name / "results.json", results(one))
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b" / "results.json")]) == 0
    text = capsys.readouterr().out
    assert "babyai: B is better: +" in text and "atari: these episodes show no difference" in text
    assert "1 of 2 tasks differ" in text and "babyai/GoTo: " in text
    assert "drawings, named rightly %" in text and "prose, perplexity" in text
    edited = tmp_path / "b" / "results.json"
    edited.write_text(edited.read_text().replace('"step": 20', '"step": 21'))
    assert main(["eval", "compare", str(tmp_path / "a"), str(edited)]) == 1
    assert "is not as it was written" in capsys.readouterr().out
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--plain"]) == 1
    assert "does not know --plain" in capsys.readouterr().out


def test_markup_in_a_name_is_text(results: Callable) -> None:
    found = results({"babyai/[red]": [1.0, 1.0]})
    console = Console(record=True, width=120)
    show(compare(found, found), console)
    assert "babyai: these episodes show no difference" in console.export_text()
