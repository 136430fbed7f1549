"""Tables, and charts as inline SVG, built by hand: no script, no library, nothing to fetch. Colours come from the page's style.

Elements are built as trees, so that writing a tree out escapes every text in it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from generalist.eval.report.colours import colour_of
from generalist.eval.results.scores import Estimate

WIDTH, HEIGHT = 420, 250  # of a chart: about a phone's width, where its numbers are then as large as other text
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 8, 36  # margins around the plot, for ticks and labels
MOST_LINES = 8  # per chart: more cannot be distinguished
BAR_WIDTH, BAR_HEIGHT = 220, 14  # pixels
BAR_LOW, BAR_TOP = -20.0, 120.0  # percent at the ends of a bar
GOOD, FAIR = 80.0, 30.0  # percent from which a bar is green, or yellow


def element(tag: str, *children: Element | str | None, **attributes: object) -> Element:
    """An element with children and texts in order; `class_` and `stroke_width` stand for `class` and `stroke-width`."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()})
    for child in children:
        # ElementTree keeps text after a child as that child's tail.
        if isinstance(child, str):
            if len(made):
                made[-1].tail = (made[-1].tail or "") + child
            else:
                made.text = (made.text or "") + child
        elif child is not None:
            made.append(child)
    return made


def written(tree: Element) -> str:
    """The tree as HTML."""
    # Not as XML: browsers reading HTML do not close `<i/>` and `<span/>`.
    return ElementTree.tostring(tree, encoding="unicode", method="html")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart, with its band if it has one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def charts(drawn: Sequence[Line], *, x: str, y: str, bounds: tuple[float, float] | None = None) -> list[Element]:
    """As few charts as possible with at most `MOST_LINES` lines each, divided evenly; arguments as of `lines`."""
    count = -(-len(drawn) // MOST_LINES)  # rounded up
    # Evenly, so that the last chart is not left with a single line.
    parts = [drawn[part * len(drawn) // count : (part + 1) * len(drawn) // count] for part in range(count)]
    return [lines(part, x=x, y=y, bounds=bounds) for part in parts]


def lines(drawn: Sequence[Line], *, x: str, y: str, bounds: tuple[float, float] | None = None) -> Element:
    """A chart of lines with bands, ticks and a legend. A line's colour is that of its name; of two lines with the same colour
    the second is dashed.

    Args:
        drawn: from 1 to `MOST_LINES` lines with at least one point each; values that are not finite are left out.
        x, y: labels of the axes; `y` is written above the chart.
        bounds: of y; None: as the lines and bands need.

    Raises:
        ValueError: there are more lines than can be distinguished.
    """
    if len(drawn) > MOST_LINES:
        raise ValueError(f"a chart has at most {MOST_LINES} lines, got {len(drawn)}: draw several charts")
    across = [value for line in drawn for value in line.x]
    up = [
        value
        for line in drawn
        for part in (line.y, line.low, line.high)
        for value in part or ()
        if math.isfinite(value)
    ]
    left, right = _widened(min(across), max(across))
    bottom, top = bounds or _widened(min(up, default=0.0), max(up, default=1.0))

    place = _place((left, right), (bottom, top))
    children = [*_axes(place, (left, right), (bottom, top), x)]
    legend: list[Element] = []
    taken: set[str] = set()
    for line in drawn:
        colour = colour_of(line.name)
        dashed = " dashed" if colour in taken else ""
        taken.add(colour)
        legend.append(element("span", line.name, class_=f"key {colour}{dashed}"))
        if line.low is not None and line.high is not None:
            # Along the upper edge, and back along the lower one.
            around = [*zip(line.x, line.high, strict=True), *reversed([*zip(line.x, line.low, strict=True)])]
            children.append(
                element("polygon", class_=f"band {colour}", points=" ".join(place(*point) for point in around))
            )
        points = [place(px, py) for px, py in zip(line.x, line.y, strict=True) if math.isfinite(py)]
        children.append(element("polyline", class_=f"line {colour}{dashed}", points=" ".join(points)))
        # Few points are measurements to be seen each; a single one would make no visible line.
        if len(points) <= 12:
            dots = (point.split(",") for point in points)
            children += [element("circle", class_=f"dot {colour}", cx=h, cy=v, r="2.5") for h, v in dots]
    picture = element("svg", *children, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    return element("figure", element("strong", y), picture, element("figcaption", *legend), class_="chart")


def histogram(edges: Sequence[float], counts: Sequence[int], *, x: str, y: str) -> Element:
    """A chart of bars.

    Args:
        edges: of the bars, n + 1, ascending.
        counts: n of them.
        x, y: what the axes show; `y` stands above the chart.
    """
    across, up = (edges[0], edges[-1]), (0.0, float(max([*counts, 1])))
    place = _place(across, up)
    bars = []
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        (low, base), (high, top) = (
            [float(one) for one in place(*point).split(",")] for point in ((left, 0.0), (right, count))
        )
        width = max(0.5, high - low - 1)
        box = {"x": f"{low:.1f}", "y": f"{top:.1f}", "width": f"{width:.1f}", "height": f"{base - top:.1f}"}
        bars.append(
            element("rect", element("title", f"{short(left)} to {short(right)}: {count:,}"), class_="column", **box)
        )
    picture = element("svg", *_axes(place, across, up, x), *bars, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    return element("figure", element("strong", y), picture, class_="chart")


def _place(across: tuple[float, float], up: tuple[float, float]) -> Callable[[float, float], str]:
    """A function from a point of a chart to its place in the picture, as `h,v`."""
    (left, right), (bottom, top) = across, up

    def place(px: float, py: float) -> str:
        h = _LEFT + (px - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
        # SVG's vertical axis points downwards; values beyond the bounds stay on the edge of the plot.
        v = HEIGHT - _BOTTOM - (min(max(py, bottom), top) - bottom) / (top - bottom) * (HEIGHT - _TOP - _BOTTOM)
        return f"{h:.1f},{v:.1f}"

    return place


def _axes(
    place: Callable[[float, float], str], across: tuple[float, float], up: tuple[float, float], x: str
) -> list[Element]:
    """Ticks with their numbers, lines across the plot, and the label of the horizontal axis."""
    children = []
    for value in ticks(*up):
        h, v = place(across[0], value).split(",")
        children.append(element("line", class_="grid", x1=h, x2=WIDTH - _RIGHT, y1=v, y2=v))
        children.append(element("text", short(value), x=_LEFT - 6, y=float(v) + 4, text_anchor="end"))
    for value in ticks(*across, most=6):
        h = place(value, up[0]).split(",")[0]
        children.append(element("text", short(value), x=h, y=HEIGHT - _BOTTOM + 15, text_anchor="middle"))
    children.append(element("text", x, class_="axis", x=WIDTH - _RIGHT, y=HEIGHT - 4, text_anchor="end"))
    return children


def table(headers: Sequence[str], rows: Iterable[Sequence[Element | str]]) -> Element:
    """A table; the first column is aligned left, numbers right. On a narrow screen each row becomes a block, with every cell
    beside its header."""
    head = element("tr", *(element("th", header) for header in headers))
    # The style shows `data-label` on narrow screens, where the header row is hidden.
    body = [
        element("tr", *(element("td", cell, data_label=header) for header, cell in zip(headers, row, strict=True)))
        for row in rows
    ]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="wide")


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """At most `most` round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten.

    Raises:
        ValueError: `low` is not below `high`.
    """
    if not low < high:
        raise ValueError(f"ticks need low < high, got {low} and {high}")
    # Steps below `power` would give too many ticks.
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        # A little beyond the ends, since 0.3 / 0.1 is not quite 3.
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(index * step, 12) for index in range(first, last + 1)]


def _widened(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis, which must differ: positions are divided by its length."""
    return (low, high) if low < high else (low - 1, high + 1)


def short(value: float) -> str:
    """A number with few digits, such as 12,000 or 0.05."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def bar(estimate: Estimate) -> Element:
    """Percent of the expert as a bar from zero, to the left if it is negative, with its interval; both are cut at `BAR_LOW` and
    `BAR_TOP`. `bar_legend` explains the colours and marks."""

    def at(percent: float) -> float:
        within = float(np.clip(percent, BAR_LOW, BAR_TOP))
        return round((within - BAR_LOW) / (BAR_TOP - BAR_LOW) * BAR_WIDTH, 1)

    colour = "good" if estimate.value >= GOOD else "fair" if estimate.value >= FAIR else "poor"
    middle, zero, end = BAR_HEIGHT / 2, at(0.0), at(estimate.value)
    left, width = min(zero, end), round(abs(end - zero), 1)
    return element(
        "svg",
        element("rect", class_="track", width=BAR_WIDTH, height=BAR_HEIGHT, rx=2),
        element("rect", class_=colour, x=left, width=width, height=BAR_HEIGHT),
        element("line", class_="zero", x1=zero, x2=zero, y1=0, y2=BAR_HEIGHT),
        element("line", class_="half", x1=at(50), x2=at(50), y1=0, y2=BAR_HEIGHT),
        element("line", class_="full", x1=at(100), x2=at(100), y1=0, y2=BAR_HEIGHT),
        element("line", class_="whisker", x1=at(estimate.low), x2=at(estimate.high), y1=middle, y2=middle),
        element("title", str(estimate)),  # shown when the pointer rests on it, and read out by screen readers
        class_="bar",
        width=BAR_WIDTH,
        height=BAR_HEIGHT,
        viewBox=f"0 0 {BAR_WIDTH} {BAR_HEIGHT}",
        role="img",
    )


def bar_legend() -> Element:
    """A legend of the colours and marks of bars."""
    entries = (
        ("swatch good", f"{GOOD:.0f}% of the expert or more"),
        ("swatch fair", f"{FAIR:.0f}% or more"),
        ("swatch poor", "less; below zero, worse than random, to the left"),
        ("mark zero", "random (0)"),
        ("mark half", "half of the expert (50)"),
        ("mark full", "the expert (100)"),
        ("mark whisker", "95% interval"),
    )
    shown = [element("span", element("i", class_=kind), text, class_="entry") for kind, text in entries]
    ends = f"Bars end at {BAR_LOW:.0f} and {BAR_TOP:.0f}; the number beside a bar is exact."
    return element("p", *shown, ends, class_="note legend")
