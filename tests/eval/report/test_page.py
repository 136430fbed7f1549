"""The HTML report: well formed, complete, self-contained, and every text in it is text."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from generalist.cli.main import main
from generalist.envs.suites.atari import AtariTask
from generalist.envs.video import small_webp
from generalist.eval.report import clips, history
from generalist.eval.report.charts import Line, bar, lines, ticks, written
from generalist.eval.report.page import build
from generalist.eval.results import file as report
from generalist.eval.results.scores import Estimate
from generalist.inference.fingerprint import fingerprint

NASTY = 'babyai/<script>alert("x")</script>&amp;'
SCORES = {"babyai/GoTo": [1.0, 0.0, 1.0], NASTY: [0.5] * 3, "atari/pong": [0.1, 0.3]}
VOID = {"meta", "img", "br", "link"}


class Parsed(HTMLParser):
    """What a browser would see; tags that are not closed in order fail at once."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset", "xlink:href")]
        assert not [name for name, _ in attrs if name.startswith("on")], "no handlers"
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)


def test_everything_is_in_it(results: Callable) -> None:
    found = results(SCORES, failed={"control-classic": "MissingExtra: <b>classic</b>"})
    found["agent"] = "model"
    found["policies"] = {"nearest neighbour": {"babyai": found["control"]["babyai"]}}
    evaluations = {step: {"babyai": Estimate(value=step / 10, low=1.0, high=90.0)} for step in (100, 200)}
    metrics = {
        "loss": ([1.0, 2.0], [3.0, 2.5]),
        "loss/atari": ([1.0], [2.0]),
        "accuracy/atari": ([1.0, 2.0], [0.1, 0.5]),
    }
    page = Parsed(build(found, evaluations=evaluations, metrics=metrics))
    text = " ".join(page.text)
    for expected in (
        "debug, step 20",
        "control-classic failed: MissingExtra: <b>classic</b>",
        "Performance profiles",
        "nearest neighbour",
        "Score against training step",
        "babyai: 2 tasks",
        '<script>alert("x")</script>&amp;',
        "Naming drawings",
        "66.7 [21, 94]",
        "perplexity a token",
        "Training",
        "abababab",
        "train.py debug",
        "Manifest",
        found["versions"]["jax"],
    ):
        assert expected in text, f"{expected!r} is missing"
    assert "script" not in page.tags and "link" not in page.tags and page.links == []
    bars = 2 + 3  # domains and tasks
    charts = 2 + 1 + 2  # profiles, history, losses and accuracies
    assert page.tags.count("svg") == bars + charts


def test_nothing_is_fetched(results: Callable) -> None:
    clip = small_webp([np.full((32, 32, 3), value, np.uint8) for value in (0, 90, 200)], fps=5, limit=10_000)
    shown: dict[str, bytes | str] = {"babyai/GoTo": clip, "atari/pong": "atari needs the package ale_py"}
    text = build(results(SCORES), clips=shown)
    page = Parsed(text)
    assert len(page.links) == 1 and page.links[0].startswith("data:image/webp;base64,")
    assert "no video, atari needs the package ale_py" in " ".join(page.text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in text and "url(" not in text


def test_without_control_naming_or_language(results: Callable) -> None:
    page = Parsed(build(results({}, naming={}, language={})))
    text = " ".join(page.text)
    assert "Manifest" in text and not any(
        title in text for title in ("Control", "profiles", "Naming", "Language", "Training")
    )


def numbers(svg: str, name: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in points.split())]
        for points in re.findall(rf'<{name} [^>]*points="([^"]*)"', svg)
    ]


def test_a_chart_shows_its_numbers() -> None:
    svg = written(
        lines([Line(name="a", x=[0, 50, 100], y=[0, 100, 50], low=[0, 90, 0], high=[0, 100, 100])], x="x", y="y")
    )
    ((left, middle, right),) = numbers(svg, "polyline")
    assert left[0] < middle[0] < right[0] and middle[0] - left[0] == pytest.approx(right[0] - middle[0], abs=0.1)
    assert left[1] > right[1] > middle[1], "up is less in SVG"
    assert left[1] - right[1] == pytest.approx(right[1] - middle[1], abs=0.1)
    ((*_, last),) = numbers(svg, "polygon")
    assert last == left, "the band starts where the line does"
    one_point = written(lines([Line(name="a", x=[5], y=[float("nan")])], x="x", y="y"))
    assert "nan" not in one_point


def test_a_bar_has_the_length_of_its_percent() -> None:
    svg = written(bar(Estimate(value=60.0, low=30.0, high=90.0)))
    assert '<rect class="fair" width="110.0"' in svg, "half of the way to 120"
    assert 'class="whisker" x1="55.0" x2="165.0"' in svg
    assert '<rect class="poor" width="0.0"' in written(bar(Estimate(value=-30.0, low=-40.0, high=-20.0)))


def test_ticks_are_round() -> None:
    assert ticks(0, 120) == [0, 20, 40, 60, 80, 100, 120]
    assert ticks(1.37, 7.9) == [2, 3, 4, 5, 6, 7]
    assert ticks(0.001, 0.0042) == [0.001, 0.0015, 0.002, 0.0025, 0.003, 0.0035, 0.004]
    with pytest.raises(ValueError, match="low < high"):
        ticks(1, 1)


def write_part(folder: Path, step: int, name: str, scores: dict[str, list[float]]) -> None:
    path = folder / "evaluation" / f"step-{step}" / f"control-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    episodes = [{"task": task, "score": score} for task, several in scores.items() for score in several]
    path.write_text(json.dumps({"settings": {}, "result": episodes}), encoding="utf-8")


def test_earlier_evaluations_are_found(tmp_path: Path, results: Callable) -> None:
    found = results({"babyai/GoTo": [1.0], "babyai/Open": [1.0]})
    write_part(tmp_path, 20, "babyai-aa", {"babyai/GoTo": [1.0], "babyai/Open": [1.0]})
    write_part(tmp_path, 10, "babyai-aa", {"babyai/GoTo": [0.0], "babyai/Open": [0.5], "babyai/Gone": [1.0]})
    write_part(tmp_path, 20, "babyai-bb", {"babyai/GoTo": [0.5] * 3, "babyai/Open": [0.5] * 3})
    write_part(tmp_path, 30, "babyai-aa", {"babyai/GoTo": [1.0]})  # not all of the tasks
    write_part(tmp_path, 30, "classic-aa", {"classic/acrobot": [1.0]})
    by_step = history.evaluations(tmp_path / "evaluation", found)
    assert {step: one["babyai"].value for step, one in by_step.items()} == {10: 25.0, 20: 50.0}
    (tmp_path / "evaluation" / "step-20" / "control-babyai-bb.json").write_text("{")
    with pytest.raises(ValueError, match=r"control-babyai-bb.json is damaged"):
        history.evaluations(tmp_path / "evaluation", found)


def test_curves_are_thinned_by_means(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert history.metrics(path) == {}
    records = [{"step": step, "loss": float(step % 2), "note": "text"} for step in range(1, 1201)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    steps, values = history.metrics(path)["loss"]
    assert len(steps) == history.POINTS and set(values) == {0.5}
    path.write_text('{"step": 1}\n{"st', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2, is damaged"):
        history.metrics(path)


def test_the_command(tmp_path: Path, results: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "report.html"
    report.save(run / "results.json", results(SCORES))
    write_part(run, 10, "babyai-aa", {name: [0.0] for name in SCORES})
    write_part(run, 20, "babyai-aa", {name: [1.0] for name in SCORES})
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    assert main(["eval", "report", str(run), "--out", str(out)]) == 0
    text = " ".join(Parsed(out.read_text(encoding="utf-8")).text)
    assert "Score against training step" in text and "Training" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]
    assert main(["eval", "report", str(run), "--out", str(tmp_path / "no" / "r.html")]) == 1
    assert main(["eval", "report", str(run), "--out", str(out), "--videos"]) == 1, "there are no weights"
    assert "no run in" in " ".join(capsys.readouterr().out.split())
    assert main(["eval", "report", str(run), "--out", str(out), "--weights", str(run)]) == 1
    assert "--weights are for --videos" in capsys.readouterr().out


def test_clips_are_of_the_results_weights_or_say_why_not(
    tmp_path: Path, results: Callable, weights: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(task: AtariTask) -> None:
        raise ImportError("No module named 'ale_py'", name="ale_py")

    monkeypatch.setattr(AtariTask, "build", not_installed)
    own = weights(0)
    found = results({"babyai/GoToObj": [1.0], "atari/pong": [0.5]}, weights=fingerprint(own))
    shown = clips.play_tasks(own, found, Console(quiet=True))
    assert isinstance(shown["atari/pong"], str) and "needs the package ale_py" in shown["atari/pong"]
    clip = shown["babyai/GoToObj"]
    assert isinstance(clip, bytes) and len(clip) <= clips.BYTES
    path = tmp_path / "clip.webp"
    path.write_bytes(clip)
    with Image.open(path) as image:
        assert max(image.size) <= clips.SIDE and 2 <= getattr(image, "n_frames", 1) <= clips.FRAMES + 1
    with pytest.raises(ValueError, match="of other weights"):
        clips.play_tasks(weights(1), found, Console(quiet=True))
