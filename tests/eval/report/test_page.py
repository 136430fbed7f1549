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
from generalist.config.presets import debug
from generalist.envs.suites.atari import AtariTask
from generalist.envs.video import small_webp
from generalist.eval.parts.part import Beside
from generalist.eval.report import clips, history
from generalist.eval.report.charts import Line, bar, charts, lines, ticks, written
from generalist.eval.report.colours import colour_of
from generalist.eval.report.page import build, duration
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


def test_everything_is_in_it(results: Callable, tmp_path: Path) -> None:
    found = results(SCORES, failed={"control-classic": "MissingExtra: <b>classic</b>"})
    found["agent"] = "model"
    found["policies"] = {"nearest neighbour": {"babyai": found["control"]["babyai"]}}
    for step in (10, 20):
        write_part(tmp_path, step, "babyai-aa", {name: [1.0] for name in SCORES if name.startswith("babyai")})
    metrics = {
        "loss": ([1.0, 2.0], [3.0, 2.5]),
        "loss/atari": ([1.0], [2.0]),
        "loss/text": ([1.0], [2.0]),
        "accuracy/atari": ([1.0, 2.0], [0.1, 0.5]),
    }
    page = Parsed(build(found, Beside(folder=tmp_path), metrics=metrics))
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
        "perplexity per token",
        "1 of 3 tasks above half of the expert",
        f"evaluated {found['date'][:10]}",
        "on cpu:0",
        "95% interval",
        "loss by kind of token",
        "loss by source",
        "Training",
        "abababab",
        "train.py debug",
        "Manifest",
        found["versions"]["jax"],
    ):
        assert expected in text, f"{expected!r} is missing"
    assert "script" not in page.tags and "link" not in page.tags and page.links == []
    bars = 2 + 3  # domains and tasks
    charts = 2 + 1 + 4  # profiles, history, losses (all, by kind, by source) and accuracies
    assert page.tags.count("svg") == bars + charts


def test_nothing_is_fetched(results: Callable) -> None:
    clip = small_webp([np.full((32, 32, 3), value, np.uint8) for value in (0, 90, 200)], fps=5, limit=10_000)
    shown: dict[str, bytes | str] = {"babyai/GoTo": clip, "atari/pong": "atari needs the package ale_py"}
    text = build(results(SCORES), Beside(clips=lambda names: shown))
    page = Parsed(text)
    assert len(page.links) == 1 and page.links[0].startswith("data:image/webp;base64,")
    assert "no video, atari needs the package ale_py" in " ".join(page.text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in text and "url(" not in text


def test_without_control_naming_or_language(results: Callable) -> None:
    page = Parsed(build(results({}, control={}, naming={}, language={})))
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
    # 220 pixels from -20 to 120: zero is at 31.4, 60 at 125.7.
    assert '<rect class="fair" x="31.4" width="94.3"' in svg and 'class="zero" x1="31.4"' in svg
    assert 'class="whisker" x1="78.6" x2="172.9"' in svg


def test_a_negative_score_is_a_bar_to_the_left_of_zero() -> None:
    assert '<rect class="poor" x="15.7" width="15.7"' in written(bar(Estimate(value=-10.0, low=-15.0, high=-5.0)))
    below = written(bar(Estimate(value=-300.0, low=-400.0, high=-200.0)))
    assert '<rect class="poor" x="0.0" width="31.4"' in below, "cut where the bar ends"


def test_a_colour_belongs_to_a_name_and_a_chart_has_eight_lines_at_most() -> None:
    sources = [*debug().data.sources]
    assert len(sources) >= 10 and len({colour_of(name) for name in sources}) == len(sources)
    several = [Line(name=name, x=[0, 1], y=[0, 1]) for name in sources]
    drawn = [written(chart) for chart in charts(several, x="x", y="y")]
    assert len(drawn) == -(-len(sources) // 8) and all(chart.count("<polyline") <= 8 for chart in drawn)
    for name in sources:
        (chart,) = [chart for chart in drawn if f">{name}</span>" in chart]
        assert f'<span class="key {colour_of(name)}">{name}</span>' in chart
    with pytest.raises(ValueError, match=f"at most 8 lines, got {len(several)}"):
        lines(several, x="x", y="y")
    twice = written(lines([Line(name="a", x=[0], y=[0]), Line(name="a", x=[0], y=[1])], x="x", y="y"))
    assert twice.count("dashed") == 2, "a line and its key"


def test_large_suites_are_folded(results: Callable) -> None:
    text = build(results({f"{suite}/{i}": [1.0] for suite, count in (("a", 10), ("b", 11)) for i in range(count)}))
    assert '<details open="open"><summary>a: 10 tasks' in text and "<details><summary>b: 11 tasks" in text


def test_durations_read_well() -> None:
    assert [duration(seconds) for seconds in (12.4, 125, 3900)] == ["12 s", "2 min 5 s", "1 h 5 min"]


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
    result = (
        {"episodes": episodes, "clipped": {}} if step >= 20 else episodes
    )  # earlier versions kept the episodes alone
    path.write_text(json.dumps({"settings": {}, "result": result}), encoding="utf-8")


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
    assert "--weights is for --videos" in capsys.readouterr().out


@pytest.mark.slow
def test_clips_are_of_the_results_weights_or_say_why_not(
    tmp_path: Path, results: Callable, weights: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(task: AtariTask) -> None:
        raise ImportError("No module named 'ale_py'", name="ale_py")

    monkeypatch.setattr(AtariTask, "build", not_installed)
    own = weights(0)
    found = results({"babyai/GoToObj": [1.0], "atari/pong": [0.5]}, weights=fingerprint(own))
    shown = clips.play_tasks(own, found, ["babyai/GoToObj", "atari/pong"], Console(quiet=True))
    assert isinstance(shown["atari/pong"], str) and "needs the package ale_py" in shown["atari/pong"]
    clip = shown["babyai/GoToObj"]
    assert isinstance(clip, bytes) and len(clip) <= clips.BYTES
    path = tmp_path / "clip.webp"
    path.write_bytes(clip)
    with Image.open(path) as image:
        assert max(image.size) <= clips.SIDE and 2 <= getattr(image, "n_frames", 1) <= clips.FRAMES + 1
    with pytest.raises(ValueError, match="of other weights"):
        clips.play_tasks(weights(1), found, ["babyai/GoToObj"], Console(quiet=True))
