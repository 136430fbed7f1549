"""Integers as ids of the discrete range and back, and as one-hot vectors.

Dimension key: T steps, D integers of a value, W one-hot columns.
"""

import dataclasses
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int, Int32, Int64, Num


@dataclasses.dataclass(frozen=True)
class DiscreteCodec:
    """D integers, each with its own range start..start+size-1, in row-major order (Gato, section 2.1)."""

    sizes: tuple[int, ...]
    """Number of values of each integer."""
    starts: tuple[int, ...]
    """Smallest value of each integer."""

    # Cached as arrays: values are encoded for every training example.
    @cached_property
    def _sizes(self) -> Int64[np.ndarray, "D"]:
        return np.array(self.sizes, np.int64)

    @cached_property
    def _starts(self) -> Int64[np.ndarray, "D"]:
        return np.array(self.starts, np.int64)

    @cached_property
    def _columns(self) -> Int64[np.ndarray, "D"]:
        """First one-hot column of each integer."""
        return np.cumsum(self._sizes) - self._sizes

    @property
    def width(self) -> int:
        """Columns of the one-hot form: the sum of all sizes."""
        return int(self._sizes.sum())

    def encode(self, values: Num[np.ndarray, "T D"]) -> Int32[np.ndarray, "T D"]:
        """Values minus their starts.

        Raises:
            ValueError: a value is outside its range or is not an integer.
        """
        # Some environments return discrete values as floats; exact integers among them are accepted.
        if values.dtype.kind not in "iub":
            if not (np.asarray(values) == np.floor(values)).all():
                raise ValueError("a discrete value is not an integer: round it in a wrapper")
            values = values.astype(np.int64)
        counted = values - self._starts
        # Checked before the cast to int32, in which a large value could wrap around into the range.
        if counted.size and ((counted < 0) | (counted >= self._sizes)).any():
            at = tuple(np.argwhere((counted < 0) | (counted >= self._sizes))[0])
            low = self.starts[at[-1]]
            raise ValueError(
                f"value {values[at]} of number {at[-1]} is outside {low}..{low + self.sizes[at[-1]] - 1}: "
                "they do not belong to this space; correct the space or the values"
            )
        return counted.astype(np.int32)

    def decode(self, counted: Int[np.ndarray, "T D"]) -> Int64[np.ndarray, "T D"]:
        """The values that `encode` counted."""
        return counted.astype(np.int64) + self._starts

    def one_hot(self, values: Num[np.ndarray, "T D"]) -> Float32[np.ndarray, "T W"]:
        """One-hot vectors of all integers side by side."""
        columns = self.encode(values) + self._columns  # (T, D): one per integer
        rows = np.zeros((len(columns), self.width), np.float32)
        rows[np.arange(len(columns))[:, None], columns] = 1.0
        return rows
