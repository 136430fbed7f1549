"""Gymnasium spaces and images as JSON and back, as a run's folder stores them. Nothing in such a file is trusted.

Dimension key: H height, W width, S pixels per side of a frame, D axes of a space.
"""

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

# More numbers than any observation has: a damaged shape must not allocate all memory.
_LARGEST = 2**26


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """A space as JSON values. `SpaceTokenizer.from_space` has already checked that its kind is supported."""
    if isinstance(space, gym.spaces.Box):
        low, high = _numbers(space.low), _numbers(space.high)
        return {"type": "Box", "low": low, "high": high, "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
            "dtype": str(space.dtype),
        }
    if isinstance(space, gym.spaces.MultiBinary):
        # n = 3 and n = (3,) are different spaces in gymnasium and must stay so.
        return {"type": "MultiBinary", "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}
    if isinstance(space, gym.spaces.Text):
        characters = "".join(sorted(space.character_set))
        return {
            "type": "Text",
            "min_length": space.min_length,
            "max_length": space.max_length,
            "characters": characters,
        }
    if isinstance(space, gym.spaces.Dict):
        # Sorted keys: gymnasium sorts them too, and the file is the same whatever the order of construction.
        return {"type": "Dict", "spaces": {key: space_to_json(part) for key, part in sorted(space.spaces.items())}}
    if isinstance(space, gym.spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    raise ValueError(f"a space of type {type(space).__name__} has no JSON form")


def space_from_json(data: Mapping[str, Any]) -> gym.Space:
    """Rebuilds the space that `space_to_json` described.

    Raises:
        ValueError: the description is damaged.
    """
    try:
        return _READERS[data["type"]](data)
    except ValueError:
        raise
    # Gymnasium's constructors assert; a hostile nesting recurses. All of it means the same to the reader of the file.
    except (KeyError, TypeError, AttributeError, AssertionError, OverflowError, RecursionError) as error:
        raise ValueError(f"the description of a space is damaged ({type(error).__name__}: {error})") from error


def _numbers(array: Shaped[np.ndarray, "*D"]) -> Any:
    """All numbers, or one number if all are equal. Infinity is a string, since JSON has none."""
    flat = [value if math.isfinite(value) else str(value) for value in array.reshape(-1).tolist()]
    return flat[0] if flat and all(value == flat[0] for value in flat) else flat


def _array(data: Any, shape: tuple[int, ...], dtype: np.dtype) -> Shaped[np.ndarray, "*D"]:
    """The array that `_numbers` described."""
    values = data if isinstance(data, list) else [data] * math.prod(shape)
    if dtype.kind == "f":
        values = [float(value) for value in values]
    if any(isinstance(value, str) for value in values):
        raise ValueError("the description of a space is damaged (a string where a number is expected)")
    return np.array(values, dtype).reshape(shape)


def _shape(data: Any) -> tuple[int, ...]:
    shape = tuple(data)
    # `type(...) is not int` also refuses True and False, which isinstance would accept.
    if any(type(size) is not int or size < 0 for size in shape) or math.prod(shape) > _LARGEST:
        raise ValueError(f"the description of a space is damaged (shape {str(data)[:60]})")
    return shape


def _dtype(name: Any) -> np.dtype:
    # Types outside numbers and booleans are refused: np.dtype("O") could hold arbitrary objects.
    dtype = np.dtype(name) if isinstance(name, str) else np.dtype(object)
    if dtype.kind not in "fiub":
        raise ValueError(f"the description of a space is damaged (type {name!r})")
    return dtype


def _box(data: Mapping[str, Any]) -> gym.Space:
    shape, dtype = _shape(data["shape"]), _dtype(data["dtype"])
    low, high = _array(data["low"], shape, dtype), _array(data["high"], shape, dtype)
    return gym.spaces.Box(low, high, shape, dtype.type)


def _discrete(data: Mapping[str, Any]) -> gym.Space:
    return gym.spaces.Discrete(int(data["n"]), start=int(data["start"]), dtype=_dtype(data["dtype"]).type)


def _multi_discrete(data: Mapping[str, Any]) -> gym.Space:
    dtype = _dtype(data["dtype"])
    return gym.spaces.MultiDiscrete(
        np.array(data["nvec"], dtype), dtype=dtype.type, start=np.array(data["start"], dtype)
    )


def _multi_binary(data: Mapping[str, Any]) -> gym.Space:
    n = data["n"]
    shape = _shape(n if isinstance(n, list) else [n])
    return gym.spaces.MultiBinary(shape if isinstance(n, list) else shape[0])  # 3 and [3] are different spaces


def _text(data: Mapping[str, Any]) -> gym.Space:
    minimum, maximum = int(data["min_length"]), int(data["max_length"])
    return gym.spaces.Text(maximum, min_length=minimum, charset=frozenset(data["characters"]))


_READERS = {
    "Box": _box,
    "Discrete": _discrete,
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": _multi_binary,
    "Text": _text,
    "Dict": lambda data: gym.spaces.Dict({key: space_from_json(part) for key, part in data["spaces"].items()}),
    "Tuple": lambda data: gym.spaces.Tuple([space_from_json(part) for part in data["spaces"]]),
}


def png_text(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    """An image as text: a PNG in Base64, much shorter than its numbers in JSON."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def png_pixels(text: str, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The image of `size` pixels per side that `png_text` wrote.

    Raises:
        ValueError: it is damaged or has another size.
    """
    try:
        # formats=["PNG"]: Pillow would otherwise try every decoder it has on untrusted bytes.
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            if image.size != (size, size) or image.mode != "RGB":
                raise ValueError(f"it is {image.mode} of {image.size}")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise ValueError(
            f"the statistics of a frame are not an RGB image of {size} pixels per side: {error}"
        ) from error
