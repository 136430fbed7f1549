"""The report's section on `generalist eval fewshot`: accuracy against shots, and examples with their images and answers.

Dimension key: H height, W width of an image.
"""

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from generalist.data.files import DocumentError
from generalist.data.images import read_image
from generalist.eval.report.charts import Line, element, lines, table
from generalist.eval.results.scores import Estimate

SIDE = 96  # maximum width and height of an image on the page, in pixels
EXAMPLES = 6  # per number of shots of a benchmark
MOST_SHOWN = 20  # images per example

Read = Callable[[], UInt8[np.ndarray, "H W 3"]]
"""Reads an image when the page is built, so that one that can't be read is replaced by the reason."""

ANSWERERS = {
    "model": "model",
    "rices": "model, nearest images as shots (RICES)",
    "shuffled": "model, images shuffled among the shots",
    "nearest": "nearest neighbour on the frozen features",
}
COPIED = "answers of the last shot, %"


def sections(results: Mapping[str, Any]) -> list[Element]:
    """Headings, charts, tables and examples of one file."""
    if "new_words" in results:
        return _new_words(results["new_words"])
    return _benchmark(results["fewshot"])


def _new_words(found: Mapping[str, Any]) -> list[Element]:
    charts = []
    for ways in dict.fromkeys(cell["ways"] for cell in found["cells"]):
        cells = [cell for cell in found["cells"] if cell["ways"] == ways]
        drawn = [_line(label, cells, name) for name, label in ANSWERERS.items()]
        chance = Line(name="chance", x=[cell["shots"] for cell in cells], y=[cell["chance"] for cell in cells])
        chart = lines([*drawn, chance], x="shots per class", y=f"% right of {ways} names", bounds=(0.0, 100.0))
        charts.append(chart)
    rows = [
        [
            *(str(cell["ways"]), str(cell["shots"])),
            *(_estimate(cell[name]) for name in ANSWERERS),
            *(f"{cell['chance']:.0f}", _estimate(cell.get("copied"))),
        ]
        for cell in found["cells"]
    ]
    note = f"{found['questions']:,} questions per row about held-out things and names: percent right, 95% intervals."
    examples = []
    for cell in found["cells"]:
        # Without shots there is nothing to see, and too many would fill the page.
        if 0 < len(cell["examples"][0]["shots"]) < MOST_SHOWN:
            asked = [_question(example) for example in cell["examples"]]
            title = f"{cell['ways']} ways, {cell['shots']} shots per class"
            examples.append(element("details", element("summary", title), *asked))
    return [
        element("h2", "New words for new things"),
        element("div", *charts, class_="charts"),
        table(("ways", "shots per class", *ANSWERERS, "chance", COPIED), rows),
        element("p", note, class_="note"),
        *examples,
    ]


def _line(label: str, cells: Sequence[Mapping[str, Any]], name: str) -> Line:
    """A line through the numbers of shots for which there is a score."""
    # Baselines that compare with shots have none without shots.
    known = [cell for cell in cells if cell[name] is not None]
    values, low, high = ([cell[name][key] for cell in known] for key in ("value", "low", "high"))
    return Line(name=label, x=[cell["shots"] for cell in known], y=values, low=low, high=high)


def _estimate(stored: Mapping[str, float] | None) -> str:
    return "" if stored is None else str(Estimate(**stored))


def _question(example: Mapping[str, Any]) -> Element:
    """The shots with their names, then the query with the chosen name."""
    names = example["names"]
    shots = [_figure(_drawing(code, change), names[number]) for number, code, change in example["shots"]]
    taken, right = names[example["answer"]].strip(), names[example["right"]].strip()
    return _asked(shots, _drawing(*example["query"]), f"{taken}?", right, taken == right)


def _asked(shots: Sequence[Element], query: Read, answer: str, wanted: str, right: bool) -> Element:
    """The shots, then the query with its answer and, if that is wrong, the right one."""
    verdict = element("span", answer, class_="right" if right else "wrong")
    caption = element("figcaption", verdict, "" if right else f" (right: {wanted})")
    return element("div", *shots, element("figure", _picture(query), caption, class_="asked"), class_="shots")


def _figure(image: Read | None, caption: str) -> Element:
    return element("figure", _picture(image) if image else None, element("figcaption", caption.strip()))


def _picture(image: Read) -> Element:
    """An image, embedded in the page, or the reason why there is none."""
    # A report may be written on another machine than the evaluation, without the benchmark's images or the drawings.
    try:
        shown = Image.fromarray(image()).convert("RGB")
    except (DocumentError, ImportError, OSError) as error:
        return element("span", f"no image: {error}", class_="note")
    shown.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", quality=80)
    return element("img", src="data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), alt="")


def _drawing(code: str, change: int) -> Read:
    """A variant of a drawing, from the package that contains them."""
    return lambda: _variant(code, change)


def _variant(code: str, change: int) -> UInt8[np.ndarray, "72 72 3"]:
    from generalist.data.emoji import variant

    found = _held_out().get(code)
    if found is None:
        raise OSError(f"this version of the drawings has no {code}")
    return variant(found, change)


@functools.cache
def _held_out() -> Mapping[str, Any]:
    from generalist.data.emoji import drawings

    return {drawing.code: drawing for drawing in drawings("names")}


def _benchmark(found: Mapping[str, Any]) -> list[Element]:
    cells, asking = found["cells"], found["asking"]
    label = "nearest images as shots (RICES)" if asking["retrieve"] else "random shots"
    estimates = [Estimate(**cell["score"]) for cell in cells]
    shots = [cell["shots"] for cell in cells]
    values, low, high = ([getattr(one, key) for one in estimates] for key in ("value", "low", "high"))
    drawn = [Line(name=label, x=shots, y=values, low=low, high=high)]
    if found["chance"] is not None:
        drawn.append(Line(name="chance", x=shots, y=[found["chance"]] * len(shots)))
    # Files of earlier versions have neither these nor the rate of copying.
    others = {name: [cell.get("baselines", {}).get(name) for cell in cells] for name in ("majority", "nearest")}
    by = found.get("nearest_by")
    names = {"majority": "majority of the shots' answers", "nearest": f"nearest shot by {by}" if by else "nearest shot"}
    drawn += [_line(names[name], _scores(cells, several), "score") for name, several in others.items() if any(several)]
    rows = [
        [
            *(str(cell["shots"]), str(estimate), " ".join(f"{value:.1f}" for value in cell["by_seed"])),
            *(_estimate(several[number] and several[number]["score"]) for several in others.values()),
            _estimate(cell["copied"]["score"] if "copied" in cell else None),
        ]
        for number, (cell, estimate) in enumerate(zip(cells, estimates, strict=True))
    ]
    examples = [
        element("details", element("summary", f"{cell['shots']} shots"), *_examples(found, cell)) for cell in cells
    ]
    return [
        element("h2", f"{found['benchmark']}, with shots"),
        element("div", lines(drawn, x="shots", y=found["metric"]), class_="charts"),
        table(("shots", found["metric"], "by seed", *names.values(), COPIED), rows),
        element(
            "p", f"{len(found['queries']):,} queries, template {asking['template']!r}, 95% intervals", class_="note"
        ),
        *examples,
    ]


def _scores(cells: Sequence[Mapping[str, Any]], baseline: Sequence[Any]) -> list[dict[str, Any]]:
    """A baseline's score for each number of shots, None where it has none."""
    return [{"shots": cell["shots"], "score": one and one["score"]} for cell, one in zip(cells, baseline, strict=True)]


def _examples(found: Mapping[str, Any], cell: Mapping[str, Any]) -> list[Element]:
    """The first queries of a number of shots, answered by the first seed."""
    shown = []
    for query, answer in list(zip(found["queries"], cell["answers"][0], strict=True))[:EXAMPLES]:
        # The last ones stand next to the query, and with RICES are the nearest.
        supports = [found["supports"][one] for one in answer["shots"][-MOST_SHOWN:]]
        # "Zero shots" are examples of text alone, so they are shown without their images.
        shots = [
            _figure(_file(one["image"]) if cell["shots"] else None, _joined(one["question"], one["answers"][0]))
            for one in supports
        ]
        given, right = _joined(query["question"], answer["answer"]), answer["score"] > 0
        shown.append(_asked(shots, _file(query["image"]), given, ", ".join(dict.fromkeys(query["answers"])), right))
    return shown


def _file(path: str) -> Read:
    return lambda: read_image(Path(path))


def _joined(question: str, answer: str) -> str:
    return f"{question} {answer}".strip()
