"""Settings as JSON values and back. A settings file may come from anywhere: every name and type is checked.

A field of a dataclass whose metadata has `entries` is a dictionary of named settings, such as the sources of a mixture. Its
entries are written beside the other fields, as they are on the command line. The metadata are:

    entries   reads one entry from its name and its JSON value
    order     orders names, for settings that were stored without an order
"""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")


def plain(value: Any) -> Any:
    """Settings as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            one = getattr(value, field.name)
            if "entries" not in field.metadata:
                found[field.name] = plain(one)
                continue
            # An entry is of the kind that its name says, unless it names its kind.
            for name, entry in one.items():
                found[name] = plain(entry) | ({} if entry.kind == name else {"kind": entry.kind})
            found[f"{field.name}_order"] = list(one)  # JSON files are written with sorted keys, which lose the order
        return found
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: Callable[..., Settings], data: Any, name: str = "") -> Settings:
    """The settings that `plain` wrote.

    Raises:
        ValueError: a setting is missing, unknown or of the wrong type; the message has its dotted name.
    """
    # What is missing has its default: settings of an earlier version need not have every field.
    where = f"{name}." if name else ""
    if not isinstance(data, Mapping):
        raise ValueError(f"{name or 'the settings'} must be an object, got {data!r}")
    hints = get_type_hints(kind)
    described: Any = kind  # for mypy, which does not know that it is a dataclass
    fields = {field.name: field for field in dataclasses.fields(described) if field.init}
    data = dict(data)
    entries: dict[str, Any] = {}
    for field in fields.values():
        if "entries" in field.metadata:
            read = field.metadata["entries"]
            named = [key for key in data if key not in fields and key != f"{field.name}_order"]
            order = data.pop(f"{field.name}_order", None) or field.metadata["order"](named)
            found = {key: read(key, data.pop(key)) for key in sorted(named, key=order.index)}
            entries[field.name] = found
    if unknown := sorted(set(data) - set(fields)):
        raise ValueError(f"unknown setting {where}{unknown[0]}: there are {', '.join(fields)}")
    values = {key: _value(hints[key], value, where + key) for key, value in data.items()}
    try:
        return kind(**values, **entries)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{name or 'the settings'}: {error}") from error


def _value(kind: Any, value: Any, name: str) -> Any:
    """A JSON value as a value of a field's type; `name` is the field's, for messages."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_plain(kind, value, name)
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        kinds = [one for one in get_args(kind) if one is not type(None)]
        # A number or a word, such as auto: a text is taken for the word.
        words = [one for one in kinds if get_origin(one) is Literal]
        kind = words[0] if words and isinstance(value, str) else next(one for one in kinds if one not in words)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}")
        return value
    if get_origin(kind) is tuple and isinstance(value, list):
        (one, _) = get_args(kind)  # settings have tuples of the form tuple[one, ...] only
        return tuple(_value(one, each, f"{name}[{index}]") for index, each in enumerate(value))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:  # JSON writes 1.0 as 1.0, but people write 1
        return float(value)
    # Python's JSON reads NaN and Infinity, and comparisons with NaN are false: checks of ranges would let it pass.
    if kind is float and type(value) is float and not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    # `type(...) is not`, since isinstance(True, int) holds.
    if type(value) is not kind:
        raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value
