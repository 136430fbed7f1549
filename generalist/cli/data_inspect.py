"""`generalist data inspect`: what a source holds, what is wrong with it, and what a run makes of it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from generalist.cli.data_source import add_source, open_source
from generalist.eval.results.words import counted
from generalist.system.console import open_console
from generalist.system.places import check_file

SUMMARY = "what a source holds, what is wrong with it and what to do about it, and what a run makes of it"
TEXTS = 5  # instructions on the screen
CHARACTERS = 200  # of each


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist data inspect`; what it doesn't know are settings."""
    add_source(parser)
    parser.add_argument("--all", action="store_true", help="read every image and every document, not only a sample")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures, to open offline")


def inspect(arguments: argparse.Namespace, settings: list[str], console: Console) -> int:
    """Inspects; returns the exit status, 0 whatever is found.

    Raises:
        ValueError, ImportError, OSError: with a message for the user.
    """
    # Before the inspection, which may take long.
    for path, option in ((arguments.json, "--json"), (arguments.html, "--html")):
        if path is not None:
            check_file(path, option)
    from generalist.experiment import inspection

    about = open_source(arguments, settings, console)
    # Progress goes to standard error, so that the result can be piped.
    found = inspection.inspect(about, open_console(stderr=True), whole=arguments.all)
    show(found.about, console)
    if arguments.json is not None:
        from generalist.system.files import write_json

        write_json(arguments.json, found.about)
        console.print(f"everything: {arguments.json}", highlight=False)
    if arguments.html is not None:
        from generalist.eval.report import html, inspection_page

        html.write_page(arguments.html, inspection_page.build(found.about, found.pictures))
        console.print(f"page: {arguments.html} ({arguments.html.stat().st_size / 1e6:.1f} MB)", highlight=False)
    return 0


def show(about: Mapping[str, Any], console: Console) -> None:
    """Prints what was found, problems first."""

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    # Problems first: they are what the command is for, and the tables may be long.
    for problem in about["problems"]:
        where = f"{problem['part']}, {problem['where']}"
        say(f"{problem['kind'].replace('_', ' ')}: {where}: {problem['what']}", "bold red")
        say(f"  {problem['remedy']}")
    if not about["problems"]:
        say("no problem found", "bold green")
    for note in about["notes"]:
        say(note)
    for one in about["data_sets"]:
        _show_data_set(one, console)
    if about["documents"] is not None:
        _show_documents(about["documents"], console)
    if about["run"] is not None:
        _show_run(about["run"], console)


def _show_data_set(one: Mapping[str, Any], console: Console) -> None:
    from generalist.eval.report.charts import short
    from generalist.eval.report.inspection_page import size, summary

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    console.print(f"\n{one['name']}", style="bold", highlight=False, markup=False)
    rate = f"{one['rate']:g} steps per second" if one["rate"] else "no rate stored"
    say(f"{one['format']}, {one['place']}: {counted(one['files'], 'file')}, {size(one['bytes'])}, {rate}")
    table = Table("field", "used as", "kind", "shape", "type", "range", box=SIMPLE, pad_edge=False)
    for field in one["fields"]:
        # `?`: differs between values.
        shape = "×".join("?" if length is None else str(length) for length in field["shape"])
        table.add_row(field["key"], field["used_as"] or "", field["kind"], shape, field["dtype"], summary(field)[0])
    console.print(table, markup=False)
    for key, reason in one["unread"].items():
        say(f"not readable: {key}: {reason}")
    for name, values in (("steps of an episode", one["lengths"]), ("return", one["returns"])):
        if values is not None:
            middle = f"median {short(values['median'])}, mean {short(values['mean'])}"
            say(f"{name}: {short(values['min'])} to {short(values['max'])}, {middle}")
    say(
        f"{counted(one['episodes'], 'episode')}, {counted(one['steps'], 'step')}; {one['broken_count']:,} can't be read"
    )
    told = one["instructions"]
    say(f"{told['different']:,} different instructions, {told['empty']:,} episodes without one")
    # The JSON has more of them.
    for text, count in told["most"][:TEXTS]:
        say(f"  {count:,} × {on_one_line(text)}")


def on_one_line(text: str) -> str:
    """A text of somebody else's file for the screen: not too long, and nothing in it commands the terminal."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text[:CHARACTERS])
    return shown if len(text) <= CHARACTERS else f"{shown}... ({len(text):,} characters)"


def _show_documents(about: Mapping[str, Any], console: Console) -> None:
    from generalist.eval.report.charts import short

    kinds = ", ".join(f"{count:,} {kind}" for kind, count in about["kinds"].items())
    lines = [
        f"{about['format']}, {about['place']}: {about['documents']:,} documents; of {about['read']:,} that were read: {kinds}"
    ]
    for name in ("characters", "images", "heights", "widths"):
        if about[name] is not None:
            values = about[name]
            lines.append(f"{name}: {short(values['min'])} to {short(values['max'])}, median {short(values['median'])}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _show_layout(part: Mapping[str, Any], console: Console) -> None:
    table = Table("part", "enters as", "shape", "codec", "positions per step", box=SIMPLE, pad_edge=False)
    for one in part["layout"]:
        count = "varies" if one["tokens_per_step"] is None else str(one["tokens_per_step"])
        name, shape = f"{one['role']} {one['key']}".strip(), "×".join(map(str, one["shape"]))
        table.add_row(name, one["kind"], shape, one["codec"], count)
    console.print(table, markup=False)


def _show_run(run: Mapping[str, Any], console: Console) -> None:
    from generalist.eval.report.inspection_run import batch_lines, part_lines

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    say(f"\nas a run with the preset {run['preset']} sees it", "bold")
    for line in batch_lines(run):
        say(line)
    for part in run["parts"]:
        say(f"{part['name']}: {' '.join(part_lines(part))}")
        # A suite has a layout per task: all of them would fill screens, and are in the JSON.
        if part["layout"] is not None and len(run["parts"]) == 1:
            _show_layout(part, console)
        for line in part.get("lost", []):
            say(f"lost: {line}")
