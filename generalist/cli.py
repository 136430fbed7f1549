"""The command line `generalist`: one subcommand a file, imported when it is asked for."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

Run = Callable[[argparse.Namespace, list[str], Console], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    from generalist import play
    from generalist.eval import command as evaluation
    from generalist.plan import command as plan

    parser = argparse.ArgumentParser(prog="generalist", description="Tools beside train.py.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs: dict[str, Run] = {}
    for name, module, summary in (
        ("eval", evaluation, "compare results files, make a report"),
        ("play", play, "watch the weights, an expert or chance play a task"),
        ("plan", plan, "memory, time and exchanges of a preset on a machine that need not be there"),
    ):
        sub = commands.add_parser(name, help=summary, description=module.DESCRIPTION, allow_abbrev=False)
        module.add_arguments(sub)
        runs[name] = module.run
    known, rest = parser.parse_known_args(arguments)
    console = Console()
    try:
        return runs[known.command](known, rest, console)
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("GENERALIST_TRACEBACK"):
            raise
        console.print("error:", error, style="bold red", highlight=False, markup=False, soft_wrap=True)
        console.print("(GENERALIST_TRACEBACK=1 shows where it happened)", style="dim", highlight=False)
        return 1


def script() -> None:
    """What the console script calls."""
    sys.exit(main())
