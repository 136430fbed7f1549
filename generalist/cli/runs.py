"""`generalist runs`: the runs in a folder, how far each has trained, and what it scored."""

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

DESCRIPTION = """Lists the runs in a folder: the preset each is nearest to, the step of its last checkpoint, and the headline of
its evaluation. Reads only small files and loads no weights."""
HALF = 50  # percent of the expert, above which a task counts in the headline
PLACES = ("name", "runs")  # settings that say where a run is, not what it is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist runs`."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER", help="where runs are (default runs)"
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
        raise FileNotFoundError(f"no run in {arguments.folder}: `train.py` makes one, or name the folder of your runs")
    table = Table("run", "preset", box=SIMPLE, pad_edge=False)
    table.add_column("checkpoint", justify="right")
    table.add_column("evaluation")
    for folder in found:
        table.add_row(folder.relative_to(arguments.folder).as_posix(), *_row(folder))
    console.print(table)
    return 0


def _folders(folder: Path) -> Iterator[Path]:
    """The folders of runs; a run's name may have a slash in it."""
    if folder.is_dir():
        for settings in (*folder.glob("*/config.json"), *folder.glob("*/*/config.json")):
            # The folder of an encoder, within a contrastive run's, has settings of HuggingFace's format.
            if not (settings.parents[1] / "config.json").exists():
                yield settings.parent


def _row(folder: Path) -> tuple[str, str, str]:
    """Preset, step of the last checkpoint and headline; a damaged file is named in its place."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = "contrastive" if "towers" in settings else nearest_preset(flatten(settings))
        place = settings["training"].get("checkpoints") or str(folder / "checkpoints")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return "config.json is damaged", "", ""
    return kind, _last_checkpoint(place), headline(folder / "results.json")


def nearest_preset(settings: Mapping[str, Any]) -> str:
    """The preset that fewest settings differ from, and how many do. Settings that only one side knows do not count: the run may
    be older than they are.

    Args:
        settings: of a run, by their dotted names.
    """
    differing = {}
    for name, preset in PRESETS.items():
        values = flatten(plain(preset()))
        shared = settings.keys() & values.keys() - set(PLACES)
        differing[name] = sum(settings[key] != values[key] for key in shared)
    nearest = min(differing, key=differing.__getitem__)
    count = differing[nearest]
    return f"{nearest}, {count} setting{'s' * (count != 1)} changed" if count else nearest


def _last_checkpoint(place: str) -> str:
    """The step of the newest whole checkpoint. Buckets are not asked: that takes credentials and time."""
    if "://" in place:
        return f"in {place}"
    # Orbax names whole checkpoints by their steps, and unfinished ones otherwise.
    steps = [int(one.name) for one in Path(place).glob("*") if one.name.isdigit()]
    return f"{max(steps):,}" if steps else "none"


def headline(path: Path) -> str:
    """How many tasks are above half of their expert, and at which step; of a run without control, only the step."""
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
