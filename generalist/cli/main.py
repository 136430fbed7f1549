"""The command line `generalist`: one module a subcommand, imported when it is asked for."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from generalist.system.compilation_cache import use_compilation_cache
from generalist.system.console import TOLD, open_console, tell
from generalist.system.gpu_flags import use_gpu_flags

# Name → its module, with DESCRIPTION, add_arguments(parser) and run(arguments, rest, console) → exit status; what it does.
COMMANDS = {
    "tasks": ("generalist.cli.tasks", "the tasks, with what random actions and the expert score"),
    "runs": ("generalist.cli.runs", "the runs in a folder, how far they are, and what they scored"),
    "eval": ("generalist.cli.eval", "score agents, compare results files, make a report"),
    "play": ("generalist.cli.play", "watch the weights, an expert or chance play a task"),
    "prompt": ("generalist.cli.prompt", "images, text and shots in, text out"),
    "dagger": ("generalist.cli.dagger", "experts correct the weights' own play, for training to learn from"),
    "export": ("generalist.cli.export", "a run's weights as one folder, to use, share or publish"),
    "average": (
        "generalist.cli.average",
        "the mean of weights and those they were begun with, which keeps what both know",
    ),
    "plan": ("generalist.cli.plan", "memory, time and exchanges of a preset on a machine that need not be there"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="generalist", description="Tools beside train.py.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    console = open_console()
    try:
        use_compilation_cache()
        use_gpu_flags()
        subparsers = {
            name: commands.add_parser(name, help=what, allow_abbrev=False) for name, (_, what) in COMMANDS.items()
        }
        asked = given[0] if given else ""
        if asked not in COMMANDS:
            parser.parse_args(given)  # help, or what is wrong
        module = importlib.import_module(COMMANDS[asked][0])
        subparsers[asked].description = module.DESCRIPTION
        module.add_arguments(subparsers[asked])
        known, rest = parser.parse_known_args(given)
        return module.run(known, rest, console)
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    except TOLD as error:
        return tell(error, console)


def script() -> None:
    """What the console script calls."""
    sys.exit(main())
