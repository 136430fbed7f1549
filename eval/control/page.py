"""The control section of the HTML page: domains, prompts and baselines, profiles, history, and every task of every suite."""

import base64
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from generalist.eval.control.checks import percents
from generalist.eval.report.charts import Line, bar, bar_legend, charts, element, short, table
from generalist.eval.results.scores import Estimate, domain

SMALL = 10  # up to as many tasks, a suite's table is open from the start


def sections(
    results: Mapping[str, Any], evaluations: Mapping[int, Mapping[str, Estimate]], clips: Mapping[str, bytes | str]
) -> list[Element]:
    """The whole section.

    Args:
        results: as `generalist.eval.results.file.load` returns them.
        evaluations: training step → domain → percent of the expert.
        clips: task → an animated WebP, or the reason why there is none.
    """
    # Computed from the episodes, not read: files of earlier versions lack some of these numbers.
    domains = {
        suite: domain([percents(task) for task in summary["tasks"].values()])
        for suite, summary in results["control"].items()
    }
    suites = [_suite(suite, summary, clips) for suite, summary in results["control"].items()]
    return [
        *_overview(results, domains),
        *_policies(results),
        *_profiles(domains),
        *_history(evaluations),
        element("h2", "Tasks"),
        *suites,
    ]


def _estimate(stored: Mapping[str, float]) -> str:
    return str(Estimate(**stored))


def _overview(results: Mapping[str, Any], domains: Mapping[str, Mapping[str, Any]]) -> list[Element]:
    """One row per domain."""
    rows = []
    for suite, summary in results["control"].items():
        estimates = [_estimate(domains[suite][key]) for key in ("percent", "interquartile_mean", "tasks_above_half")]
        counted = [str(len(summary["tasks"])), str(summary["episodes"]), str(summary["cut_off"])]
        clipped = [f"{100 * max(summary['clipped'].values(), default=0.0):.2g}"] if "clipped" in summary else [""]
        rows.append([suite, bar(Estimate(**domains[suite]["percent"])), *estimates, *counted, *clipped])
    headers: tuple[str, ...] = ("domain", "", "mean %", "interquartile mean %", "tasks above half %", "tasks", "episodes",
                                "cut off", "clipped %")  # fmt: skip
    if not any("clipped" in summary for summary in results["control"].values()):  # results of an earlier version
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    note = (
        "Percent of the way from random (0) to the task's expert (100). The mean is over tasks of the mean over episodes; "
        "tasks above half are those with a mean above 50; cut off are episodes that ended at the limit of steps; clipped is "
        "the share of observed numbers beyond the range that the tokenizers know, in the layout where it is largest."
    )
    return [element("h2", "Control"), table(headers, rows), bar_legend(), element("p", note, class_="note")]


def _policies(results: Mapping[str, Any]) -> list[Element]:
    """The model, the model with other prompts, and baselines in one table."""
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
    """Performance profiles, with a line per domain: a mean hides whether few tasks fail or all are mediocre."""
    drawn = []
    for key, of in (("episode_profile", "episodes"), ("task_profile", "tasks")):
        profiles = {suite: found[key] for suite, found in domains.items()}
        curves = [
            Line(name=suite, x=one["thresholds"], y=one["value"], low=one["low"], high=one["high"])
            for suite, one in profiles.items()
        ]
        drawn += charts(
            curves, x="threshold, percent of the expert", y=f"% of {of} above each threshold", bounds=(0.0, 100.0)
        )
    return [element("h2", "Performance profiles"), element("div", *drawn, class_="charts")]


def _history(evaluations: Mapping[int, Mapping[str, Estimate]]) -> list[Element]:
    """Scores against training steps, if there are several evaluations."""
    if len(evaluations) < 2:
        return []
    drawn = []
    for suite in sorted({suite for found in evaluations.values() for suite in found}):
        steps = [step for step in sorted(evaluations) if suite in evaluations[step]]
        found = [evaluations[step][suite] for step in steps]
        values, low, high = ([getattr(one, name) for one in found] for name in ("value", "low", "high"))
        drawn.append(Line(name=suite, x=steps, y=values, low=low, high=high))
    shown = element("div", *charts(drawn, x="step", y="mean %"), class_="charts")
    return [element("h2", "Score against training step"), shown]


def _suite(suite: str, summary: Mapping[str, Any], clips: Mapping[str, bytes | str]) -> Element:
    """Every task of a domain: bars with intervals, scores and clips; folded if there are many."""
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
    title = f"{suite}: {len(summary['tasks'])} tasks, mean {_estimate(summary['percent'])}%"
    opened = {"open": "open"} if len(rows) <= SMALL else {}
    return element("details", element("summary", title), table(headers, rows), *films, **opened)


def _clip(name: str, clip: bytes | str) -> Element:
    """A task's episode, or the reason why it is not shown."""
    short_name = name.partition("/")[2] or name
    if isinstance(clip, str):
        return element("figure", element("figcaption", f"{short_name}: no video, {clip}"))
    # Inline, so that the page is one file that can be sent around.
    source = "data:image/webp;base64," + base64.b64encode(clip).decode()
    return element("figure", element("img", src=source, alt=f"an episode of {name}"), element("figcaption", short_name))
