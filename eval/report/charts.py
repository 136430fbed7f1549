"""Tables, and charts as inline SVG, drawn by hand: no script, no library, nothing to fetch. Colours come from the page's style.

Elements are built as trees, so that every text in them is escaped by whoever writes the tree out.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from generalist.eval.results.scores import Estimate

WIDTH, HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 8, 36  # room around the plot for what is written there
COLOURS = 8  # the style has c0 to c7
BAR_WIDTH, BAR_HEIGHT, BAR_TOP = 220, 14, 120.0  # pixels; percent at the right end


def element(tag: str, *children: Element | str | None, **attributes: object) -> Element:
    """An element with children and texts in order; `class_` and `stroke_width` stand for `class` and `stroke-width`."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()})
    for child in children:
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
    return ElementTree.tostring(tree, encoding="unicode", method="html")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart, with its band where it has one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def lines(drawn: Sequence[Line], *, x: str, y: str, bounds: tuple[float, float] | None = None) -> Element:
    """A chart of lines with bands, ticks and a legend.

    Args:
        drawn: at least one line with at least one point; values that are not finite are left out.
        x, y: what the axes show.
        bounds: of y; what the lines and bands need unless given.
    """
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

    def place(px: float, py: float) -> str:
        h = _LEFT + (px - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
        v = HEIGHT - _BOTTOM - (min(max(py, bottom), top) - bottom) / (top - bottom) * (HEIGHT - _TOP - _BOTTOM)
        return f"{h:.1f},{v:.1f}"

    children = [*_axes(place, (left, right), (bottom, top), x, y)]
    for index, line in enumerate(drawn):
        colour = f"c{index % COLOURS}"
        if line.low is not None and line.high is not None:
            around = [*zip(line.x, line.high, strict=True), *reversed([*zip(line.x, line.low, strict=True)])]
            children.append(
                element("polygon", class_=f"band {colour}", points=" ".join(place(*point) for point in around))
            )
        points = [place(px, py) for px, py in zip(line.x, line.y, strict=True) if math.isfinite(py)]
        children.append(element("polyline", class_=f"line {colour}", points=" ".join(points)))
        if len(points) <= 12:
            dots = (point.split(",") for point in points)
            children += [element("circle", class_=f"dot {colour}", cx=h, cy=v, r="2.5") for h, v in dots]
    picture = element("svg", *children, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    legend = [element("span", line.name, class_=f"key c{index % COLOURS}") for index, line in enumerate(drawn)]
    return element("figure", picture, element("figcaption", *legend), class_="chart")


def _axes(
    place: Callable[[float, float], str], across: tuple[float, float], up: tuple[float, float], x: str, y: str
) -> list[Element]:
    """Ticks with their numbers, lines across the plot, and what the axes show."""
    children = []
    for value in ticks(*up):
        h, v = place(across[0], value).split(",")
        children.append(element("line", class_="grid", x1=h, x2=WIDTH - _RIGHT, y1=v, y2=v))
        children.append(element("text", short(value), x=_LEFT - 6, y=float(v) + 4, text_anchor="end"))
    for value in ticks(*across):
        h = place(value, up[0]).split(",")[0]
        children.append(element("text", short(value), x=h, y=HEIGHT - _BOTTOM + 15, text_anchor="middle"))
    children.append(element("text", x, class_="axis", x=WIDTH - _RIGHT, y=HEIGHT - 4, text_anchor="end"))
    children.append(element("text", y, class_="axis", x=4, y=HEIGHT - 4))
    return children


def table(headers: Sequence[str], rows: Iterable[Sequence[Element | str]]) -> Element:
    """A table; the first column stands left, numbers right."""
    head = element("tr", *(element("th", header) for header in headers))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="wide")


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers between two, `most` at most: multiples of 1, 2 or 5 times a power of ten.

    Raises:
        ValueError: the two are not in order.
    """
    if not low < high:
        raise ValueError(f"ticks need low < high, got {low} and {high}")
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(index * step, 12) for index in range(first, last + 1)]


def _widened(low: float, high: float) -> tuple[float, float]:
    """An axis that has a length."""
    return (low, high) if low < high else (low - 1, high + 1)


def short(value: float) -> str:
    """A number with few digits: 12,000, 0.05."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def bar(estimate: Estimate) -> Element:
    """Percent of the expert as a bar from 0 to 120 with its interval; beyond the ends it is cut."""

    def at(percent: float) -> float:
        return round(float(np.clip(percent, 0.0, BAR_TOP)) / BAR_TOP * BAR_WIDTH, 1)

    colour = "good" if estimate.value >= 80 else "fair" if estimate.value >= 30 else "poor"
    middle = BAR_HEIGHT / 2
    return element(
        "svg",
        element("rect", class_="track", width=BAR_WIDTH, height=BAR_HEIGHT, rx=2),
        element("rect", class_=colour, width=at(estimate.value), height=BAR_HEIGHT, rx=2),
        element("line", class_="half", x1=at(50), x2=at(50), y1=0, y2=BAR_HEIGHT),
        element("line", class_="full", x1=at(100), x2=at(100), y1=0, y2=BAR_HEIGHT),
        element("line", class_="whisker", x1=at(estimate.low), x2=at(estimate.high), y1=middle, y2=middle),
        element("title", str(estimate)),
        class_="bar",
        width=BAR_WIDTH,
        height=BAR_HEIGHT,
        viewBox=f"0 0 {BAR_WIDTH} {BAR_HEIGHT}",
        role="img",
    )
