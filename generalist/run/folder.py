"""A run's folder. Its settings and tokenizers are written once, and read by training, acting and evaluation.

    runs/<name>/config.json      every setting
                tokenizers.json  vocabulary and task layouts
                text.model       the SentencePiece model
                checkpoints/  metrics.jsonl  tensorboard/  evaluation/  results.json

A run has *begun* once it has a checkpoint or scores. From then on its settings are fixed, except for those in `FREE`: changed
settings would silently mix two runs in one folder.
"""

import contextlib
import fnmatch
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from generalist.config.plain import plain
from generalist.config.run import Config, RunSettings
from generalist.config.versions import from_stored, upgraded

# Settings that may change between two commands of one run: where things are, how long to train, how to divide the work among
# devices and processes, what to report, and how to evaluate.
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
        "data.*.heldout*",
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
        # Of contrastive pretraining.
        "check",
        "unreadable",
    ),
)


def missing_run(folder: Path) -> FileNotFoundError:
    """The error for a folder that should hold a run and does not."""
    listing = "generalist runs" if folder.parent == Path("runs") else f"generalist runs {folder.parent}"
    return FileNotFoundError(f"no run in {folder}: train it first, or name another one (`{listing}` lists them)")


def has_begun(folder: Path, checkpoints: str = "") -> bool:
    """Whether a run has a checkpoint or scores, which must not be lost to another run in the same folder.

    Args:
        folder: of the run.
        checkpoints: folder or bucket of its checkpoints, if they are not in the run's folder.

    Raises:
        ImportError: the package for the bucket is not installed.
    """
    if any((folder / name).exists() for name in ("results.json", "evaluation")):
        return True
    from etils import epath  # takes a moment to import

    # The command may name another folder of checkpoints than the one in which the run began.
    places = {str(folder / "checkpoints"), checkpoints, _stored_checkpoints(folder)} - {""}
    # Orbax names complete checkpoints by their steps; unfinished ones have a suffix.
    return any(
        place.is_dir() and any(one.name.isdigit() for one in place.iterdir()) for place in map(epath.Path, places)
    )


def _stored_checkpoints(folder: Path) -> str:
    """The folder of checkpoints in the run's stored settings; empty if it is the usual one, or the settings can't be read."""
    path = folder / "config.json"
    try:
        stored = upgraded(json.loads(path.read_text(encoding="utf-8")), path)["training"]["checkpoints"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ""
    return stored if isinstance(stored, str) else ""


def check_same_settings(config: RunSettings) -> bool:
    """Whether the run has begun, with the same settings as this command.

    Settings of an earlier version are compared under today's names, and those that it lacked have their defaults. A run without
    a checkpoint has not begun: `forget` removes what it left.

    Raises:
        ValueError: it has begun with other settings, of which the message names the first; or its settings are damaged, or of a
            version that this one can't read.
        NotADirectoryError: a file is in the place of its folder.
    """
    for folder in (config.folder, *config.folder.parents):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(
                f"{folder} is a file, so {config.folder} can't be a folder: choose other --runs or --name"
            )
    path = config.folder / "config.json"
    if not path.exists():
        return False
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if not {"name", "runs", "training.steps"} <= flatten(read).keys():
            raise ValueError("it is not that of a run")
    except (ValueError, RecursionError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or train in another folder with --name") from error
    current = upgraded(read, path)  # raises for a run of a newer version, whether or not it has begun
    if not has_begun(config.folder, config.training.checkpoints):
        return False
    # Before all settings are compared, which would only report that some of them are unknown.
    now = flatten(plain(config))
    kinds = [_kind(one) for one in (flatten(current), now)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{config.folder} holds a run of {kinds[0]}, not of {kinds[1]}: train in another folder with --name"
        )
    return _is_same(config, read, path)


def _kind(settings: Mapping[str, Any]) -> str:
    """What a run with these flat settings trains, for messages."""
    if "towers.size" in settings:
        return "contrastive"
    return "an image tokenizer" if "shape.patch" in settings else "the generalist"


def _is_same(config: RunSettings, read: Any, path: Path) -> bool:
    """True if a run's stored settings are those of this command.

    Args:
        read: JSON value of the stored settings.
        path: their file, for messages.

    Raises:
        ValueError: they differ, or are of a version that this one can't read.
    """
    try:
        begun = from_stored(type(config), read, path)
    except ValueError as error:
        raise ValueError(
            f"{error}; this version can't continue the run: use the version that began it, or another folder with --name"
        ) from error
    now, stored, idle = flatten(plain(config)), flatten(plain(begun)), _idle(begun, config)
    # A later version knows more kinds of sources: their places in the list mean nothing where nothing is learned from them.
    for one in (stored, now):
        if order := one.get("data.sources_order"):
            one["data.sources_order"] = [name for name in order if not f"data.{name}.".startswith(idle)]
    # `training.start` first: other weights bring other settings of the model, whose difference would mislead the reader.
    for name in sorted(stored.keys() | now.keys(), key=lambda name: (name != "training.start", name)):
        old, new = (one.get(name) for one in (stored, now))
        if old != new and not name.startswith(idle) and not any(fnmatch.fnmatch(name, free) for free in FREE):
            raise ValueError(
                f"{config.folder} holds a run with {name} = {_said(old)}, not {_said(new)}: "
                f"use the same setting to continue it, or another folder with --name"
            )
    return True


def _idle(*runs: RunSettings) -> tuple[str, ...]:
    """Prefixes of the settings of sources that none of the runs is trained on. They have no effect, and their defaults may have
    changed since the run began."""
    mixtures = [one.data for one in runs if isinstance(one, Config)]
    named = {name for data in mixtures for name in data.sources}
    return tuple(f"data.{name}." for name in named - {name for data in mixtures for name in data.taking_part})


def _said(value: Any) -> str:
    return "(empty)" if value in ("", [], None) else str(value)


def begin_anew(config: RunSettings, console: Console) -> None:
    """Removes what a run without a checkpoint left, and reports it."""
    if (config.folder / "config.json").exists():
        console.print(
            f"{config.folder} ended before its first checkpoint: it begins anew", highlight=False, markup=False
        )
    forget(config)


def forget(config: RunSettings) -> None:
    """Removes what a run left that ended before its first checkpoint, so that the next command can begin with any settings.

    A run that has begun is not touched, nor is any file that a run does not write; the folder goes if it is then empty. Call
    `check_same_settings` before, which raises unless the folder is that of a run.
    """
    folder = config.folder
    if not (folder / "config.json").exists() or has_begun(folder, config.training.checkpoints):
        return
    for name in ("tensorboard", "processes", "profile", "image_tokenizer"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for unfinished in (folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    # config.json last: interrupted here, the folder is still that of a run, and the next command can finish removing it.
    for name in ("tokenizers.json", "text.model", "metrics.jsonl", "held_out.json", "config.json"):
        (folder / name).unlink(missing_ok=True)
    for place in (folder / "checkpoints", folder):
        with contextlib.suppress(OSError):  # it is not empty, or does not exist
            place.rmdir()


def forget_unless_measured(config: RunSettings) -> None:
    """Calls `forget` for a run that failed before its first line of metrics: its folder holds nothing to look into."""
    metrics, checkpoints = (config.folder / name for name in ("metrics.jsonl", "checkpoints"))
    measured = metrics.exists() and metrics.stat().st_size
    # An unfinished checkpoint counts too: a save in the background may still complete it.
    saving = checkpoints.is_dir() and any(checkpoints.iterdir())
    if not measured and not saving:
        forget(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
