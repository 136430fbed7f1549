"""The report of an evaluation: one HTML file with everything in it, which opens offline. No script, nothing is fetched."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from rich.console import Console

from generalist.eval.report import clips, fewshot_page, history
from generalist.eval.report.charts import Line, bar, element, lines, short, table, written
from generalist.eval.results import file as report
from generalist.eval.results.checks import percents
from generalist.eval.results.scores import Estimate, domain
from generalist.run.named_weights import run_settings

Clips = Mapping[str, bytes | str]
"""Task → an animated WebP, or why there is none."""

EMPTY: dict[str, Any] = {"control": {}, "naming": {}, "language": {}, "failed": {}}
"""What a file of `generalist eval fewshot` lacks."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --soft: #667085; --rule: #e3e6ec; --track: #eef0f4;
  --good: #2f9e5f; --fair: #d9992b; --poor: #cf4b4b; --c0: #3366cc; --c1: #d9622b; --c2: #2f9e5f; --c3: #a04fc4;
  --c4: #c2951d; --c5: #1898a8; --c6: #c2417c; --c7: #74808f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --paper: #14171d; --soft: #98a2b3; --rule: #2b313c;
  --track: #222730; --good: #46b877; --fair: #e0ad4d; --poor: #e06c6c; --c0: #7aa2ff; --c1: #f2935c; --c2: #5fcf90;
  --c3: #c98be6; --c4: #e3c04f; --c5: #4cc3d1; --c6: #ea7bab; --c7: #a3adba; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem } p { margin: .4rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { text-align: right; padding: .22rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap }
th { color: var(--soft); font-weight: 500 } th:first-child, td:first-child { text-align: left; padding-left: 0 }
.note, figcaption { color: var(--soft); font-size: .88rem } .failed { color: var(--poor) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem } figure { margin: 0 }
.clips { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0 } .clips figure { width: 11rem }
.clips img { width: 100%; border-radius: 4px; display: block } .chart svg { width: 100%; height: auto }
svg text { font-size: 11px; fill: var(--soft) } svg .axis { font-style: italic } svg .grid { stroke: var(--rule) }
.bar { vertical-align: middle } .track { fill: var(--track) } .good { fill: var(--good) } .fair { fill: var(--fair) }
.poor { fill: var(--poor) } .half, .full { stroke: var(--soft); stroke-dasharray: 2 2 } .full { stroke-dasharray: none }
.whisker { stroke: var(--ink); stroke-width: 2 } .line { fill: none; stroke: var(--c); stroke-width: 1.8 }
.band { fill: var(--c); opacity: .14 } .dot { fill: var(--c) } .key { margin-right: 1rem; white-space: nowrap }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em;
  background: var(--c) } summary { cursor: pointer; font-weight: 600; font-size: 1.05rem; margin-top: 1.2rem }
.shots { display: flex; flex-wrap: wrap; gap: .5rem; align-items: end; margin: .5rem 0; padding-bottom: .5rem;
  border-bottom: 1px solid var(--rule) } .shots figure { text-align: center; max-width: 14rem }
.shots img { max-width: 6rem; max-height: 6rem; border-radius: 4px } .asked img { outline: 2px solid var(--ink) }
.right { color: var(--good) } .wrong { color: var(--poor) }
pre { font-size: .82rem; background: var(--track); padding: .8rem; border-radius: 4px; overflow-x: auto }
""" + "".join(f".c{index} {{ --c: var(--c{index}) }}\n" for index in range(8))


def write(
    results_path: Path,
    out: Path,
    console: Console,
    *,
    fewshot: Sequence[Path] = (),
    videos: bool = False,
    weights: str | Path | None = None,
) -> None:
    """Writes the report of a results file; what lies beside it in a run's folder (losses, earlier evaluations) is shown too.

    Args:
        results_path: `runs/<name>/results.json`, or a copy of it somewhere else; or a file of `generalist eval fewshot`.
        out: the HTML file; it appears whole or not at all.
        console: gets the progress of videos.
        fewshot: files of `generalist eval fewshot` of the same weights.
        videos: play an episode a task, with the weights of the run that the results are in,
        weights: or with those of this folder, which `Generalist.save` wrote.

    Raises:
        FileNotFoundError: there are no results, or no folder to write into; for videos, no run.
        ValueError: the results do not fit together, or the weights are others.
    """
    results = report.load_any(results_path)
    few = [report.load_fewshot(path) for path in fewshot]
    for path, found in zip(fewshot, few, strict=True):
        if found["weights"] != results["weights"]:
            raise ValueError(f"{path} is of other weights than {results_path}: evaluate both with the same ones")
    if report.is_fewshot(results):
        if videos:
            raise ValueError(f"{results_path} has no episodes to show: leave out --videos, or give a file of agents")
        results, few = results | EMPTY, [results, *few]
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} to write {out.name} into: make it first")
    folder = results_path.parent
    evaluations = history.evaluations(folder / "evaluation", results)
    metrics = history.metrics(folder / "metrics.jsonl")
    shown: Clips = {}
    if videos:
        console.print("loading JAX and the weights ...", highlight=False)
        from generalist.inference.generalist import Generalist

        generalist = Generalist.load(weights) if weights else Generalist.from_run(run_settings(folder))
        shown = clips.play_tasks(generalist, results, console)
    text = build(results, evaluations=evaluations, metrics=metrics, clips=shown, fewshot=few)
    temporary = out.with_name(f".{out.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(out)


def build(
    results: Mapping[str, Any],
    *,
    evaluations: Mapping[int, Mapping[str, Estimate]] | None = None,
    metrics: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    clips: Clips | None = None,
    fewshot: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole report as HTML.

    Args:
        results: as `report.load` gives them.
        evaluations: training step → domain → percent of the expert.
        metrics: name → steps and values, as logged in training.
        clips: by task.
        fewshot: as `report.load_fewshot` gives them.
    """
    domains = {
        suite: domain([percents(task) for task in summary["tasks"].values()])
        for suite, summary in results["control"].items()
    }
    title = f"{results['settings'].get('name', 'generalist')}, step {results['step']:,}"
    body = element(
        "body",
        element("h1", title),
        element("p", _weights(results), class_="note"),
        *_failed(results),
        *_overview(results, domains),
        *_policies(results),
        *_profiles(domains),
        *_history(evaluations or {}),
        *(part for suite, summary in results["control"].items() for part in _suite(suite, summary, clips or {})),
        *(part for found in fewshot for part in fewshot_page.sections(found)),
        *_naming(results["naming"]),
        *_language(results["language"]),
        *_losses(metrics or {}),
        *_manifest(results),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE),
    )
    return "<!DOCTYPE html>\n" + written(element("html", head, body, lang="en")) + "\n"


def _weights(results: Mapping[str, Any]) -> str:
    weights = results.get("weights")
    return (
        f"weights {weights[:16]}…, all intervals 95%" if weights else "the results do not say which weights these are"
    )


def _estimate(stored: Mapping[str, float]) -> str:
    return str(Estimate(**stored))


def _failed(results: Mapping[str, Any]) -> list[Element]:
    return [element("p", f"{part} failed: {reason}", class_="failed") for part, reason in results["failed"].items()]


def _overview(results: Mapping[str, Any], domains: Mapping[str, Mapping[str, Any]]) -> list[Element]:
    """One row a domain."""
    if not domains:
        return []
    rows = []
    for suite, summary in results["control"].items():
        estimates = [_estimate(domains[suite][key]) for key in ("percent", "interquartile_mean", "tasks_above_half")]
        counted = [str(len(summary["tasks"])), str(summary["episodes"]), str(summary["cut_off"])]
        rows.append([suite, bar(Estimate(**domains[suite]["percent"])), *estimates, *counted])
    headers = ("domain", "", "mean %", "interquartile mean %", "tasks above half %", "tasks", "episodes", "cut off")
    note = (
        "Percent of the way from random (0) to the task's expert (100); the bar ends at 120. The mean is over tasks of the mean "
        "over episodes; tasks above half are those with a mean above 50; cut off are episodes that ended at the limit of steps."
    )
    return [element("h2", "Control"), table(headers, rows), element("p", note, class_="note")]


def _policies(results: Mapping[str, Any]) -> list[Element]:
    """The model under other prompts, and baselines, beside it."""
    policies = results.get("policies", {})
    if not policies:
        return []
    suites = list(results["control"])
    rows = [
        [name, *(_estimate(of[suite]["percent"]) if suite in of else "" for suite in suites)]
        for name, of in {results["agent"]: results["control"], **policies}.items()
    ]
    return [element("h2", "Prompts and baselines, mean %"), table(("policy", *suites), rows)]


def _profiles(domains: Mapping[str, Mapping[str, Any]]) -> list[Element]:
    """Performance profiles: a line a domain."""
    if not domains:
        return []
    charts = []
    for key, of in (("episode_profile", "episodes"), ("task_profile", "tasks")):
        drawn = [
            Line(
                name=suite,
                x=found[key]["thresholds"],
                y=found[key]["value"],
                low=found[key]["low"],
                high=found[key]["high"],
            )
            for suite, found in domains.items()
        ]
        charts.append(lines(drawn, x="percent of the expert", y=f"% of {of} above it", bounds=(0.0, 100.0)))
    return [element("h2", "Performance profiles"), element("div", *charts, class_="charts")]


def _history(evaluations: Mapping[int, Mapping[str, Estimate]]) -> list[Element]:
    """Scores against training steps, where there are several evaluations."""
    if len(evaluations) < 2:
        return []
    drawn = []
    for suite in sorted({suite for found in evaluations.values() for suite in found}):
        steps = [step for step in sorted(evaluations) if suite in evaluations[step]]
        found = [evaluations[step][suite] for step in steps]
        values, low, high = ([getattr(one, name) for one in found] for name in ("value", "low", "high"))
        drawn.append(Line(name=suite, x=steps, y=values, low=low, high=high))
    return [element("h2", "Score against training step"), lines(drawn, x="step", y="mean %")] if drawn else []


def _suite(suite: str, summary: Mapping[str, Any], clips: Clips) -> list[Element]:
    """Every task of a domain: bars with intervals, scores, and what it looks like."""
    rows = []
    for name, task in summary["tasks"].items():
        human = "" if task.get("human_score") is None else short(task["human_score"])
        scores = [short(task[key]) for key in ("score", "random_score", "expert_score")]
        counted = [str(len(task["episodes"])), str(task["cut_off"])]
        percent = Estimate(**task["percent"])
        rows.append([name.partition("/")[2] or name, bar(percent), str(percent), *scores, human, *counted])
    headers = ("task", "", "%", "score", "random", "expert", "human", "episodes", "cut off")
    shown = [_clip(name, clips[name]) for name in summary["tasks"] if name in clips]
    films = [element("div", *shown, class_="clips")] if shown else []
    title = f"{suite}: {len(summary['tasks'])} tasks"
    return [element("details", element("summary", title), table(headers, rows), *films, open="open")]


def _clip(name: str, clip: bytes | str) -> Element:
    """A task's episode, or why it is not shown."""
    short_name = name.partition("/")[2] or name
    if isinstance(clip, str):
        return element("figure", element("figcaption", f"{short_name}: no video, {clip}"))
    source = "data:image/webp;base64," + base64.b64encode(clip).decode()
    return element("figure", element("img", src=source, alt=f"an episode of {name}"), element("figcaption", short_name))


def _naming(naming: Mapping[str, Any]) -> list[Element]:
    if not naming:
        return []
    keys = ("accuracy", "blind_accuracy", "imageless_accuracy", "caption_gain_over_wrong", "caption_gain_over_none")
    rows = [
        [split, *(_estimate(found[key]) for key in keys), short(found["chance"]), str(found["items"])]
        for split, found in naming.items()
    ]
    headers = ("held out", "named rightly %", "wrong image %", "no image %", "caption, nats over wrong", "over none",
               "chance %", "drawings")  # fmt: skip
    return [element("h2", "Naming drawings"), table(headers, rows)]


def _language(language: Mapping[str, Any]) -> list[Element]:
    if not language:
        return []
    keys = ("perplexity", "unigram_perplexity")
    rows = []
    for name, found in language.items():
        bits = Estimate(**found["bits_per_byte"])
        rows.append([name, *(_estimate(found[key]) for key in keys), f"{bits.value:.2f}", f"{found['tokens']:,}"])
    headers = ("held-out text", "perplexity a token", "of a unigram model", "bits a byte", "tokens")
    return [element("h2", "Language"), table(headers, rows)]


def _losses(metrics: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> list[Element]:
    """Losses and accuracies in training, all together and by source."""
    charts = []
    for prefix, label in (("loss", "loss, nats a token"), ("accuracy", "accuracy of predicted tokens")):
        names = [name for name in metrics if name.split("/")[0] == prefix]
        drawn = [Line(name=name.partition("/")[2] or "all", x=metrics[name][0], y=metrics[name][1]) for name in names]
        if drawn:
            charts.append(lines(drawn, x="step", y=label))
    return [element("h2", "Training"), element("div", *charts, class_="charts")] if charts else []


def _manifest(results: Mapping[str, Any]) -> list[Element]:
    """From what the same numbers come again."""
    rows = [["command", " ".join(results["command"])], ["weights", str(results.get("weights"))]]
    rows += [["python", results["python"]], *([name, str(value)] for name, value in results["machine"].items())]
    rows += [[f"seed of {name}", str(value)] for name, value in results["seeds"].items()]
    rows += [["digest", results.get("digest", "")]]
    versions = [[name, version] for name, version in results["versions"].items()]
    settings = json.dumps(results["settings"], indent=1, sort_keys=True)
    note = (
        "The digest finds slips and is no signature. The same command with these versions gives the same numbers again."
    )
    return [
        element("h2", "Manifest"),
        table(("", ""), rows),
        element("p", note, class_="note"),
        element("details", element("summary", "Versions"), table(("package", "version"), versions)),
        element("details", element("summary", "Settings"), element("pre", settings)),
    ]
