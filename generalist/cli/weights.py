"""The arguments by which every command names weights, and loading them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from generalist.run.named_weights import run_settings, weights_folder

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist


def add_weights(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """The arguments that say which weights are used."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--weights",
        metavar="FOLDER",
        help="a folder that `generalist export` or `Generalist.save` wrote, a run's folder, or `shipped` (the default)",
    )
    which.add_argument("--run", metavar="NAME", help="a run, by its folder under --runs")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="where runs are (default runs)"
    )
    return which


def load_weights(arguments: argparse.Namespace, console: Console) -> "Generalist":
    """The weights that the arguments name; those that come with the package if they name none.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: they are damaged.
    """
    if arguments.run:
        folder = arguments.runs / arguments.run
        run_settings(folder)  # that there is none is said before JAX is loaded
    else:
        folder = weights_folder(arguments.weights)
    console.print("loading JAX and the weights ...", highlight=False)
    from generalist.inference.generalist import Generalist

    generalist = Generalist.from_run(run_settings(folder)) if arguments.run else Generalist.load(folder)
    console.print(f"weights of {generalist.config.name}, step {generalist.step:,}", highlight=False)
    return generalist
