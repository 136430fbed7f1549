"""The arguments with which all commands name weights, and loading of the weights they name."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from generalist.run.named_weights import run_settings, weights_folder

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist


def add_weights(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Adds the arguments that name weights; returns their group, of which only one may be given."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--weights",
        metavar="FOLDER",
        help="a folder that `generalist export` or `Generalist.save` wrote, a run's folder, that of a published language model, "
        "or `shipped` (the default)",
    )
    which.add_argument("--run", metavar="NAME", help="name of a run: its folder under --runs")
    parser.add_argument(
        "--adapter",
        metavar="FOLDER",
        help="a low-rank adapter of the weights' language model in PEFT's layout, to merge into them",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of the runs (default runs)"
    )
    return which


def load_weights(arguments: argparse.Namespace, console: Console) -> "Generalist":
    """Loads the weights that the arguments name; those of the package if they name none.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights are damaged.
    """
    # Names are checked before JAX is loaded, which takes seconds.
    if arguments.run:
        folder = arguments.runs / arguments.run
        run_settings(folder)
    else:
        folder = weights_folder(arguments.weights)
    console.print("loading JAX and the weights ...", highlight=False)
    from generalist.inference.generalist import Generalist

    generalist = Generalist.from_run(run_settings(folder)) if arguments.run else Generalist.load(folder)
    if arguments.adapter:
        generalist = generalist.with_adapter(arguments.adapter)
    console.print(f"weights of {generalist.config.name}, step {generalist.step:,}", highlight=False)
    return generalist
