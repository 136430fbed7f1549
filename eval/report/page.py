"""The report of an evaluation: one self-contained HTML file, without scripts, that fetches nothing."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from rich.console import Console

from generalist.eval.parts import registry
from generalist.eval.parts.part import Beside
from generalist.eval.report import fewshot_page, history
from generalist.eval.report.charts import Line, charts, element, table
from generalist.eval.report.html import document
from generalist.eval.results import file as report
from generalist.run.named_weights import run_settings


def write(
    results_path: Path,
    out: Path,
    console: Console,
    *,
    fewshot: Sequence[Path] = (),
    videos: bool = False,
    weights: str | Path | None = None,
) -> None:
    """Writes the report of a results file, with the losses and earlier evaluations that lie beside it in a run's folder.

    Args:
        results_path: `runs/<name>/results.json`, or a copy of it somewhere else; or a file of `generalist eval fewshot`.
        out: the HTML file, which is written completely or not at all.
        console: shows the progress of videos.
        fewshot: files of `generalist eval fewshot` of the same weights.
        videos: plays an episode of each task, with the weights of the run that contains the results or with `weights`.
        weights: a folder that `Generalist.save` wrote; None: the run's.

    Raises:
        FileNotFoundError: there are no results, or no folder to write into; for videos, no run.
        ValueError: the results are inconsistent, or of other weights.
    """
    results = report.load_any(results_path)
    # Everything is checked before JAX is loaded and episodes are played.
    few = [report.load_fewshot(path) for path in fewshot]
    for path, found in zip(fewshot, few, strict=True):
        if found["weights"] != results["weights"]:
            raise ValueError(f"{path} is of other weights than {results_path}: evaluate both with the same ones")
    if report.is_fewshot(results):
        if videos:
            raise ValueError(f"{results_path} has no episodes to show: leave out --videos, or give a file of agents")
        few = [results, *few]
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} to write {out.name} into: make it first")
    folder = results_path.parent
    beside = Beside(folder=folder)
    if videos:
        console.print("loading JAX and the weights ...", highlight=False)
        from generalist.eval.report import clips
        from generalist.inference.generalist import Generalist

        generalist = Generalist.load(weights) if weights else Generalist.from_run(run_settings(folder))
        beside = Beside(folder=folder, clips=partial(clips.play_tasks, generalist, results, console=console))
    text = build(results, beside, metrics=history.metrics(folder / "metrics.jsonl"), fewshot=few)
    temporary = out.with_name(f".{out.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(out)


def build(
    results: Mapping[str, Any],
    beside: Beside | None = None,
    *,
    metrics: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    fewshot: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole report as HTML.

    Args:
        results: as `generalist.eval.results.file.load` returns them.
        beside: further material for the parts.
        metrics: name → steps and values, as logged in training.
        fewshot: as `generalist.eval.results.file.load_fewshot` returns them.
    """
    title = f"{results['settings'].get('name', 'generalist')}, step {results['step']:,}"
    parts = registry.present(results)
    body = element(
        "body",
        element("h1", title),
        *(element("p", headline, class_="headline") for part in parts if (headline := part.headline(results))),
        element("p", _facts(results), class_="note"),
        *_notes(results),
        *(section for part in parts for section in part.page(results, beside or Beside())),
        *(section for found in fewshot for section in fewshot_page.sections(found)),
        *_losses(metrics or {}),
        *_manifest(results),
    )
    return document(title, body)


def _facts(results: Mapping[str, Any]) -> str:
    """A line with date, duration, machine and weights; facts that earlier versions did not store are left out."""
    machine, weights = results["machine"], results.get("weights")
    facts = []
    if "date" in results:
        facts.append(f"evaluated {results['date'][:16].replace('T', ' ')} UTC")
    if "seconds" in results:
        facts.append(f"in {duration(results['seconds'])}")
    facts.append(f"on {machine['device']} ({machine['system']}, {machine['processor']})")
    facts.append(f"weights {weights[:16]}…" if weights else "the results do not say which weights these are")
    return ", ".join(facts) + "; all intervals 95%"


def duration(seconds: float) -> str:
    """`1 h 5 min`, `2 min 5 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _notes(results: Mapping[str, Any]) -> list[Element]:
    """Failed jobs, and sections that cannot be shown."""
    failed = [f"{part} failed: {reason}" for part, reason in results.get("failed", {}).items()]
    failed += [f"no part of this version reads the section {name}" for name in report.unread(results)]
    return [element("p", line, class_="failed") for line in failed]


def _losses(metrics: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> list[Element]:
    """Losses and accuracies in training: overall, by kind of token, by source."""
    from generalist.training.loss import KINDS  # imports JAX, which reading a results file does not need

    # Both are logged as `loss/NAME`: a name that is no kind of token is a source's.
    by = {name: name.partition("/")[2] for name in metrics if name.partition("/")[0] in ("loss", "accuracy")}
    groups = (
        ("loss, nats per token", [name for name in by if name == "loss"]),
        ("loss by kind of token", [name for name in by if name.startswith("loss/") and by[name] in KINDS]),
        ("loss by source", [name for name in by if name.startswith("loss/") and by[name] not in KINDS]),
        ("accuracy by source", [name for name in by if name.startswith("accuracy/")]),
    )
    drawn = [
        chart
        for label, names in groups
        if names
        for chart in charts(
            [Line(name=by[name] or "all", x=metrics[name][0], y=metrics[name][1]) for name in names], x="step", y=label
        )
    ]
    return [element("h2", "Training"), element("div", *drawn, class_="charts")] if drawn else []


def _manifest(results: Mapping[str, Any]) -> list[Element]:
    """Everything that is needed to get the same numbers again."""
    rows = [["command", " ".join(results["command"])], ["weights", str(results.get("weights"))]]
    rows += [["python", results["python"]], *([name, str(value)] for name, value in results["machine"].items())]
    rows += [[f"seed of {name}", str(value)] for name, value in results["seeds"].items()]
    rows += [["digest", results.get("digest", "")]]
    versions = [[name, version] for name, version in results["versions"].items()]
    settings = json.dumps(results["settings"], indent=1, sort_keys=True)
    note = "The digest detects accidents and is no signature. The same command with these versions gives the same numbers again."
    return [
        element("h2", "Manifest"),
        element("div", table(("", ""), rows), class_="text"),
        element("p", note, class_="note"),
        element("details", element("summary", "Versions"), table(("package", "version"), versions)),
        element("details", element("summary", "Settings"), element("pre", settings)),
    ]
