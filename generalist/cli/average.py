"""`generalist average`: the mean of two sets of weights, of which one was begun with the other.

Training on new tasks, or with new shares, loses a part of what was known; half-way back, most of both is there (WiSE-FT and model
soups, Wortsman et al. 2022).
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from generalist.run.named_weights import weights_folder
from generalist.system.places import check_new_folder

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

DESCRIPTION = """Writes the mean of two sets of weights, number by number, as one folder. NEW must have begun with OLD (train.py
--training.start). Tokenizers and settings are NEW's, and so are parameters that OLD has not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist average`."""
    parser.add_argument("old", metavar="OLD", help="a folder of weights, a run's folder, or `shipped`")
    parser.add_argument("new", metavar="NEW", help="those that were begun with them, alike")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="a folder that is not there yet")
    parser.add_argument("--share", type=float, default=0.5, metavar="P", help="of NEW (default 0.5)")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="PATH",
        help="parameters to take from NEW alone, by how their paths begin, such as frame_embedder",
    )
    parser.add_argument("--bfloat16", action="store_true", help="half the bytes, rounded to three significant digits")


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Writes the folder; returns the exit status.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: it is there already, or can't be made.
        FileNotFoundError: a folder of weights is not there.
        ValueError: an argument is unknown or out of its range, or the two are not of one model.
    """
    if rest:
        raise ValueError(f"generalist average does not know {' '.join(rest)}")
    if not 0 <= arguments.share <= 1:
        raise ValueError(f"--share is a number between 0 and 1, got {arguments.share}")
    check_new_folder(arguments.out)
    for name in (arguments.old, arguments.new):
        weights_folder(name)  # that there are none is said before JAX is loaded
    console.print("loading JAX and the weights ...", highlight=False)
    import ml_dtypes
    import numpy as np

    from generalist.inference.generalist import Generalist

    old, new = Generalist.load(arguments.old), Generalist.load(arguments.new)
    average(old, new, arguments.share, arguments.keep).save(
        arguments.out, ml_dtypes.bfloat16 if arguments.bfloat16 else np.float32
    )
    console.print(f"use it with --weights {arguments.out}, or Generalist.load", highlight=False, soft_wrap=True)
    return 0


def average(old: "Generalist", new: "Generalist", share: float, keep: list[str]) -> "Generalist":
    """The weights with `share` of `new` and the rest of `old`.

    Raises:
        ValueError: they have other text pieces, layouts or shapes, so that none began with the other; or `keep` names nothing.
    """
    import numpy as np

    from generalist.model.params import flat, nested

    missing = sorted(old.layouts.keys() - new.layouts.keys())
    if missing or old.tokenizers.text.model != new.tokenizers.text.model:
        differ = f"the layouts of {', '.join(missing)} are missing in NEW" if missing else "their text pieces differ"
        raise ValueError(
            f"{differ}: only weights that began with OLD (train.py --training.start OLD) have a mean with it"
        )
    before, after = flat(old.params), {path: np.array(array) for path, array in flat(new.params).items()}
    for start in keep:
        if not any(path.startswith(start) for path in after):
            raise ValueError(f"--keep {start}: no path begins so; there are {', '.join(sorted(after))}")
    for path, array in after.items():
        if path not in before or path.startswith(tuple(keep)):
            continue
        known = np.asarray(before[path])
        # Columns of new layouts follow those that were there.
        shared = array[: len(known)] if path == "tensor_embedder/projection/kernel" else array
        if shared.shape != known.shape:
            raise ValueError(
                f"{path} has the shape {known.shape} in OLD and {array.shape} in NEW, of which there is no mean: --keep {path} "
                "takes NEW's"
            )
        shared[...] = share * shared + (1 - share) * known
    return dataclasses.replace(new, params=nested(after))
