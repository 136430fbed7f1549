"""The screen, or the log: where every command writes, and how it tells what went wrong."""

import os

from rich.console import Console

LOG_WIDTH = 400  # columns where there is no terminal: tables are whole, and a message is one line
READABLE = 120  # columns that lists are laid out in there

TOLD = (ValueError, ImportError, OSError, FloatingPointError, RuntimeError)
"""Errors whose message is for the user."""


def open_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; in a log, wide enough for every table."""
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH
    return console


def note(text: str) -> None:
    """Tells the user something on standard error."""
    open_console(stderr=True).print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)


def tell(error: BaseException, console: Console) -> int:
    """Shows an error in one line; returns the exit status.

    Raises:
        BaseException: the error itself, where the variable GENERALIST_TRACEBACK asks for it.
    """
    if os.environ.get("GENERALIST_TRACEBACK"):
        raise error
    console.quiet = False  # of several processes only the first one speaks, but errors are told by all
    console.print("error:", error, style="bold red", highlight=False, markup=False, soft_wrap=True)
    console.print("(GENERALIST_TRACEBACK=1 shows where it happened)", style="dim", highlight=False)
    return 1
