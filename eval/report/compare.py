"""A comparison of two results files: differences other than their scores, then each part's own comparison."""

import fnmatch
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from generalist.eval.parts import registry
from generalist.eval.results.words import listed
from generalist.run.folder import flatten

SHOWN, LETTERS = 6, 24  # differing settings that are listed, and letters of a value
# Settings that cannot move a score, as patterns.
HARMLESS = (
    "name",
    "runs",
    "data.folder",
    "data.workers",
    "data.loaders",
    "data.cache_megabytes",
    "cluster.*",
    "profile",
    "training.checkpoint*",
    "training.keep*",
    "training.log_every",
    "training.stall_seconds",
)


def compare(before: Mapping[str, Any], after: Mapping[str, Any], console: Console) -> None:
    """Prints the comparison of A and B.

    Args:
        before, after: as `generalist.eval.results.file.load` returns them.
        console: where it is printed.

    Raises:
        ValueError: they have no part in common, or a common part can't be compared.
    """
    both = [part for part in registry.present(before) if part in registry.present(after)]
    if not both:
        raise ValueError("the two files have no part of an evaluation in common: evaluate the same parts")
    for line in warnings(before, after):
        console.print(f"note: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    for part in both:
        part.compare(before, after, console)


def warnings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Differences between two files that may move scores, besides what is being compared, one line each."""
    found = _weights_differ(before, after)
    for what in ("versions", "settings", "machine", "seeds"):
        # Files of earlier versions may lack one of them.
        old, new = flatten(before.get(what) or {}), flatten(after.get(what) or {})
        names = [name for name in sorted(old | new, key=_weight) if old.get(name) != new.get(name)]
        if names:
            changed = [f"{name} {_short(old.get(name))} → {_short(new.get(name))}" for name in names]
            found.append(f"{what} differ: {listed(changed, SHOWN)}")
    return found


def _weight(name: str) -> tuple[bool, str]:
    """A sort key of settings: those that cannot move a score come last, where they are the first not to be listed."""
    return any(fnmatch.fnmatch(name, one) for one in HARMLESS), name


def _short(value: Any) -> str:
    """A value in at most `LETTERS` letters."""
    text = "none" if value is None else str(value)
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def _weights_differ(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    # Reported also if they are the same: differences are then due to chance or settings.
    old, new = before.get("weights"), after.get("weights")
    if old is None or new is None:
        return ["a file does not say which weights it is of"]
    if old == new:
        return ["both files are of the same weights"]
    return [f"other weights: {old[:12]}… at step {before['step']:,} → {new[:12]}… at step {after['step']:,}"]
