"""The arguments with which all commands name weights, and loading of the weights they name."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from generalist.config.run import Config
from generalist.run.named_weights import is_published, run_settings, weights_folder

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


PLACING = ("mesh", "weights_type", "cache_type")
"""The arguments of `add_placing`."""


def add_placing(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments for the devices and the types in which weights and caches are held."""
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N",
        help="split weights and caches over all devices, such as tensor=4 or data=2,tensor=4 (default: the first device alone)",
    )
    # No defaults here: what is not given is not in the manifest of results either.
    parser.add_argument(
        "--weights-type",
        choices=("stored", "int8"),
        help="type of the layers' kernels in memory: as in the files (the default), or rounded to int8",
    )
    parser.add_argument(
        "--cache-type",
        choices=("stored", "float32", "bfloat16", "float16"),
        help="type of keys and values in memory: as a published model's weights are stored, and float32 for any other (the "
        "default), or another",
    )


def placing_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_placing` that were given."""
    return {name: value for name in PLACING if (value := getattr(arguments, name, None)) is not None}


def named_settings(arguments: argparse.Namespace) -> Config | None:
    """The settings of the weights that the arguments name, without reading these; None for a published model, which has none.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: their settings are damaged.
    """
    if arguments.run:
        return run_settings(arguments.runs / arguments.run)
    folder = weights_folder(arguments.weights)
    return None if is_published(folder) else run_settings(folder)


def load_weights(arguments: argparse.Namespace, console: Console) -> "Generalist":
    """Loads the weights that the arguments name; those of the package if they name none.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights are damaged, or the mesh is not one of this machine's devices.
    """
    # Names are checked before JAX is loaded, which takes seconds.
    if arguments.run:
        folder = arguments.runs / arguments.run
        run_settings(folder)
    else:
        folder = weights_folder(arguments.weights)
    console.print("loading JAX and the weights ...", highlight=False)
    from generalist.inference.generalist import Generalist
    from generalist.inference.placing import Placing, note_on_mesh

    placing = Placing.of(**placing_of(arguments))  # before anything is read
    if arguments.run:
        generalist = Generalist.from_run(run_settings(folder), placing=placing)
    else:
        generalist = Generalist.load(folder, placing=placing)
    if arguments.adapter:
        generalist = generalist.with_adapter(arguments.adapter)
    console.print(f"weights of {generalist.config.name}, step {generalist.step:,}", highlight=False)
    told = [note_on_mesh(generalist.config.model, placing.mesh), *_notes(generalist)]
    for note in filter(None, told):
        console.print(f"note: {note}", highlight=False, style="yellow", soft_wrap=True, markup=False)
    return generalist


def _notes(generalist: "Generalist") -> list[str]:
    """What a published model's folder asks for or leaves open."""
    tokenizers = generalist.tokenizers
    if tokenizers.published is None or tokenizers.folder is None:
        return []
    from generalist.weights.language import LanguageModel
    from generalist.weights.notes import notes

    return notes(LanguageModel(tokenizers.folder, images=True))
