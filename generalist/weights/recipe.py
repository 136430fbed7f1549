"""How our arrays are made from the tensors of published files, whole or part by part, and those tensors from our arrays.

Dimension key: *S the axes of a tensor.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Num

Tensor = Num[np.ndarray, "*_S"]
Index = tuple[slice, ...]
"""A part of an array: a start and a stop on every axis."""
Read = Callable[[str, Index], Tensor]
"""Name of a tensor of the files, and which part of it → that part."""


def whole(shape: Sequence[int]) -> Index:
    """The part that is all of an array."""
    return tuple(slice(0, size) for size in shape)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one of our arrays is made from a folder's tensors: their names and shapes, and the functions of both directions."""

    shape: tuple[int, ...]
    """Of our array."""
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    # Data and functions apart: names and shapes are checked, for all recipes, before the first tensor is read.
    build: Callable[[Sequence[Tensor]], Tensor]
    """The tensors, in the order of `sources` → our array."""
    divide: Callable[[Tensor], list[Tensor]]
    """Our array → the tensors, in the order of `sources`: the inverse of `build`, in our array's dtype. Raises `ValueError` if
    the files have no place for what it holds."""
    part: Callable[[Read, Index], Tensor] | None = None
    """How a part of our array is made from parts of the tensors; None: only from the whole tensors."""

    def read(self, read: Read, index: Index) -> Tensor:
        """A part of our array, for which no more of the files is read than it needs, as far as `part` knows."""
        if self.part is not None:
            return self.part(read, index)
        return self.build([read(name, whole(shape)) for name, shape in self.sources])[index]

    def tensors(self, array: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The names and tensors that our array is made from, contiguous, as safetensors writes them."""
        for (name, _), part in zip(self.sources, self.divide(array), strict=True):
            yield name, np.ascontiguousarray(part)


def tensor(name: str, *shape: int) -> Recipe:
    """A tensor of `shape`, unchanged."""
    return Recipe(
        shape,
        ((name, shape),),
        lambda arrays: arrays[0],
        lambda array: [array],
        lambda read, index: read(name, index),
    )


def transposed(name: str, *shape: int) -> Recipe:
    """A tensor of `shape` with its axes reversed: PyTorch stores the kernel of a linear map as (outputs, inputs)."""
    return Recipe(
        shape[::-1],
        ((name, shape),),
        lambda arrays: arrays[0].T,
        lambda array: [array.T],
        lambda read, index: read(name, index[::-1]).T,
    )


def zeros(*shape: int) -> Recipe:
    """Zeros, of float32: what the folder's architecture does without and ours has."""

    def divide(array: Tensor) -> list[Tensor]:
        if array.any():
            raise ValueError("the architecture has no such parameter, and training moved it away from zero")
        return []

    def part(read: Read, index: Index) -> Tensor:
        return np.zeros([one.stop - one.start for one in index], np.float32)

    return Recipe(shape, (), lambda arrays: np.zeros(shape, np.float32), divide, part)


def mapped(recipe: Recipe, change: Callable[[Tensor], Tensor], undo: Callable[[Tensor], Tensor]) -> Recipe:
    """A recipe whose array is passed through `change`, of which `undo` is the inverse. It is always read whole: `change` may move
    numbers anywhere."""
    return Recipe(
        change(np.broadcast_to(np.float32(0), recipe.shape)).shape,
        recipe.sources,
        lambda arrays: change(recipe.build(arrays)),
        lambda array: recipe.divide(undo(array)),
    )


def joined(recipes: Sequence[Recipe], axis: int = -1) -> Recipe:
    """Several arrays concatenated along an existing axis."""

    def separate(array: Tensor) -> list[Tensor]:
        ends = np.cumsum([recipe.shape[axis] for recipe in recipes])
        return np.split(array, ends[:-1], axis=axis)

    def part(read: Read, index: Index) -> Tensor:
        found, first, along = [], 0, axis % len(index)
        for recipe in recipes:
            size = recipe.shape[axis]
            # What of this array lies in the part, counted from its own beginning.
            start, stop = max(index[along].start - first, 0), min(index[along].stop - first, size)
            if start < stop:
                found.append(recipe.read(read, (*index[:along], slice(start, stop), *index[along + 1 :])))
            first += size
        return np.concatenate(found, axis=axis)

    shape = list(recipes[0].shape)
    shape[axis] = sum(recipe.shape[axis] for recipe in recipes)
    return _combined(recipes, tuple(shape), lambda arrays: np.concatenate(arrays, axis=axis), separate, part)


def stacked(recipes: Sequence[Recipe]) -> Recipe:
    """Several arrays stacked along a new first axis: the layers of our stacked blocks."""

    def part(read: Read, index: Index) -> Tensor:
        layers, *rest = index
        return np.stack([recipe.read(read, tuple(rest)) for recipe in recipes[layers]])

    return _combined(recipes, (len(recipes), *recipes[0].shape), np.stack, list, part)


def _combined(
    recipes: Sequence[Recipe],
    shape: tuple[int, ...],
    combine: Callable[[Sequence[Tensor]], Tensor],
    separate: Callable[[Tensor], list[Tensor]],
    part: Callable[[Read, Index], Tensor],
) -> Recipe:
    sources = tuple(source for recipe in recipes for source in recipe.sources)

    def build(arrays: Sequence[Tensor]) -> Tensor:
        # Arrays arrive in the order of `sources`: each recipe takes its share of them.
        rest = iter(arrays)
        return combine([recipe.build([next(rest) for _ in recipe.sources]) for recipe in recipes])

    def divide(array: Tensor) -> list[Tensor]:
        shares = zip(recipes, separate(array), strict=True)
        return [part for recipe, share in shares for part in recipe.divide(share)]

    return Recipe(shape, sources, build, divide, part)
