"""Stored settings of earlier versions, read under today's names.

Every JSON file of a run's folder and of a folder of weights (`config.json`, `tokenizers.json`, `model.json`) has one format
number. To move a setting, raise `FORMAT` and enter the move in `RENAMED`, or in `CONVERTED` if its value changes too. A new
setting needs neither, as long as its default does what was done before.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from generalist.config.plain import from_plain, plain
from generalist.system.versions import stored_format

FORMAT = 3
"""The format that is written now. 2: layouts store their settings of acting, and sources those of their evaluation. 3: layers
have kinds, instead of every n-th having no window."""

RENAMED: Mapping[int, Mapping[str, str]] = {
    1: {
        **{
            f"evaluation.{suite}_episodes": f"data.{suite}.evaluation_episodes"
            for suite in ("metaworld", "babyai", "atari", "classic", "fetch", "own")
        },
        "evaluation.naming_items": "data.emoji.naming_items",
        "evaluation.naming_choices": "data.emoji.naming_choices",
        "evaluation.prose_windows": "data.prose.evaluation_windows",
    },
}
"""Format → old dotted name → new dotted name, of what moved between that format and the next. The name of a section moves all of
its settings: `{2: {"data.own": "data.sources.own"}}`."""


def _layer_kinds(settings: dict[str, Any]) -> None:
    """`model.layer_kinds` instead of `model.global_every`: every n-th layer had no window."""
    model = settings.get("model")
    # What is not a number of layers stays, for the check of the settings that follows.
    every = model.get("global_every") if isinstance(model, dict) else None
    if isinstance(model, dict) and type(every) is int and 1 <= every <= 1000:
        del model["global_every"]
        if every > 1 and model.get("window"):
            model["layer_kinds"] = ["window"] * (every - 1) + ["full"]


CONVERTED: Mapping[int, Callable[[dict[str, Any]], None]] = {2: _layer_kinds}
"""Format → function that changes nested settings, of what became another value between that format and the next."""

Settings = TypeVar("Settings")


def to_stored(settings: Any) -> dict[str, Any]:
    """Settings as the JSON object of `config.json`."""
    return {"format": FORMAT, **plain(settings)}


def from_stored(kind: Callable[..., Settings], stored: Any, where: Path) -> Settings:
    """The settings that `to_stored` wrote in this version or an earlier one. Settings that the earlier one lacked have their
    defaults.

    Args:
        kind: dataclass of the settings.
        stored: JSON value of the file.
        where: path of the file, for messages.

    Raises:
        FormatError: the format is newer than this version reads.
        ValueError: a setting is missing, unknown or of the wrong type.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"{where}: the settings must be an object, got {stored!r:.80}")
    settings = upgraded(stored, where)
    try:
        return from_plain(kind, settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def upgraded(stored: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Stored settings under today's names, without their format number. The argument is not changed.

    Raises:
        FormatError: the format is newer than this version reads.
    """
    number = stored_format(stored, FORMAT, where)
    settings = {name: value for name, value in stored.items() if name != "format"}
    # One format after the other, so that a setting may move twice.
    for step in range(number, FORMAT):
        settings = renamed(settings, RENAMED.get(step, {}))  # a copy
        if step in CONVERTED:
            CONVERTED[step](settings)
    return settings


def renamed(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Nested settings with some of them moved.

    Args:
        settings: nested by section; not changed.
        names: old dotted name → new one, of a setting or of a whole section. Names that the settings lack are skipped.
    """
    tree = _copied(settings)
    # All are taken out before any is put back, so that two settings can exchange their places.
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
    """Removes the value at a path from the tree. Returns it in a list, which is empty if the path does not exist."""
    place: Any = tree
    for section in path[:-1]:
        place = place.get(section) if isinstance(place, dict) else None
    if not isinstance(place, dict) or path[-1] not in place:
        return []
    value = place.pop(path[-1])
    if not place and len(path) > 1:  # an empty section would be refused as unknown
        _taken(tree, path[:-1])
    return [value]
