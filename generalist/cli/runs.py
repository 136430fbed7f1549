"""`generalist runs`: lists the runs in a folder, how far each has trained, and its scores."""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from generalist.config.plain import plain
from generalist.config.presets import PRESETS
from generalist.run.folder import flatten

DESCRIPTION = """Lists the runs in a folder: the most similar preset, the step of the last checkpoint, and a summary of the
evaluation. Reads only small files, and no weights."""
HALF = 50  # percent of expert above which a task counts in the summary
PLACES = ("name", "runs")  # settings that say where a run is, and nothing about its contents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist runs`."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER", help="folder of the runs (default runs)"
    )


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Prints the table; returns the exit status.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: an argument is unknown.
    """
    if rest:
        raise ValueError(f"generalist runs does not know {' '.join(rest)}")
    found = sorted(_folders(arguments.folder))
    if not found:
        raise FileNotFoundError(
            f"no run in {arguments.folder}: make one with `train.py`, or name the folder of your runs"
        )
    table = Table("run", "preset", box=SIMPLE, pad_edge=False)
    table.add_column("checkpoint", justify="right")
    table.add_column("evaluation")
    for folder in found:
        table.add_row(folder.relative_to(arguments.folder).as_posix(), *_row(folder))
    console.print(table)
    return 0


def _folders(folder: Path) -> Iterator[Path]:
    """The folders of the runs. A run's name may have one slash, as in sweep/3."""
    if folder.is_dir():
        for settings in (*folder.glob("*/config.json"), *folder.glob("*/*/config.json")):
            # Two levels at most: searching whole trees would read every checkpoint's folder.
            # Not a folder within a run: the encoder that a contrastive run exports has a config.json in HuggingFace's format.
            if not (settings.parents[1] / "config.json").exists():
                yield settings.parent


def _row(folder: Path) -> tuple[str, str, str]:
    """Preset, step of the last checkpoint, and summary of the evaluation."""
    # A damaged file is reported in its cell: one broken run must not hide all others.
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        others = {"towers": "contrastive", "shape": "image_tokenizer"}
        kind = next((kind for key, kind in others.items() if key in settings), "") or nearest_preset(flatten(settings))
        place = settings["training"].get("checkpoints") or str(folder / "checkpoints")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return "config.json is damaged", "", ""
    return kind, _last_checkpoint(place), headline(folder / "results.json")


def nearest_preset(settings: Mapping[str, Any]) -> str:
    """The name of the most similar preset, and the number of settings that differ from it.

    Args:
        settings: of a run, by their dotted names.
    """
    # Settings that only one side has do not count, since the run may be of another version.
    differing = {}
    for name, preset in PRESETS.items():
        values = flatten(plain(preset()))
        shared = settings.keys() & values.keys() - set(PLACES)
        differing[name] = sum(settings[key] != values[key] for key in shared)
    nearest = min(differing, key=differing.__getitem__)
    count = differing[nearest]
    return f"{nearest}, {count} setting{'s' * (count != 1)} changed" if count else nearest


def _last_checkpoint(place: str) -> str:
    """The step of the newest complete checkpoint; the address of a bucket, which is not asked."""
    # That would take credentials and time.
    if "://" in place:
        return f"in {place}"
    # Orbax names complete checkpoints by their steps; unfinished ones have a suffix.
    steps = [int(one.name) for one in Path(place).glob("*") if one.name.isdigit()]
    return f"{max(steps):,}" if steps else "none"


def headline(path: Path) -> str:
    """The number of tasks above half of their expert's score, and the step; only the step for a run without control tasks."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        step = f"step {results['step']:,}"
        domains = results.get("control", {}).values()
        percents = [task["percent"]["value"] for one in domains for task in one["tasks"].values()]
    except FileNotFoundError:
        return "none"
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return "results.json is damaged"
    above = sum(percent > HALF for percent in percents)
    return f"{above} of {len(percents)} tasks above half of their expert, {step}" if percents else step
