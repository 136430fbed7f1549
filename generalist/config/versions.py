"""Stored settings of earlier versions, read by today's names.

A run's folder and a folder of weights carry one format number in each of their JSON files (`config.json`, `tokenizers.json`,
`model.json`). Whoever moves a setting raises `FORMAT` and writes the move into `RENAMED`; a setting that is added needs neither,
provided that its default does what was done before.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from generalist.config.plain import from_plain, plain
from generalist.system.versions import stored_format

FORMAT = 2
"""Of what is written now. 2: layouts carry how they are acted in, and sources how they are evaluated."""

RENAMED: Mapping[int, Mapping[str, str]] = {
    1: {
        **{
            f"evaluation.{suite}_episodes": f"data.{suite}.evaluation_episodes"
            for suite in ("metaworld", "babyai", "atari", "classic", "fetch", "own")
        },
        "evaluation.naming_items": "data.emoji.naming_items",
        "evaluation.naming_choices": "data.emoji.naming_choices",
        "evaluation.prose_windows": "data.prose.evaluation_windows",
    }
}
"""Format → old dotted name → new dotted name, for what moved when the next format came. A name may be that of a section, whose
settings move with it: `{2: {"data.own": "data.sources.own"}}`."""

Settings = TypeVar("Settings")


def to_stored(settings: Any) -> dict[str, Any]:
    """Settings as the JSON object that `config.json` holds."""
    return {"format": FORMAT, **plain(settings)}


def from_stored(kind: Callable[..., Settings], stored: Any, where: Path) -> Settings:
    """The settings that `to_stored` wrote, of this version or an earlier one; what an earlier one lacks has its default.

    Args:
        kind: the dataclass of the settings.
        stored: the JSON value.
        where: the file, for messages.

    Raises:
        FormatError: the format is newer than this version reads.
        ValueError: a setting is missing, unknown, or of another type.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"{where}: the settings must be an object, got {stored!r:.80}")
    settings = upgraded(stored, where)
    try:
        return from_plain(kind, settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def upgraded(stored: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Stored settings under today's names, without their format number; the argument stays as it is.

    Raises:
        FormatError: the format is newer than this version reads.
    """
    number = stored_format(stored, FORMAT, where)
    settings = {name: value for name, value in stored.items() if name != "format"}
    for step in range(number, FORMAT):
        settings = renamed(settings, RENAMED.get(step, {}))
    return settings


def renamed(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Nested settings with some moved.

    Args:
        settings: nested by section; the argument stays as it is.
        names: old dotted name → new one, of a setting or of a whole section. What the settings lack is skipped.
    """
    tree = _copied(settings)
    # All are taken out before any is put back, so that two may exchange their places.
    moved = [(new, found) for old, new in names.items() for found in _taken(tree, old.split("."))]
    for name, value in moved:
        *sections, last = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return tree


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in tree.items()}


def _taken(tree: dict[str, Any], path: list[str]) -> list[Any]:
    """The value at a path, taken out of the tree; none if it is not there."""
    place: Any = tree
    for section in path[:-1]:
        place = place.get(section) if isinstance(place, dict) else None
    if not isinstance(place, dict) or path[-1] not in place:
        return []
    value = place.pop(path[-1])
    if not place and len(path) > 1:  # a section of which everything has moved
        _taken(tree, path[:-1])
    return [value]
