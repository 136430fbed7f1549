"""Messages between a robot and the server: msgpack with NumPy arrays, as openpi's `msgpack_numpy` writes them, or JSON.

An array is a map of four keys: `__ndarray__` true, `data` its bytes, `dtype` such as `<f4`, and `shape`; a NumPy number has
`__npgeneric__`, `data` and `dtype`. In msgpack the keys are bytes, in JSON texts, and `data` is Base64. Only numbers are read, no
objects: nothing in a message is run, and no message takes more memory than its own size and `ITEMS` values.

Dimension key: none, arrays have any shape.
"""

import base64
import json
import math
from typing import Any

import numpy as np
from jaxtyping import Shaped

ITEMS = 1 << 16
"""Values in lists and maps of one message."""
NESTED = 16
KINDS = "biuf"
"""Kinds of numbers: booleans, integers and floats."""


class CodecError(ValueError):
    """A message that is no message."""


def pack(value: Any) -> bytes:
    """A message as msgpack."""
    import msgpack

    return msgpack.packb(value, default=_as_map)


def unpack(content: bytes) -> Any:
    """What `pack`, or openpi's client, wrote. Arrays are read-only and share the message's memory.

    Raises:
        CodecError: the message is damaged, or too large.
    """
    import msgpack

    count = 0

    def counted(items: Any) -> Any:
        nonlocal count
        count += len(items)
        if count > ITEMS:
            raise CodecError(f"a message has more than {ITEMS:,} values: send numbers as arrays")
        return items

    limits = {"max_array_len": ITEMS, "max_map_len": ITEMS, "max_ext_len": 0, "max_str_len": len(content)}
    try:
        found = msgpack.unpackb(
            content,
            object_pairs_hook=lambda pairs: _as_array(dict(counted(pairs))),
            list_hook=counted,
            strict_map_key=True,
            raw=False,
            **limits,
        )
    except CodecError:
        raise
    except Exception as error:  # msgpack has a dozen kinds of errors for damaged messages
        raise CodecError(f"a message is not msgpack ({_brief(error)})") from error
    return _checked(found)


def to_json(value: Any) -> str:
    """A message as JSON."""

    def default(one: Any) -> Any:
        found = _as_map(one)
        texts = {name.decode(): part for name, part in found.items()}
        if "__ndarray__" in texts:
            texts["data"] = base64.b64encode(texts["data"]).decode()
        return texts

    return json.dumps(value, default=default, allow_nan=False)


def from_json(content: str) -> Any:
    """What `to_json` wrote.

    Raises:
        CodecError: the message is damaged, or too large.
    """
    # Counted before anything is made of it: a list of empty lists takes thirty times its size.
    if sum(content.count(sign) for sign in ",[{") > ITEMS:
        raise CodecError(f"a message has more than {ITEMS:,} values: send numbers as arrays in Base64")

    def as_array(found: dict[str, Any]) -> Any:
        if "__ndarray__" not in found and "__npgeneric__" not in found:
            return found
        parts = {name.encode("utf-8", "replace"): part for name, part in found.items()}
        if "__ndarray__" in found:
            try:
                parts[b"data"] = base64.b64decode(found.get("data", ""), validate=True)
            except (TypeError, ValueError) as error:
                raise CodecError("the data of an array is not Base64") from error
        return _as_array(parts)

    try:
        return _checked(json.loads(content, object_hook=as_array, parse_constant=_no_number))
    except CodecError:
        raise
    except (ValueError, RecursionError) as error:
        raise CodecError(f"a message is not JSON ({_brief(error)})") from error


def _as_map(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in KINDS:
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"a message holds numbers, texts, lists and maps, not {type(value).__name__}")


def _as_array(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in found and b"__npgeneric__" not in found:
        return found
    dtype = _dtype(found.get(b"dtype"))
    content = found.get(b"data")
    if b"__npgeneric__" in found:
        if not isinstance(content, bool | int | float):
            raise CodecError(f"a number of {dtype} has no number in it")
        try:
            return dtype.type(content)
        except (OverflowError, ValueError) as error:
            raise CodecError(f"a number does not fit into {dtype}") from error
    return _array(content, dtype, found.get(b"shape"))


def _array(content: Any, dtype: np.dtype, shape: Any) -> Shaped[np.ndarray, "..."]:
    if not isinstance(content, bytes) or not isinstance(shape, list | tuple) or len(shape) > 8:
        raise CodecError("an array needs its bytes as `data` and at most eight axes as `shape`")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise CodecError("the shape of an array has a size that is no number from 0 up")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise CodecError(f"an array of {dtype} has {len(content):,} bytes, which are not those of its shape")
    return np.frombuffer(content, dtype).reshape(shape)


def _dtype(name: Any) -> np.dtype:
    # One letter and a size, nothing that NumPy would parse further.
    if not isinstance(name, str) or len(name) > 4 or name.lstrip("<>|=")[:1] not in tuple(KINDS):
        raise CodecError(f"an array's dtype is {str(name)[:20]!r}, but must be one of numbers, such as '<f4' or '|u1'")
    try:
        return np.dtype(name)
    except TypeError as error:
        raise CodecError(f"there is no dtype {name!r}") from error


def _checked(value: Any, depth: int = 0) -> Any:
    """The value, unless it is nested too deep."""
    if depth > NESTED:
        raise CodecError(f"a message is nested more than {NESTED} deep")
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _checked(one, depth + 1)
    return value


def _no_number(name: str) -> float:
    raise CodecError(f"JSON has no {name}")


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:100]
