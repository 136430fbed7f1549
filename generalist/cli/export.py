"""`generalist export`: writes a run's weights as one folder, to use, share or publish."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from generalist.system.places import check_new_folder

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

DESCRIPTION = (
    "Writes a run's newest weights, with their tokenizers and settings, as one folder of safetensors and JSON."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist export`."""
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write; it must not exist")
    parser.add_argument("--run", required=True, metavar="NAME", help="name of a run: its folder under --runs")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of the runs (default runs)"
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="store half the bytes, with about three significant digits"
    )


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Writes the folder; returns the exit status.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: the folder exists, or can't be created.
        FileNotFoundError: there is no such run.
        ValueError: an argument is unknown.
    """
    if rest:
        raise ValueError(f"generalist export does not know {' '.join(rest)}")
    check_new_folder(arguments.out)
    import ml_dtypes
    import numpy as np

    from generalist.run.named_weights import run_settings

    run_settings(arguments.runs / arguments.run)  # raises if there is no such run, before JAX is loaded
    console.print("loading JAX and the weights ...", highlight=False)
    from generalist.inference.generalist import Generalist

    # The moving average of the weights, if the run keeps one: what evaluation scores is what is published.
    generalist = without_places(Generalist.from_run(run_settings(arguments.runs / arguments.run)))
    generalist.save(arguments.out, ml_dtypes.bfloat16 if arguments.bfloat16 else np.float32)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    console.print(f"{arguments.out}: step {generalist.step:,}, {size / 1e6:.1f} MB", highlight=False, soft_wrap=True)
    console.print(f"use it with --weights {arguments.out}, or Generalist.load", highlight=False, soft_wrap=True)
    return 0


def without_places(generalist: "Generalist") -> "Generalist":
    """The same weights with the default folders in their settings."""
    # Where their maker kept data and runs is of no use to others, and may be private.
    config = generalist.config
    data = dataclasses.replace(config.data, folder=type(config.data)().folder, dagger=())
    training = dataclasses.replace(config.training, checkpoints="", start="")
    return generalist.with_config(dataclasses.replace(config, runs=Path("runs"), data=data, training=training))
