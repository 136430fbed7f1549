"""The arguments by which commands of `generalist data` name a source."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from generalist.experiment.subject import Subject


def add_source(parser: argparse.ArgumentParser) -> None:
    """Which source, and with which settings."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder or a file of yours (episodes in any known format, or documents), or a source of the mixture by its name, "
        "such as metaworld or emoji",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", default="pocket", metavar="NAME", help="whose settings and mixture (default pocket)")
    which.add_argument(
        "--run", metavar="FOLDER", help="a run or exported weights, whose settings and tokenizers are used"
    )
    parser.add_argument(
        "--mixture", type=Path, metavar="FILE", help="a mixture's YAML file, instead of the preset's mixture"
    )
    parser.add_argument(
        "--record", action="store_true", help="have the experts play what is not recorded yet of a control suite"
    )


def open_source(arguments: argparse.Namespace, settings: list[str], console: Console) -> "Subject":
    """The source that the arguments name.

    Args:
        settings: of `train.py`, which may follow.

    Raises:
        ValueError, FileNotFoundError: there is none, or a setting does not fit.
    """
    from generalist.config.presets import preset
    from generalist.experiment.inherit import parse
    from generalist.experiment.subject import record, subject
    from generalist.run.named_weights import weights_folder, weights_settings

    folder = None if arguments.run is None else weights_folder(arguments.run)
    if folder is None:
        default = dataclasses.replace(preset(arguments.preset), name=arguments.preset)
    else:
        # Tokenizers are learnt with these settings, and then stay as they are.
        if fixed := [one for one in settings if one.startswith(("--model.", "--tokens.", "--training."))]:
            raise ValueError(f"--run has its own tokenizers, which {fixed[0]} does not fit: leave it out, or --run")
        default = weights_settings(arguments.run)
        # The run's own beginning matters no more; its weights may be gone.
        default = dataclasses.replace(default, training=default.training.without_start())
    # Given as a setting, so that messages and precedence are those of `train.py`.
    given = [] if arguments.mixture is None else ["--data.mixture", str(arguments.mixture)]
    config = parse(default, [*given, *settings], prog=f"generalist data {arguments.doing} SOURCE")
    found = subject(arguments.source, config, folder)
    if arguments.record:
        record(found, console)
    return found
