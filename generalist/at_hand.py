"""The weights at hand: shipped with the package, a run's newest checkpoint, or a folder; how every command names them."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from generalist.inference.load import Generalist

SHIPPED = Path(__file__).with_name("shipped")  # what `Generalist.save` wrote, with a model card


def add_weights(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """The arguments that say which weights are used."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--weights", type=Path, metavar="FOLDER", help="a folder that `Generalist.save` wrote")
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
    folder = arguments.weights if arguments.weights or arguments.run else shipped_weights()
    console.print("loading JAX and the weights ...", highlight=False)
    from generalist.inference.load import Generalist

    generalist = load_run(arguments.runs / arguments.run) if arguments.run else Generalist.load(folder)
    console.print(f"weights of {generalist.config.name}, step {generalist.step:,}", highlight=False)
    return generalist


def load_run(folder: Path) -> "Generalist":
    """The newest weights of a run, wherever its folder is now.

    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: its settings are damaged.
    """
    from generalist.config import Config
    from generalist.inference.load import Generalist
    from generalist.settings import from_plain

    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no run in {folder}: train it first, or name another one") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    config = from_plain(Config, stored)
    return Generalist.from_run(dataclasses.replace(config, runs=folder.resolve().parent, name=folder.resolve().name))


def shipped_weights() -> Path:
    """The folder of weights that come with the package.

    Raises:
        FileNotFoundError: none do.
    """
    if not SHIPPED.is_dir():
        raise FileNotFoundError(
            "no weights come with this installation: name trained ones with --run NAME or --weights FOLDER"
        )
    return SHIPPED
