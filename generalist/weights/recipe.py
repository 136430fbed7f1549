"""How our arrays are made from the tensors of published files, and those tensors from our arrays.

Dimension key: *S the axes of a tensor.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Num

Tensor = Num[np.ndarray, "*_S"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one of our arrays is made from a folder's tensors: their names and shapes, and the functions of both directions."""

    sources: tuple[tuple[str, tuple[int, ...]], ...]
    # Data and functions apart: names and shapes are checked, for all recipes, before the first tensor is read.
    build: Callable[[Sequence[Tensor]], Tensor]
    """The tensors, in the order of `sources` → our array."""
    divide: Callable[[Tensor], list[Tensor]]
    """Our array → the tensors, in the order of `sources`: the inverse of `build`, in our array's dtype. Raises `ValueError` if
    the files have no place for what it holds."""

    def tensors(self, array: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The names and tensors that our array is made from, contiguous, as safetensors writes them."""
        for (name, _), part in zip(self.sources, self.divide(array), strict=True):
            yield name, np.ascontiguousarray(part)


def tensor(name: str, *shape: int) -> Recipe:
    """A tensor of `shape`, unchanged."""
    return Recipe(((name, shape),), lambda arrays: arrays[0], lambda array: [array])


def transposed(name: str, *shape: int) -> Recipe:
    """A tensor of `shape` with its axes reversed: PyTorch stores the kernel of a linear map as (outputs, inputs)."""
    return Recipe(((name, shape),), lambda arrays: arrays[0].T, lambda array: [array.T])


def zeros(*shape: int) -> Recipe:
    """Zeros, of float32: what the folder's architecture does without and ours has."""

    def divide(array: Tensor) -> list[Tensor]:
        if array.any():
            raise ValueError("the architecture has no such parameter, and training moved it away from zero")
        return []

    return Recipe((), lambda arrays: np.zeros(shape, np.float32), divide)


def mapped(recipe: Recipe, change: Callable[[Tensor], Tensor], undo: Callable[[Tensor], Tensor]) -> Recipe:
    """A recipe whose array is passed through `change`, of which `undo` is the inverse."""
    return Recipe(
        recipe.sources,
        lambda arrays: change(recipe.build(arrays)),
        lambda array: recipe.divide(undo(array)),
    )


def joined(recipes: Sequence[Recipe], axis: int = -1) -> Recipe:
    """Several arrays concatenated along an existing axis."""

    def separate(array: Tensor) -> list[Tensor]:
        ends = np.cumsum([_shape(recipe)[axis] for recipe in recipes])
        return np.split(array, ends[:-1], axis=axis)

    return _combined(recipes, lambda arrays: np.concatenate(arrays, axis=axis), separate)


def stacked(recipes: Sequence[Recipe]) -> Recipe:
    """Several arrays stacked along a new first axis: the layers of our stacked blocks."""
    return _combined(recipes, np.stack, list)


def _shape(recipe: Recipe) -> tuple[int, ...]:
    """The shape of a recipe's array."""
    # Built of views of a single number, which take no memory.
    return recipe.build([np.broadcast_to(np.float32(0), shape) for _, shape in recipe.sources]).shape


def _combined(
    recipes: Sequence[Recipe],
    combine: Callable[[Sequence[Tensor]], Tensor],
    separate: Callable[[Tensor], list[Tensor]],
) -> Recipe:
    sources = tuple(source for recipe in recipes for source in recipe.sources)

    def build(arrays: Sequence[Tensor]) -> Tensor:
        # Arrays arrive in the order of `sources`: each recipe takes its share of them.
        rest = iter(arrays)
        return combine([recipe.build([next(rest) for _ in recipe.sources]) for recipe in recipes])

    def divide(array: Tensor) -> list[Tensor]:
        shares = zip(recipes, separate(array), strict=True)
        return [part for recipe, share in shares for part in recipe.divide(share)]

    return Recipe(sources, build, divide)
