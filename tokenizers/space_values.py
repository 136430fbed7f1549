"""Checks values from outside against their space and copies them where they enter, so that nothing changes them later.

A value keeps its number in its space's dtype: integers exactly, real numbers to the dtype's precision. A value that does not fit
is refused with the name of its part. Real numbers beyond the bounds of their Box are kept: bounds are often estimates.

Dimension key: T steps, D axes of a value.
"""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Shaped

from generalist.tokenizers.part_rules import is_image

LARGEST = 1e100
"""Numbers beyond it overflow when they are squared, as a standard deviation does."""


Values = Shaped[np.ndarray, "*D"]


class _Refused(ValueError):
    """A value does not belong to its space; `path` leads to the part."""

    def __init__(self, problem: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(problem)
        self.path = path

    # Built from the inside out: the leaf knows the problem, each caller adds its own key.
    def under(self, key: str) -> "_Refused":
        """The same refusal, seen from the space that holds the part as `key`."""
        return _Refused(str(self), (key, *self.path))

    def message(self, what: str) -> str:
        part = f" part {'/'.join(self.path)!r}" if self.path else ""
        return f"{what}{part} {self}"


def checked(space: gym.Space, value: Any, what: str, *, bounded: bool = False, exact: bool = True) -> Any:
    """A copy of a value of the space, in the space's dtypes; it shares no memory with the value.

    Args:
        space: made of Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict and Tuple.
        value: as an environment or a policy returns it; plain Python numbers and lists are accepted.
        what: the beginning of error messages, such as "own/maze: the observation".
        bounded: real numbers must lie within the bounds of their Box, as is required of actions.
        exact: a Dict must have no keys other than those of its space.

    Raises:
        ValueError: the value does not belong to the space; the message names the part, the value and the remedy.
    """
    try:
        return _checked(space, value, bounded, exact)
    except _Refused as refused:
        # A ValueError proper: callers and users see one type, and the chain of parts is already in the message.
        raise ValueError(refused.message(what)) from None


def checked_reward(value: Any, what: str) -> float:
    """A reward as a float; an array of one number counts as that number.

    Raises:
        ValueError: it is not one number, not finite, or too large for float32, in which rewards are stored.
    """
    # np.asarray(None) is an object array of size 1, which the next test would report less clearly.
    array = _array(value) if value is not None else np.empty(0)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise ValueError(f"{what} is {_shown(value)}: it must be one number")
    reward = float(array.reshape(()))
    if not abs(reward) <= float(np.finfo(np.float32).max):
        raise ValueError(f"{what} is {reward}: it must be finite, and no larger than float32 holds")
    return reward


def checked_flag(value: Any, what: str) -> bool:
    """A termination flag as a bool; 0 and 1 of any integer dtype are accepted.

    Raises:
        ValueError: it is neither True nor False.
    """
    # NumPy's bool_ and arrays of one flag are common; None is what a forgotten return gives.
    array = _array(value) if value is not None else np.empty(0)
    if array.size != 1 or array.dtype.kind not in "iub" or array.reshape(()) not in (0, 1):
        raise ValueError(f"{what} is {_shown(value)}: it must be True or False")
    return bool(array.reshape(()))


def check_text(value: Any, what: str) -> None:
    """Checks that a value is a text that can be stored.

    Raises:
        ValueError: it is not a text, or contains half a character (a lone surrogate).
    """
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, got {_shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is {_shown(value)}, with half a character at {error.start}: replace it") from None


def steps_of(space: gym.Space, values: Any, what: str) -> list[Any]:
    """T values of a space from a list, an array (T, ...), or a Dict or tuple of arrays (as Minari and D4RL store them).

    Raises:
        ValueError: the parts have different numbers of steps, or a part is missing.
    """
    if isinstance(space, gym.spaces.Dict) and isinstance(values, Mapping):
        missing = [key for key in space.spaces if key not in values]
        if missing:
            raise ValueError(
                f"{what} are a dict that lacks the part {missing[0]!r}: it has the keys {sorted(map(str, values))}"
            )
        extra = [key for key in values if key not in space.spaces]
        if extra:
            raise ValueError(f"{what} are a dict with the key {extra[0]!r}, which the space lacks: leave it out")
        columns = {
            key: steps_of(part, values[key], f"{what}, part {key!r}")
            for key, part in space.spaces.items()
            if not _is_empty(part)
        }
        empty: dict[str, Any] = {key: values[key] for key, part in space.spaces.items() if _is_empty(part)}
        return [dict(zip(columns, row, strict=True)) | empty for row in _rows(columns, what)]
    if isinstance(space, gym.spaces.Tuple) and _are_columns(space, values):
        parts = {
            str(at): steps_of(part, values[at], f"{what}, part '{at}'") for at, part in enumerate(space.spaces)
        }  # fmt: skip
        return _rows(parts, what)
    if isinstance(values, Mapping) or not hasattr(values, "__len__"):
        raise ValueError(f"{what} are {_shown(values)}: give a list or an array with one value of {space} per step")
    return list(values)


def _is_empty(space: gym.Space) -> bool:
    """Whether a space has no leaves, so that its columns do not say how many steps there are."""
    return isinstance(space, gym.spaces.Dict | gym.spaces.Tuple) and all(map(_is_empty, _parts(space)))


def _parts(space: gym.spaces.Dict | gym.spaces.Tuple) -> list[gym.Space]:
    return list(space.spaces.values()) if isinstance(space, gym.spaces.Dict) else list(space.spaces)


def _are_columns(space: gym.spaces.Tuple, values: Any) -> bool:
    """Whether a tuple holds the parts' columns rather than a sequence of steps, which are tuples themselves."""
    # Both forms may have the same length; an element that is a tuple where its part is a leaf can only be a step.
    return (
        isinstance(values, tuple)
        and len(values) == len(space.spaces)
        and not any(
            isinstance(value, tuple) and not isinstance(part, gym.spaces.Tuple)
            for part, value in zip(space.spaces, values, strict=True)
        )
    )


def _rows(columns: Mapping[str, list[Any]], what: str) -> list[tuple[Any, ...]]:
    counts = {key: len(column) for key, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"{what} have parts of different lengths: {counts}; give the same number of steps for every part"
        )
    return list(zip(*columns.values(), strict=True))


def copied(value: Any) -> Any:
    """A copy of arrays in dictionaries, tuples and lists; it shares no memory with the value."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: copied(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        # A namedtuple's constructor takes its fields one by one, so subclasses become plain tuples.
        return type(value)(copied(one) for one in value) if type(value) in (tuple, list) else tuple(map(copied, value))
    return value


def _checked(space: gym.Space, value: Any, bounded: bool, exact: bool) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return _checked_dict(space, value, bounded, exact)
    if isinstance(space, gym.spaces.Tuple):
        return _checked_tuple(space, value, bounded, exact)
    if isinstance(space, gym.spaces.Text):
        return _text(space, value)
    return _leaf(space, value, (), bounded)


def _checked_dict(space: gym.spaces.Dict, value: Any, bounded: bool, exact: bool) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _Refused(f"is {_shown(value)}, not a dictionary with the keys {sorted(space.spaces)}")
    # Counting first keeps the common case, exact keys, free of a second pass.
    if exact and len(value) != len(space.spaces):
        for key in value:
            if key not in space.spaces:
                raise _Refused(f"has the key {key!r}, which its space lacks: add it to the space, or leave it out")
    found = {}
    for key, part in space.spaces.items():
        if key not in value:
            raise _Refused(f"is missing: the value has the keys {sorted(map(str, value))}", (key,))
        found[key] = _under(key, part, value[key], bounded, exact)
    return found


def _checked_tuple(space: gym.spaces.Tuple, value: Any, bounded: bool, exact: bool) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != len(space.spaces):
        raise _Refused(f"is {_shown(value)}, not a tuple of {len(space.spaces)} parts")
    return tuple(
        _under(str(index), part, value[index], bounded, exact) for index, part in enumerate(space.spaces)
    )  # fmt: skip


def _under(key: str, space: gym.Space, value: Any, bounded: bool, exact: bool) -> Any:
    try:
        return _checked(space, value, bounded, exact)
    except _Refused as refused:
        raise refused.under(key) from None


def _leaf(space: gym.Space, value: Any, lead: tuple[int, ...], bounded: bool) -> Any:
    """Values (*lead, ...) of a space without parts, in its type: a copy."""
    array = _array(value)
    if array.dtype.kind not in "fiub":
        raise _Refused(f"is {_shown(value)}, not numbers of type {space.dtype}: give numbers")
    # Exactly: broadcasting would accept a single number for a whole observation.
    shape = (*lead, *(space.shape or ()))
    if array.shape != shape:
        raise _Refused(f"has shape {array.shape}, but its space has {shape}: give it that shape in a wrapper")
    # isinstance, not a lookup by type: users subclass gymnasium's spaces.
    for kind, check in _CHECKS.items():
        if isinstance(space, kind):
            return check(space, array, bounded)
    raise _Refused(f"is of a space of type {type(space).__name__}, which can't be learned")


def _box(space: gym.spaces.Box, array: Values, bounded: bool) -> Values:
    if space.dtype.kind == "f":
        return _real(space, array, bounded)
    # Compared before the cast: afterwards 256 would have become 0 of uint8 and pass.
    _whole(array, space)
    low, high = space.low, space.high
    outside = (array < low) | (array > high)
    if outside.any():
        at = _first(outside)
        raise _Refused(
            f"is {array[at]}, outside {_bound(low, at)}..{_bound(high, at)}: widen its space, or clip it in a wrapper"
        )
    # A recorded RGBA image loses its alpha channel, so one that carries information there must be refused.
    if is_image(space) and space.shape[-1] == 4 and not (array[..., 3] == 255).all():
        raise _Refused(
            "has four channels of which the last is not opaque: if it is a stack of frames or has depth, give a Dict of images "
            "with 1 or 3 channels in a wrapper; if it is RGBA, give RGB"
        )
    return array.astype(space.dtype)


def _real(space: gym.spaces.Box, array: Values, bounded: bool) -> Values:
    # A float64 beyond float32 becomes infinite here and is reported below with the original value.
    with np.errstate(over="ignore"):
        cast = array.astype(space.dtype)
    finite = np.isfinite(cast)
    if not finite.all():
        at = _first(~finite)
        remedy = "mask or clip it in a wrapper" if not np.isfinite(array[at]) else f"{space.dtype} can't hold it"
        raise _Refused(f"is {array[at]} at {_place(at)}, not a finite number: {remedy}")
    if cast.dtype == np.float64 and (np.abs(cast) > LARGEST).any():
        at = _first(np.abs(cast) > LARGEST)
        raise _Refused(f"is {array[at]} at {_place(at)}, larger than {LARGEST:g}: scale it in a wrapper")
    if bounded:
        outside = (cast < space.low) | (cast > space.high)
        if outside.any():
            at = _first(outside)
            raise _Refused(
                f"is {cast[at]} at {_place(at)}, outside {_bound(space.low, at)}..{_bound(space.high, at)}: clip it"
            )
    return cast


def _discrete(space: gym.spaces.Discrete, array: Values, bounded: bool) -> Any:
    _whole(array, space)
    outside = (array < space.start) | (array >= space.start + space.n)
    if outside.any():
        last = space.start + space.n - 1
        raise _Refused(f"is {array[_first(outside)]}, outside {space.start}..{last}: correct the value or its space")
    return array.astype(space.dtype)[()]  # a NumPy scalar, as the space's own samples are


def _multi_discrete(space: gym.spaces.MultiDiscrete, array: Values, bounded: bool) -> Values:
    _whole(array, space)
    outside = (array < space.start) | (array >= space.start + space.nvec)
    if outside.any():
        at = _first(outside)
        # Each number has its own range, so the message shows the one that was missed.
        low, many = _bound(space.start, at), _bound(space.nvec, at)
        raise _Refused(
            f"is {array[at]} at {_place(at)}, outside {low}..{low + many - 1}: correct the value or its space"
        )
    return array.astype(space.dtype)


def _multi_binary(space: gym.spaces.MultiBinary, array: Values, bounded: bool) -> Values:
    _whole(array, space)
    outside = (array != 0) & (array != 1)
    if outside.any():
        raise _Refused(f"is {array[_first(outside)]}, not 0 or 1: correct the value or its space")
    return array.astype(space.dtype)


_CHECKS: dict[type[gym.Space], Callable[[Any, Values, bool], Any]] = {
    gym.spaces.Box: _box,
    gym.spaces.Discrete: _discrete,
    gym.spaces.MultiDiscrete: _multi_discrete,
    gym.spaces.MultiBinary: _multi_binary,
}


def _text(space: gym.spaces.Text, value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused(f"is {_shown(value)}, not a string")
    # str(value) also turns NumPy strings into plain ones, which recordings store.
    if not space.contains(str(value)):
        raise _Refused(f"is {value!r:.60}, not a string of {space}: correct the value or its space")
    return str(value)


def _whole(array: Values, space: gym.Space) -> None:
    """Refuses real numbers where integers belong, even without a fraction: a scaled image may begin with a black frame."""
    if array.dtype.kind == "f":
        raise _Refused(
            f"is of type {array.dtype}, but its space holds integers of type {space.dtype}: give that type, or change the "
            "space in the wrapper that changes the values"
        )


def _array(value: Any) -> Values:
    """A value as an array; an array of objects if it is not numeric, or has masked numbers."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        return np.empty((), object)
    try:
        return np.asarray(value)
    except (ValueError, TypeError):  # a list of lists of several lengths
        return np.empty((), object)


def _first(flags: Bool[np.ndarray, "*D"] | np.bool) -> tuple[int, ...]:
    """Index of the first set flag."""
    return tuple(int(one) for one in np.argwhere(flags)[0]) if flags.ndim else ()


def _bound(bounds: Values, at: tuple[int, ...]) -> Any:
    """The bound at an index, which may have leading axes (time) that bounds lack."""
    return bounds[at[len(at) - bounds.ndim :]] if bounds.ndim else bounds[()]


def _place(at: tuple[int, ...]) -> str:
    """An index as it is written in Python."""
    return f"[{', '.join(map(str, at))}]"


def _shown(value: Any) -> str:
    """A value as shown in a message: short, on one line."""
    if isinstance(value, np.ma.MaskedArray):
        return "an array with masked numbers"
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"an array of {value.dtype} of shape {value.shape}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
