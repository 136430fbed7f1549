"""The page of `generalist data view`: training rows as tiles, one per position; what one may attend to is marked when it is
touched. One file with a script of its own, in plain JavaScript; nothing is fetched."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from generalist.eval.report.charts import element
from generalist.eval.report.html import data_uri, document

SCRIPT = Path(__file__).with_name("rows.js")
SIDE = 84  # pixels of a thumbnail
KINDS = {
    "text": "a piece of text",
    "discrete": "a choice",
    "continuous": "a number",
    "special": "a token with a meaning of its own; hidden stands for an action number that is not shown",
    "tensor": "all observed numbers of a step, as one embedding",
    "patch": "16×16 pixels",
    "frame": "an image as the convolutional network is given it; standardised, where a layout has learnt how",
    "image": "an image, as the frozen encoder is given it",
}
"""Modality → what it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A prediction from a position."""

    token: int
    part: str
    value: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A position of a row."""

    modality: str
    token: int
    part: str
    value: str
    image: np.ndarray | None
    """uint8 (H, W, C)."""
    targets: list[Target]
    """What is predicted from here: one id, or all dimensions of an action."""
    weight: float
    """Of their losses."""
    segment: int
    position: int
    """Within the segment."""
    local: int
    image_index: int
    sees: list[tuple[int, int]]
    """Positions of the row that it attends to, as ranges."""
    near: list[tuple[int, int]]
    """The same in layers with a window."""
    images: list[int]
    """Positions of the images that it attends to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row without its padding, which stands at its end."""

    segments: list[str]
    """What each segment is, from 1 on."""
    cells: list[Cell]
    length: int
    """Positions with padding."""
    window: int
    """Of layers with one; 0: no layer has one."""


def build(source: str, settings: str, rows: Sequence[Row]) -> str:
    """The whole page.

    Args:
        source: name of the source.
        settings: name of the preset or run.
    """
    title = f"Training rows of {source}"
    used, total = sum(len(row.cells) for row in rows), sum(row.length for row in rows)
    predicted = sum(cell.weight > 0 for row in rows for cell in row.cells)
    told = (
        f"As a run with the settings of {settings} reads them: {len(rows)} rows, {used:,} positions, of which {predicted:,} are "
        f"predicted from, and {1 - used / max(1, total):.0%} padding. Touch a position: what it may attend to is marked."
    )
    legend = [
        element("span", kind, class_=f"kind {kind}", title=what)
        for kind, what in KINDS.items()
        if any(cell.modality == kind for row in rows for cell in row.cells)
    ]
    body = element(
        "body",
        element("h1", title),
        element("p", told),
        element("p", *legend, element("span", "→ what is predicted from here", class_="note"), class_="legend"),
        element("noscript", "This page needs JavaScript, which is in it: nothing is fetched."),
        element("main", id="rows"),
        element("aside", id="details", class_="details"),
        element("script", _safe(page_data(rows)), type="application/json", id="data"),
        element("script", SCRIPT.read_text(encoding="utf-8")),
    )
    return document(title, body, STYLE)


def _safe(data: Any) -> str:
    """JSON that can stand in a script element, whatever texts are in it."""
    return (
        json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    )


def page_data(rows: Sequence[Row]) -> dict[str, Any]:
    """What the script shows; each image stands once."""
    uris: dict[str, int] = {}

    def image(cell: Cell) -> int | None:
        return None if cell.image is None else uris.setdefault(data_uri(cell.image, SIDE), len(uris))

    shown = [
        {
            "segments": row.segments,
            "length": row.length,
            "window": row.window,
            "cells": [{**_plain(cell), "picture": image(cell)} for cell in row.cells],
        }
        for row in rows
    ]
    return {"rows": shown, "images": list(uris)}


def _plain(cell: Cell) -> dict[str, Any]:
    fields = {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell) if field.name != "image"}
    if cell.near == cell.sees:
        del fields["near"]
    fields["targets"] = [dataclasses.asdict(target) for target in cell.targets]
    return {name: value for name, value in fields.items() if value not in ("", [])}


CELLS = """
.row { display: flex; flex-wrap: wrap; gap: 3px; margin: .4rem 0 1.2rem }
.kind { border-left: 4px solid var(--k); padding-left: .35em; font-size: .88rem }
.cell { box-sizing: border-box; width: 4.3rem; min-height: 3.4rem; padding: 2px 3px; overflow: hidden; cursor: pointer;
  border: 1px solid var(--rule); border-top: 4px solid var(--k); border-radius: 4px; background: var(--paper); color: inherit;
  font: 11px/1.25 system-ui, sans-serif; text-align: left;
  display: flex; flex-direction: column; justify-content: space-between }
.cell.even { background: var(--track) } .cell small { color: var(--soft) }
.cell img { max-width: 100%; height: 2.4rem; align-self: center; image-rendering: pixelated }
.cell b { font-weight: 500; white-space: pre; overflow: hidden; text-overflow: ellipsis; display: block }
.cell i { font-style: normal; color: var(--good); white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.row.marked .cell { opacity: .3 } .row.marked .cell.far { opacity: .65 } .row.marked .cell.seen { opacity: 1 }
.row.marked .cell.self { opacity: 1; outline: 2px solid var(--ink) }
.row.marked .cell.shown { opacity: 1; outline: 2px solid var(--fair) }
.pad, .segment { flex-basis: 100%; color: var(--soft); font-size: .82rem } .segment { margin-top: .3rem }
.details:empty { display: none } .details img { width: 5.5rem; image-rendering: pixelated }
.details dl { display: grid; margin: 0; grid-template-columns: max-content 1fr; gap: .05rem .8rem }
.details dt { color: var(--soft) } .details dd { margin: 0; white-space: pre-wrap }
.text { --k: var(--c8) } .discrete { --k: var(--c3) } .continuous { --k: var(--c5) } .special { --k: var(--soft) }
.tensor { --k: var(--c12) } .patch { --k: var(--c1) } .frame { --k: var(--c0) } .image { --k: var(--c14) }
"""
"""Of positions and of what is said about one: also the playground's."""
STYLE = (
    CELLS
    + """
body { padding-bottom: 15rem } .legend { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center }
.details { position: fixed; left: 0; right: 0; bottom: 0; max-height: 14rem; overflow: auto; background: var(--paper);
  border-top: 2px solid var(--rule); padding: .5rem 1rem; font-size: .88rem; display: flex; gap: 1rem; align-items: flex-start }
"""
)
