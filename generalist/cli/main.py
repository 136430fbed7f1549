"""The command line `generalist`. Each subcommand is a module, which is imported only when the subcommand is used."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from generalist.system.compilation_cache import use_compilation_cache
from generalist.system.console import TOLD, open_console, tell
from generalist.system.gpu_flags import use_gpu_flags

# Name → (module, summary). A module has DESCRIPTION, add_arguments(parser) and run(arguments, rest, console) → exit status.
COMMANDS = {
    "tasks": ("generalist.cli.tasks", "list tasks, with the scores of random actions and of the expert"),
    "runs": ("generalist.cli.runs", "list runs, with their last checkpoint and their scores"),
    "eval": ("generalist.cli.eval", "score agents, compare results files, write a report"),
    "play": ("generalist.cli.play", "watch the weights, an expert or random actions play a task"),
    "prompt": (
        "generalist.cli.prompt",
        "prompt the weights with images, text and shots, and print the text they write",
    ),
    "draw": ("generalist.cli.draw", "draw images of a text, or a part of an image anew"),
    "dagger": ("generalist.cli.dagger", "record experts' corrections of the weights' play, to train on"),
    "export": ("generalist.cli.export", "write a run's weights as one folder, to use, share or publish"),
    "average": (
        "generalist.cli.average",
        "write the mean of weights and those they began with, which keeps what both know",
    ),
    "plan": (
        "generalist.cli.plan",
        "estimate a preset's memory, time and exchanges on a machine that need not be present",
    ),
    "serve": ("generalist.cli.serve", "serve chats (OpenAI's API) and robots (openpi's protocol) over the network"),
    "data": ("generalist.cli.data", "inspect, view and convert your own data"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status.

    Args:
        arguments: the command line after `generalist`; None: that of this process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="generalist", description="Tools beside train.py.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    console = open_console()
    try:
        use_compilation_cache()
        use_gpu_flags()
        # All subcommands are known by name, for the list in --help; only the one that is used gets its arguments.
        subparsers = {
            name: commands.add_parser(name, help=what, allow_abbrev=False) for name, (_, what) in COMMANDS.items()
        }
        asked = given[0] if given else ""
        if asked not in COMMANDS:
            parser.parse_args(given)  # prints the help or an error, and exits
        module = importlib.import_module(COMMANDS[asked][0])
        subparsers[asked].description = module.DESCRIPTION
        module.add_arguments(subparsers[asked])
        # What is left over are settings for `plan`; the other subcommands refuse it.
        known, rest = parser.parse_known_args(given)
        return module.run(known, rest, console)
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130  # as shells do for a process that SIGINT ended: 128 + 2
    except TOLD as error:
        return tell(error, console)


def script() -> None:
    """The entry point of the console script."""
    sys.exit(main())
