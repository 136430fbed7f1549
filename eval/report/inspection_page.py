"""The page of `generalist data inspect`: problems first, then what the files hold, then what a run makes of them. No script."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from generalist.data.inspection.shown import Curve, Shown
from generalist.eval.report.charts import Line, charts, element, histogram, short, table
from generalist.eval.report.html import data_uri, document
from generalist.eval.report.inspection_run import run_section
from generalist.eval.results.words import counted

SIDE = 160  # pixels of a frame
NUMBERS = 200  # of a field in its table


def build(about: Mapping[str, Any], pictures: Sequence[Shown]) -> str:
    """The whole page.

    Args:
        about: as `experiment.inspection.inspect` gives it.
        pictures: of the data sets.
    """
    title = f"Inspection of {about['source']}"
    by_part = {one.part: one for one in pictures}
    several = len(about["data_sets"]) > 1
    sections = [_data_set(one, by_part.get(one["name"])) for one in about["data_sets"]]
    body = element(
        "body",
        element("h1", title),
        *_problems(about["problems"]),
        *(element("p", note) for note in about["notes"]),
        *(
            _folded(one["name"], section) if several else section
            for one, section in zip(about["data_sets"], sections, strict=True)
        ),
        *([] if about["documents"] is None else [_documents(about["documents"])]),
        *([] if about["run"] is None else [run_section(about["run"])]),
    )
    return document(title, body)


def _problems(problems: Sequence[Mapping[str, str]]) -> list[Element]:
    """Each problem with what to do about it."""
    if not problems:
        return [element("p", "No problem found.", class_="headline")]
    entries = [
        element(
            "li",
            element("b", one["kind"].replace("_", " ")),
            f" in {one['part']}, {one['where']}: {one['what']}. ",
            element("span", f"What to do: {one['remedy']}.", class_="note"),
        )
        for one in problems
    ]
    heading = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
    return [element("h2", heading), element("ul", *entries, class_="problems")]


def _folded(name: str, section: Element) -> Element:
    return element("details", element("summary", name), section)


def _data_set(one: Mapping[str, Any], shown: Shown | None) -> Element:
    """A data set of episodes."""
    rate = f"{one['rate']:g} steps per second" if one["rate"] else "the files say no rate"
    facts = (
        f"{one['format']}; {one['place']}; {counted(one['files'], 'file')}, {size(one['bytes'])}; "
        f"{counted(one['episodes'], 'episode')}, {counted(one['steps'], 'step')}; {rate}"
    )
    unread = [[key, reason] for key, reason in one["unread"].items()]
    return element(
        "section",
        element("h2", one["name"]),
        element("p", facts),
        element("h3", "Fields"),
        table(("field", "used as", "kind", "shape", "type", "range", "mean ± deviation"), map(_field, one["fields"])),
        *(
            [element("h3", "Not readable"), element("div", table(("field", "reason"), unread), class_="text")]
            if unread
            else []
        ),
        *(_numbers(field) for field in one["fields"] if field["numbers"]),
        element("h3", "Episodes"),
        _histograms(("steps of an episode", one["lengths"]), ("return of an episode", one["returns"])),
        *_instructions(one["instructions"]),
        *_broken(one),
        *_times(one["timestamps"]),
        *(_pictures(shown) if shown is not None else []),
    )


def size(count: int) -> str:
    """Bytes for people."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.3g} {units[power]}"


def summary(field: Mapping[str, Any]) -> tuple[str, str]:
    """The range of all numbers of a field, and mean and deviation of a single one."""
    known = [one for one in field["numbers"] if one["low"] is not None]
    if not known:
        return "", ""
    low, high = min(one["low"] for one in known), max(one["high"] for one in known)
    single = f"{short(known[0]['mean'])} ± {short(known[0]['deviation'])}" if len(known) == 1 else ""
    return f"{short(low)} to {short(high)}", single


def _field(field: Mapping[str, Any]) -> list[str]:
    shape = " × ".join("?" if one is None else str(one) for one in field["shape"])
    level = "" if field["level"] == "step" else ", of the episode"
    return [field["key"], field["used_as"] or "not used", field["kind"] + level, shape, field["dtype"], *summary(field)]


def _numbers(field: Mapping[str, Any]) -> Element:
    """Every number of a field, folded."""
    shares = [*field["numbers"][0]["quantiles"]]
    flags = ("constant", "near_constant", "saturated", "outlier")
    rows = [
        [
            one["name"],
            *(_short(one[name]) for name in ("low", "high", "mean", "deviation")),
            *(_short(one["quantiles"][share]) for share in shares),
            str(one["not_finite"] or ""),
            ", ".join(flag.replace("_", " ") for flag in flags if one[flag]),
        ]
        for one in field["numbers"][:NUMBERS]
    ]
    headers = ("number", "lowest", "highest", "mean", "deviation", *(f"{float(one):.0%}" for one in shares), "NaN", "")
    return element("details", element("summary", f"Numbers of {field['key']}"), table(headers, rows))


def _short(value: float | None) -> str:
    return "" if value is None else short(value)


def _histograms(*drawn: tuple[str, Mapping[str, Any] | None]) -> Element:
    """Those that there are."""
    return element(
        "div",
        *(
            histogram(
                one["edges"],
                one["counts"],
                x=name,
                y=f"{name}: {short(one['min'])} to {short(one['max'])}, median {short(one['median'])}",
            )
            for name, one in drawn
            if one is not None
        ),
        class_="charts",
    )


def _instructions(about: Mapping[str, Any]) -> list[Element]:
    if not about["most"]:
        return [element("p", "Episodes carry no instruction.", class_="note")]
    rows = [[text, f"{count:,}"] for text, count in about["most"]]
    told = f"{about['different']:,} different instructions" + (
        f", {about['empty']:,} episodes have none" * bool(about["empty"])
    )
    return [element("h3", "Instructions"), element("p", told), table(("instruction", "episodes"), rows)]


def _broken(about: Mapping[str, Any]) -> list[Element]:
    if not about["broken"]:
        return []
    rows = [[f"{one['record']:,}", one["reason"]] for one in about["broken"]]
    heading = element("h3", f"Records that can't be read: {about['broken_count']:,}")
    return [heading, element("div", table(("number", "reason"), rows), class_="text")]


def _times(several: Sequence[Mapping[str, Any]]) -> list[Element]:
    if not several:
        return []
    rows = [
        [
            one["key"],
            f"{_short(one['step'])} {one['unit']}",
            _short(one["rate"]),
            *(f"{one[name]:,}" for name in ("back", "same", "gaps")),
        ]
        for one in several
    ]
    headers = ("field", "time between steps", "steps per second", "go back", "stand still", "jump")
    return [element("h3", "Timestamps"), table(headers, rows)]


def _pictures(shown: Shown) -> list[Element]:
    """Frames of some episodes, and curves of one."""
    found = [element("h3", "Frames")] if shown.strips else []
    for strip in shown.strips:
        images = [
            element("img", src=data_uri(frame, SIDE), alt=f"step {step}", title=f"step {step}")
            for step, frame in zip(strip.steps, strip.frames, strict=True)
        ]
        told = f"{strip.key}, episode {strip.episode}, steps {', '.join(map(str, strip.steps))}"
        found.append(element("figure", element("div", *images, class_="strip"), element("figcaption", told)))
    if shown.curves:
        drawn = [chart for curve in shown.curves for chart in _curve(curve)]
        found += [element("h3", f"An episode: {shown.where}"), element("div", *drawn, class_="charts")]
    return found


def _curve(curve: Curve) -> list[Element]:
    lines = [
        Line(name=name, x=curve.steps, y=np.asarray(values).tolist())
        for name, values in zip(curve.names, curve.values.T, strict=True)
    ]
    return charts(lines, x="step", y=curve.key)


def _documents(about: Mapping[str, Any]) -> Element:
    kinds = [[kind, f"{count:,}"] for kind, count in about["kinds"].items()]
    told = f"{about['format']}; {about['place']}; {counted(about['documents'], 'document')}, of which {about['read']:,} were read"
    return element(
        "section",
        element("h2", "Documents"),
        element("p", told),
        table(("what they are", "of those read"), kinds),
        _histograms(
            ("characters of a document", about["characters"]),
            ("images of a document", about["images"]),
            ("height of an image", about["heights"]),
            ("width of an image", about["widths"]),
        ),
        *_broken(about),
    )
