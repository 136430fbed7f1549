"""A run's folder: its settings and tokenizers, written once and read by training, acting and evaluation alike.

runs/<name>/config.json      every setting
            tokenizers.json  vocabulary and task layouts
            text.model       SentencePiece
            checkpoints/  metrics.jsonl  tensorboard/  evaluation/  results.json
"""

import contextlib
import fnmatch
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from generalist.config.plain import plain
from generalist.config.run import Config
from generalist.config.versions import from_stored, upgraded

# Settings that may change between two commands of one run: how long, how often, how it is scored, what is checked.
FREE = (
    *(
        "runs",
        "data.workers",
        "data.loaders",
        "data.folder",
        "data.cache_megabytes",
        "data.*.temperature",
        "data.features",
        "data.check",
        "data.*.unreadable",
        "data.*.heldout",
        "data.*.evaluation_*",
        "data.*.naming_*",
    ),
    *(
        "training.steps",
        "training.checkpoint_every",
        "training.checkpoints",
        "training.keep*",
        "training.best_metric",
        "training.log_every",
        "training.*_axis",
        "training.skip_limit",
        "training.stall_seconds",
        "training.micro_batches",
        "training.loss_chunks",
        "cluster.*",
        "profile",
        "model.remat",
        "model.layers_unrolled",
        # Of a contrastive run.
        "check",
        "unreadable",
    ),
)


class RunTraining(Protocol):
    """Of a run's settings of training, what says where it stands."""

    @property
    def checkpoints(self) -> str: ...


class RunSettings(Protocol):
    """Settings of any kind of run."""

    @property
    def folder(self) -> Path: ...

    @property
    def training(self) -> RunTraining: ...


def missing_run(folder: Path) -> FileNotFoundError:
    """The error where a run is asked for and the folder holds none."""
    listing = "generalist runs" if folder.parent == Path("runs") else f"generalist runs {folder.parent}"
    return FileNotFoundError(f"no run in {folder}: train it first, or name another one (`{listing}` lists them)")


def has_begun(folder: Path, checkpoints: str = "") -> bool:
    """Whether a run has anything that another one must not take the place of: a checkpoint, or scores.

    Args:
        folder: the run's.
        checkpoints: the folder or bucket of its checkpoints, if it is not in the run's.

    Raises:
        ImportError: the bucket's package is not installed.
    """
    if any((folder / name).exists() for name in ("results.json", "evaluation")):
        return True
    from etils import epath

    places = {str(folder / "checkpoints"), checkpoints, _stored_checkpoints(folder)} - {""}
    # Orbax names whole checkpoints by their steps, and those in the making otherwise.
    return any(
        place.is_dir() and any(one.name.isdigit() for one in place.iterdir()) for place in map(epath.Path, places)
    )


def _stored_checkpoints(folder: Path) -> str:
    """Where the run's own settings say that its checkpoints are; empty where they do not."""
    path = folder / "config.json"
    try:
        stored = upgraded(json.loads(path.read_text(encoding="utf-8")), path)["training"]["checkpoints"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ""
    return stored if isinstance(stored, str) else ""


def check_same_settings(config: RunSettings) -> bool:
    """Whether the run has begun already, with the same settings. What a run left that has no checkpoint is in nobody's way: see
    `forget`. Settings of an earlier version are compared under today's names, and those that it lacked by their defaults.

    Raises:
        ValueError: it has begun with other settings; the message names the first that differs. Or its settings are damaged, or
            another version's that this one does not know.
        NotADirectoryError: a file is where its folder would be.
    """
    for folder in (config.folder, *config.folder.parents):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(
                f"{folder} is a file, so that {config.folder} can be no folder: choose --runs and --name"
            )
    path = config.folder / "config.json"
    if not path.exists():
        return False
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if not {"name", "runs", "training.steps"} <= flatten(read).keys():
            raise ValueError("it is no run's")
    except (ValueError, RecursionError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or train in another folder with --name") from error
    current = upgraded(read, path)  # a newer version's run is refused, whether or not it has begun
    if not has_begun(config.folder, config.training.checkpoints):
        return False
    now = flatten(plain(config))
    kinds = ["contrastive" if "towers.size" in one else "the generalist" for one in (flatten(current), now)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{config.folder} holds a run of {kinds[0]}, not of {kinds[1]}: train in another folder with --name"
        )
    try:
        begun = from_stored(type(config), read, path)
    except ValueError as error:
        raise ValueError(
            f"{error}; this version can't go on with the run: use the version that began it, or another folder with --name"
        ) from error
    stored, idle = flatten(plain(begun)), _idle(begun, config)
    # The weights to begin with come first: most of the model's settings are theirs.
    for name in sorted(stored.keys() | now.keys(), key=lambda name: (name != "training.start", name)):
        old, new = (one.get(name) for one in (stored, now))
        if old != new and not name.startswith(idle) and not any(fnmatch.fnmatch(name, free) for free in FREE):
            raise ValueError(
                f"{config.folder} holds a run with {name} = {_said(old)}, not {_said(new)}: "
                f"use the same setting to go on with it, or another folder with --name"
            )
    return True


def _idle(*runs: RunSettings) -> tuple[str, ...]:
    """How the settings begin of sources that none of the runs learns from. They decide nothing, and their defaults may be others
    than in the version that began the run."""
    mixtures = [one.data for one in runs if isinstance(one, Config)]
    named = {name for data in mixtures for name in data.sources}
    return tuple(f"data.{name}." for name in named - {name for data in mixtures for name in data.taking_part})


def _said(value: Any) -> str:
    return "(empty)" if value in ("", [], None) else str(value)


def forget(config: RunSettings) -> None:
    """Removes what a run left that ended before its first checkpoint, and its folder if nothing else is in it: the next command
    of that name begins anew, with any settings. Nothing is removed of a run that has begun, nor what a run does not write.
    `check_same_settings` comes before: the folder is a run's.
    """
    folder = config.folder
    if not (folder / "config.json").exists() or has_begun(folder, config.training.checkpoints):
        return
    for name in ("tensorboard", "processes", "profile"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for unfinished in (folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for name in ("tokenizers.json", "text.model", "metrics.jsonl", "config.json"):  # by the last one a run is known
        (folder / name).unlink(missing_ok=True)
    for place in (folder / "checkpoints", folder):
        with contextlib.suppress(OSError):  # there is something else in it, or it is not there
            place.rmdir()


def forget_unless_measured(config: RunSettings) -> None:
    """`forget`, of a run that failed before it measured anything: there is nothing in its folder to look into."""
    metrics, checkpoints = (config.folder / name for name in ("metrics.jsonl", "checkpoints"))
    measured = metrics.exists() and metrics.stat().st_size
    saving = checkpoints.is_dir() and any(checkpoints.iterdir())  # in the background, perhaps
    if not measured and not saving:
        forget(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
