"""`generalist data`: what is done with data sets."""

import argparse
from collections.abc import Callable

from rich.console import Console

from generalist.cli import data_convert as convert_command

DESCRIPTION = "Converts data sets of recorded episodes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands, each with its arguments."""
    commands = parser.add_subparsers(dest="doing", required=True, metavar="COMMAND")
    for name, add, summary in (("convert", convert_command.add_convert, convert_command.SUMMARY),):
        add(commands.add_parser(name, help=summary, description=summary, allow_abbrev=False))


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Runs one; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user.
    """
    runs: dict[str, Callable[[argparse.Namespace, list[str], Console], int]] = {"convert": convert_command.convert}
    return runs[arguments.doing](arguments, rest, console)
