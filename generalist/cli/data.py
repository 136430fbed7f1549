"""`generalist data`: what is done with data sets."""

import argparse
from collections.abc import Callable

from rich.console import Console

from generalist.cli import data_convert as convert_command
from generalist.cli import data_inspect as inspect_command
from generalist.cli import data_view as view_command

DESCRIPTION = (
    "Looks at data before a run learns from them, your own or a source of a mixture, and converts recorded episodes."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands, each with its arguments."""
    # `required`: without a command there is nothing to do, which argparse would pass over.
    commands = parser.add_subparsers(dest="doing", required=True, metavar="COMMAND")
    for name, add, summary in (
        ("inspect", inspect_command.add_inspect, inspect_command.SUMMARY),
        ("view", view_command.add_view, view_command.SUMMARY),
        ("convert", convert_command.add_convert, convert_command.SUMMARY),
    ):
        # No abbreviations: unknown options are settings of `train.py`, which argparse would take for shortened
        # ones.
        add(commands.add_parser(name, help=summary, description=summary, allow_abbrev=False))


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Runs one; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user.
    """
    runs: dict[str, Callable[[argparse.Namespace, list[str], Console], int]] = {
        "inspect": inspect_command.inspect,
        "view": view_command.view,
        "convert": convert_command.convert,
    }
    return runs[arguments.doing](arguments, rest, console)
