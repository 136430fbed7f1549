"""`generalist export`: writes weights as one folder, to use, share or publish."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from generalist.cli.weights import add_weights, load_weights
from generalist.run.named_weights import is_run, run_settings, weights_folder
from generalist.system.places import check_new_folder

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

DESCRIPTION = (
    "Writes weights as one folder of safetensors and JSON: with their tokenizers and settings or, for other tools to load, their "
    "language model alone."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist export`."""
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write; it must not exist")
    add_weights(parser).required = True
    parser.add_argument(
        "--layout",
        choices=("generalist", "huggingface", "peft"),
        default="generalist",
        help="generalist (default): everything, for this package; huggingface: the language model alone, a published one or a "
        "run's trunk, for other tools; peft: the adapters of a run (training.lora) alone",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the stored parameters (default float32; with --layout huggingface as in the folder that the model came from)",
    )
    parser.add_argument(
        "--bfloat16",
        action="store_const",
        dest="dtype",
        const="bfloat16",
        help="short for --dtype bfloat16: half the bytes, with about three significant digits",
    )


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Writes the folder; returns the exit status.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: the folder exists, or can't be created.
        FileNotFoundError: there are no such weights.
        ValueError: an argument is unknown, or the weights cannot be written in the layout.
    """
    if rest:
        raise ValueError(f"generalist export does not know {' '.join(rest)}")
    check_new_folder(arguments.out)
    if arguments.layout == "peft":
        return _export_adapter(arguments, console)
    # The moving average of the weights, if the run keeps one: what evaluation scores is what is published.
    generalist = load_weights(arguments, console)
    import ml_dtypes  # NumPy knows bfloat16 by it
    import numpy as np

    dtype = np.dtype(getattr(ml_dtypes, arguments.dtype, arguments.dtype)) if arguments.dtype else None
    left_out: list[str] = []
    if arguments.layout == "huggingface":
        left_out = generalist.save_published(arguments.out, dtype)
    else:
        without_places(generalist).save(arguments.out, dtype or np.float32)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    console.print(f"{arguments.out}: step {generalist.step:,}, {size / 1e6:.1f} MB", highlight=False, soft_wrap=True)
    if left_out:
        console.print(
            f"left out, since the layout has no place for it: {', '.join(left_out)}", highlight=False, soft_wrap=True
        )
    console.print(f"use it with --weights {arguments.out}, or Generalist.load", highlight=False, soft_wrap=True)
    return 0


def _export_adapter(arguments: argparse.Namespace, console: Console) -> int:
    """`--layout peft`; returns the exit status."""
    folder = arguments.runs / arguments.run if arguments.run else weights_folder(arguments.weights)
    if arguments.dtype or arguments.adapter:
        raise ValueError("--layout peft writes a run's own adapters in float32: leave out --dtype and --adapter")
    if not is_run(folder):
        raise ValueError(
            f"{folder} is no run, and only a run has its adapters apart from its weights: name one with --run"
        )
    config = run_settings(folder)
    console.print("loading JAX and the adapters ...", highlight=False)
    from generalist.inference.adapters import save_run_adapter

    step = save_run_adapter(config, arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    console.print(f"{arguments.out}: step {step:,}, {size / 1e6:.1f} MB", highlight=False, soft_wrap=True)
    console.print(
        f"use it with --weights {config.model.trunk} --adapter {arguments.out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0


def without_places(generalist: "Generalist") -> "Generalist":
    """The same weights with the default folders in their settings."""
    # Where their maker kept data and runs is of no use to others, and may be private.
    config = generalist.config
    data = dataclasses.replace(config.data, folder=type(config.data)().folder, dagger=())
    training = dataclasses.replace(config.training.without_start(), checkpoints="")
    tokens = dataclasses.replace(config.tokens, image_tokenizer="none")  # a copy of it is in the folder
    return generalist.with_config(
        dataclasses.replace(config, runs=Path("runs"), data=data, training=training, tokens=tokens)
    )
