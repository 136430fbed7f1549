"""Settings as JSON and back. A settings file may come from anywhere: every name and type is checked."""

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
            # Named entries, such as the sources of a mixture, stand beside the settings, as on the command line.
            for name, entry in one.items():
                found[name] = plain(entry) | ({} if entry.kind == name else {"kind": entry.kind})
            found[f"{field.name}_order"] = list(one)  # files have their keys sorted
        return found
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: Callable[..., Settings], data: Any, name: str = "") -> Settings:
    """The settings that `plain` wrote.

    Raises:
        ValueError: a setting is missing, unknown, or of another type; the message has its dotted name.
    """
    where = f"{name}." if name else ""
    if not isinstance(data, Mapping):
        raise ValueError(f"{name or 'the settings'} must be an object, got {data!r}")
    hints = get_type_hints(kind)
    described: Any = kind  # a dataclass
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
    except TypeError as error:
        raise ValueError(f"{name or 'the settings'}: {error}") from error


def _value(kind: Any, value: Any, name: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_plain(kind, value, name)
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}")
        return value
    if get_origin(kind) is tuple and isinstance(value, list):
        (one, _) = get_args(kind)  # all of one kind: tuple[one, ...]
        return tuple(_value(one, each, f"{name}[{index}]") for index, each in enumerate(value))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and type(value) is float and not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if type(value) is not kind:
        raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value
