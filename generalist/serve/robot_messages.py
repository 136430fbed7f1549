"""Messages of robots: their fields, and values in the form of a layout's spaces."""

import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

KNOWN = {"observation", "prompt", "reset", "seed", "layout", "deadline_ms", "chunk", "demonstration"}


def fields(message: Any) -> dict[str, Any]:
    """The fields of a message by their names, all of them known and of their types.

    Raises:
        ValueError: one is not.
    """
    if not isinstance(message, dict):
        raise ValueError("a message must be a map, with an observation")
    texts = {
        name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name): one for name, one in message.items()
    }
    if unknown := [name for name in texts if name not in KNOWN and not name.startswith("observation/")]:
        raise ValueError(
            f"a message has {unknown[0][:60]!r}: known are {', '.join(sorted(KNOWN))} and observation/NAME"
        )
    for name, kind in (("prompt", str), ("layout", str), ("seed", int), ("reset", bool), ("chunk", int)):
        # A robot may send NumPy's numbers, and texts as arrays of one.
        if name in texts and not isinstance(texts[name], kind | (np.integer if kind is int else kind)):
            raise ValueError(f"{name} must be of type {kind.__name__}")
    if texts.get("chunk", 1) != 1:
        # In training an observation stands between two actions: what came after the first would be a guess.
        raise ValueError(
            f"chunk = {texts['chunk']}: these weights choose one action per observation, and have learnt none without: leave "
            "it out, and send the observation after each action"
        )
    return texts


def observation(space: gym.Space, texts: Mapping[str, Any]) -> Any:
    """The observation of a message in the form of its space, or None if there is none: the field `observation`, or
    `observation/NAME` for each part.

    Raises:
        ValueError: it has a part that the space has not, or an array is none.
    """
    named = {name.partition("/")[2]: one for name, one in texts.items() if name.startswith("observation/")}
    if "observation" in texts:
        if named:
            raise ValueError(
                f"a message has observation and observation/{next(iter(named))[:60]}: send one or the other"
            )
        value = texts["observation"]
    elif named:
        value = _nested(space, named)
    else:
        return None
    value = fitted(space, value)
    _check_parts(space, value, "observation")
    return value


def _nested(space: gym.Space, named: Mapping[str, Any]) -> Any:
    """Parts by their names, with / between those of nested maps."""
    if not isinstance(space, gym.spaces.Dict):
        # An array has no parts: it goes by the names that openpi's policies have for it.
        own = "image" if space.shape is not None and len(space.shape) == 3 else "state"
        if other := [name for name in named if name != own]:
            raise ValueError(
                f"a message has observation/{other[0][:60]}, but the observation is one array: send it as observation, or as "
                f"observation/{own}"
            )
        return named[own]
    found: dict[str, Any] = {}
    for name, value in named.items():
        *folders, last = name.split("/")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(f"observation/{name[:60]} is below a part that is an array")
        place[last] = value
    return found


def _check_parts(space: gym.Space, value: Any, where: str) -> None:
    """Checks that a value has no parts besides those of its space: what is left out unseen is a mistake of the client's.

    Raises:
        ValueError: it has; the message names one.
    """
    if not isinstance(value, dict):
        return
    if not isinstance(space, gym.spaces.Dict):
        raise ValueError(f"{where} must be an array, but has the parts {', '.join(map(str, value))[:100]}")
    for name, part in value.items():
        if name not in space.spaces:
            known = ", ".join(f"{where}/{one}" for one in space.spaces)
            raise ValueError(f"a message has {where}/{str(name)[:60]}, which this layout has not: it has {known}")
        _check_parts(space[name], part, f"{where}/{name}")


def fitted(space: gym.Space, value: Any) -> Any:
    """A value of a message in the form of a space: lists as arrays, floats in the space's precision. Whether it is one of the
    space's values is checked later."""
    if isinstance(space, gym.spaces.Dict) and isinstance(value, dict):
        names = {
            name.decode("utf-8", "replace") if isinstance(name, bytes) else name: one for name, one in value.items()
        }
        return {name: fitted(space[name], one) if name in space.spaces else one for name, one in names.items()}
    if isinstance(space, gym.spaces.Tuple) and isinstance(value, list) and len(value) == len(space.spaces):
        return tuple(fitted(part, one) for part, one in zip(space.spaces, value, strict=True))
    if not isinstance(value, list | np.ndarray | np.generic | float | int):
        return value
    if isinstance(space, gym.spaces.Box) and isinstance(value, np.ndarray) and value.dtype == space.dtype:
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError("the observation has lists of different lengths where an array belongs") from error
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating) and array.dtype.kind in "biuf":
        with np.errstate(over="ignore"):
            return array.astype(space.dtype)
    if isinstance(value, list) and array.dtype.kind in "biu" and space.dtype is not None:
        # Of a list only the kind is known. What does not fit is left as it is, and refused.
        small = array.astype(space.dtype)
        return small if np.array_equal(small, array) else array
    return value


def chunk(action: Any) -> Any:
    """An action as a chunk of one."""
    if isinstance(action, Mapping):
        return {name: chunk(part) for name, part in action.items()}
    if isinstance(action, tuple):
        return {str(number): chunk(part) for number, part in enumerate(action)}
    return np.asarray(action)[None]


def deadline(given: Any) -> float:
    """When an observation is too old, on the monotonic clock.

    Args:
        given: milliseconds from now; None: never.

    Raises:
        ValueError: it is no number above 0.
    """
    if given is None:
        return float("inf")
    if isinstance(given, bool) or not isinstance(given, int | float | np.number) or not 0 < given < 1e9:
        raise ValueError("deadline_ms must be a number above 0")
    return time.monotonic() + float(given) / 1000
