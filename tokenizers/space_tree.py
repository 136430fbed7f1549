"""The leaves of a space, and values split and reassembled along them.

Dimension key: T steps, B rows.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Shaped

from generalist.tokenizers.parts import Part, Path


def leaves_of(space: gym.Space, path: Path) -> Iterator[tuple[Path, gym.Space]]:
    """Leaves in key order: a Dict's keys as strings, a Tuple's indices in decimal."""
    if isinstance(space, gym.spaces.Dict):
        # "/" joins nested keys to flat ones: a key that contains it could collide with a nested one.
        for key in space.spaces:
            if not isinstance(key, str) or "/" in key or key != key.encode(errors="replace").decode():
                raise ValueError(f'the key {key!r} of {space} must be a string without "/": rename it in a wrapper')
        for key in sorted(space.spaces):
            yield from leaves_of(space.spaces[key], (*path, key))
    # By index, not by sorted key: "10" would sort before "2".
    elif isinstance(space, gym.spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from leaves_of(part, (*path, str(index)))
    else:
        yield path, space


def leaf_of(value: Any, part: Part) -> Any:
    """The value under the part's path in a value of the space."""
    try:
        for key in part.path:
            value = value[key] if isinstance(value, Mapping) else value[int(key)]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"a value lacks the part {part.key!r} of its space") from error
    return value


def stacked(leaves: list[Any], part: Part) -> Shaped[np.ndarray, "T ..."]:
    """T leaf values as one array (T, *shape); texts as an object array (T,).

    Raises:
        ValueError: the values differ in shape, or their shape is not the part's.
    """
    if part.dtype == "object":
        texts = np.empty((len(leaves),), object)  # object, not str: NumPy's str arrays drop trailing NULs
        texts[:] = [leaf.item() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        return texts
    # NumPy raises for values of different shapes, without naming the part.
    try:
        array = np.array(leaves)
    except ValueError as error:
        raise ValueError(f"values of the part {part.key!r} must have shape ({commas(part.shape)}): {error}") from error
    if array.shape != (len(leaves), *part.shape):
        raise ValueError(
            f"values of the part {part.key!r} must have shape ({commas(part.shape)}), got {array.shape[1:]}"
        )
    return array


def assembled(space: gym.Space, path: Path, leaves: Mapping[Path, Shaped[np.ndarray, "B ..."]], row: int) -> Any:
    """Row `row` of the leaves' arrays as a value of the space."""
    if isinstance(space, gym.spaces.Dict):
        return {key: assembled(part, (*path, key), leaves, row) for key, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(assembled(part, (*path, str(index)), leaves, row) for index, part in enumerate(space.spaces))
    if isinstance(space, gym.spaces.Box):
        # Indexing an array of 0-dimensional values gives a NumPy scalar; a Box must get an array.
        return np.asarray(leaves[path][row])
    return leaves[path][row]


def commas(shape: tuple[int, ...]) -> str:
    """A shape as it stands within parentheses of a message."""
    return ", ".join(map(str, shape))
