"""The console that every command writes to, and how it reports errors."""

import os

from rich.console import Console

LOG_WIDTH = 400  # columns without a terminal: tables are complete, and a message is one line
READABLE = 120  # columns of lists without a terminal

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
    """Prints an error in one line; returns the exit status, 1.

    Raises:
        BaseException: the error itself, if the environment variable GENERALIST_TRACEBACK is set.
    """
    if os.environ.get("GENERALIST_TRACEBACK"):
        raise error
    console.quiet = False  # only the first of several processes prints, but all report errors
    console.print("error:", error, style="bold red", highlight=False, markup=False, soft_wrap=True)
    console.print("(GENERALIST_TRACEBACK=1 shows where it happened)", style="dim", highlight=False)
    return 1
