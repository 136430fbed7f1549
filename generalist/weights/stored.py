"""Arrays that are not read yet: their shapes are known, and each of their parts is read when it is wanted."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import DTypeLike

from generalist.weights.recipe import Index, Tensor, whole

ALIGNMENT = 64  # bytes, as XLA has it


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array by its shape and a function that reads a part of it, so that a device is given its own part alone."""

    shape: tuple[int, ...]
    read: Callable[[Index], Tensor]
    """A start and a stop on every axis → that part, in the dtype of the files."""

    @classmethod
    def of(cls, array: Tensor) -> "Stored":
        """An array that is in memory."""
        return cls(array.shape, lambda index: np.asarray(array[index]))  # of an array without axes a part is a number

    def all(self) -> Tensor:
        """The whole array."""
        return self.read(whole(self.shape))

    def __iter__(self) -> Iterator["Stored"]:
        """The entries along the first axis, such as the layers of a stack."""

        def entry(at: int) -> Stored:
            return Stored(self.shape[1:], lambda index: self.read((slice(at, at + 1), *index)).squeeze(0))

        return map(entry, range(self.shape[0]))


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
    """An array without values, at an address that JAX takes as it is where the device is this machine's processor: arrays
    elsewhere are copied."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)
