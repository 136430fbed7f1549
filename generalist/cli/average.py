"""`generalist average`: the mean of two sets of weights, of which one was trained from the other.

Training on new tasks, or with another mixture, forgets a part of what was known. Half-way between old and new weights, most of
both is there (WiSE-FT and model soups, Wortsman et al., 2022).

Dimension key: F columns of the tensor projection, E its width.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from generalist.run.named_weights import weights_settings
from generalist.system.places import check_new_folder

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

DESCRIPTION = """Writes the mean of two sets of weights, parameter by parameter, as one folder. NEW must have begun with OLD
(train.py --training.start). Tokenizers and settings are those of NEW, and so are parameters that OLD lacks."""
GROWING = ("tensor_embedder/projection/kernel", "action_head/dimensions")
"""Paths of parameters that get more rows with new layouts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist average`."""
    parser.add_argument("old", metavar="OLD", help="a folder of weights, a run's folder, or `shipped`")
    parser.add_argument("new", metavar="NEW", help="weights that began with OLD; given in the same ways")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write; it must not exist")
    parser.add_argument(
        "--share", type=float, default=0.5, metavar="P", help="weight of NEW in the mean, 0 to 1 (default 0.5)"
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="PATH",
        help="take parameters whose paths begin so from NEW alone, such as frame_embedder",
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="store half the bytes, with about three significant digits"
    )


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Writes the folder; returns the exit status.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: the folder exists, or can't be created.
        FileNotFoundError: a folder of weights does not exist.
        ValueError: an argument is unknown or out of range, or the two sets of weights are not of one model.
    """
    if rest:
        raise ValueError(f"generalist average does not know {' '.join(rest)}")
    if not 0 <= arguments.share <= 1:
        raise ValueError(f"--share must be from 0 to 1, got {arguments.share}")
    check_new_folder(arguments.out)
    for name in (arguments.old, arguments.new):
        weights_settings(name)  # raises if there are none, or none of ours, before JAX is loaded
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
    """The weighted mean of two sets of weights.

    Args:
        share: weight of `new`, from 0 to 1.
        keep: prefixes of the paths of parameters that are taken from `new` alone.

    Raises:
        ValueError: `new` did not begin with `old`, since text pieces, layouts or shapes differ; or `keep` names no parameter.
    """
    # The same ids must mean the same, and the same columns must belong to the same layouts.
    missing = sorted(old.layouts.keys() - new.layouts.keys())
    if missing or old.tokenizers.text.model != new.tokenizers.text.model:
        differ = f"the layouts of {', '.join(missing)} are missing in NEW" if missing else "their text pieces differ"
        raise ValueError(
            f"{differ}: only weights that began with OLD (train.py --training.start OLD) have a mean with it"
        )
    # Copies of `new`, which are changed in place below.
    before, after = dict(old.arrays()), {path: array.copy() for path, array in new.arrays()}
    for start in keep:
        if not any(path.startswith(start) for path in after):
            raise ValueError(f"--keep {start}: no parameter's path begins so; there are {', '.join(sorted(after))}")
    for path, array in after.items():
        if path not in before or path.startswith(tuple(keep)):
            continue
        known = before[path]
        # Rows of the projection's columns (F, E), or of an action's dimensions: those of new layouts follow the old ones.
        shared = array[: len(known)] if path in GROWING else array
        if shared.shape != known.shape:
            raise ValueError(
                f"{path} has the shape {known.shape} in OLD and {array.shape} in NEW, which have no mean: --keep {path} takes "
                "NEW's"
            )
        shared[...] = share * shared + (1 - share) * known
    return new.with_arrays(after)
