"""`generalist data view`: real training rows on a page, position by position."""

import argparse
from pathlib import Path

from rich.console import Console

from generalist.cli.data_source import add_source, open_source
from generalist.system.places import check_file

SUMMARY = "real training rows on one page to open offline: what stands at each position, and what it may attend to"


def add_view(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist data view`; what it doesn't know are settings."""
    add_source(parser)
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="rows to show (default 4)")
    parser.add_argument("--packed", action="store_true", help="rows as batches have them: filled with several examples")
    parser.add_argument(
        "--out", type=Path, default=Path("rows.html"), metavar="FILE", help="the page (default rows.html)"
    )


def view(arguments: argparse.Namespace, settings: list[str], console: Console) -> int:
    """Writes the page; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user.
    """
    if arguments.rows < 1:
        raise ValueError(f"--rows must be at least 1, got {arguments.rows}")
    # Before rows are drawn, which may take long.
    check_file(arguments.out, "--out")
    from generalist.eval.report import html, rows_page
    from generalist.experiment.rows import training_rows

    about = open_source(arguments, settings, console)
    rows = training_rows(about, arguments.rows, packed=arguments.packed)
    html.write_page(arguments.out, rows_page.build(about.name, about.config.name, rows))
    console.print(
        f"{len(rows)} rows: {arguments.out} ({arguments.out.stat().st_size / 1e6:.1f} MB)",
        highlight=False,
        markup=False,
    )
    return 0
