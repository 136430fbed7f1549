"""Two results files side by side: in what they differ besides their scores, then what each part makes of them."""

import fnmatch
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from generalist.eval.parts import registry
from generalist.eval.results.words import listed
from generalist.run.folder import flatten

SHOWN, LETTERS = 6, 24  # settings that are listed when they differ, and letters of a value
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
    """Shows the comparison of A and B.

    Args:
        before, after: as `generalist.eval.results.file.load` gives them.

    Raises:
        ValueError: they have no part in common, or one that they have in common can't be compared.
    """
    both = [part for part in registry.present(before) if part in registry.present(after)]
    if not both:
        raise ValueError("the two files have no part of an evaluation in common: evaluate the same")
    for line in warnings(before, after):
        console.print(f"note: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    for part in both:
        part.compare(before, after, console)


def warnings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """In what two files differ that may move scores, besides what is being compared."""
    found = _weights_differ(before, after)
    for what in ("versions", "settings", "machine", "seeds"):
        old, new = flatten(before.get(what) or {}), flatten(after.get(what) or {})
        names = [name for name in sorted(old | new, key=_weight) if old.get(name) != new.get(name)]
        if names:
            changed = [f"{name} {_short(old.get(name))} → {_short(new.get(name))}" for name in names]
            found.append(f"{what} differ: {listed(changed, SHOWN)}")
    return found


def _weight(name: str) -> tuple[bool, str]:
    """Orders settings: those that can move no score come last."""
    return any(fnmatch.fnmatch(name, one) for one in HARMLESS), name


def _short(value: Any) -> str:
    """A value in a few letters."""
    text = "none" if value is None else str(value)
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def _weights_differ(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    old, new = before.get("weights"), after.get("weights")
    if old is None or new is None:
        return ["a file does not say which weights it is of"]
    if old == new:
        return ["both files are of the same weights"]
    return [f"other weights: {old[:12]}… at step {before['step']:,} → {new[:12]}… at step {after['step']:,}"]
