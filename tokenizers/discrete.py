"""Whole numbers as ids of the discrete range and back, and as one-hot vectors."""

import dataclasses
from functools import cached_property

import numpy as np


@dataclasses.dataclass(frozen=True)
class DiscreteCodec:
    """D whole numbers, each with its own range start..start+size-1, row-major (Gato, section 2.1)."""

    sizes: tuple[int, ...]
    """How many values each has."""
    starts: tuple[int, ...]
    """The least value of each."""

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array(self.sizes, np.int64)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.array(self.starts, np.int64)

    @cached_property
    def _columns(self) -> np.ndarray:
        """First one-hot column of each number."""
        return np.cumsum(self._sizes) - self._sizes

    @property
    def width(self) -> int:
        """Columns of the one-hot form: all sizes together."""
        return int(self._sizes.sum())

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values counted from their starts, int32 (T, D), of values (T, D).

        Raises:
            ValueError: a value is outside its range or no whole number.
        """
        if values.dtype.kind not in "iub":
            if not (np.asarray(values) == np.floor(values)).all():
                raise ValueError("a discrete value is no whole number")
            values = values.astype(np.int64)
        counted = values - self._starts
        if counted.size and ((counted < 0) | (counted >= self._sizes)).any():
            at = tuple(np.argwhere((counted < 0) | (counted >= self._sizes))[0])
            low = self.starts[at[-1]]
            raise ValueError(
                f"value {values[at]} of number {at[-1]} is outside {low}..{low + self.sizes[at[-1]] - 1}: "
                "the values do not come from this space"
            )
        return counted.astype(np.int32)

    def decode(self, counted: np.ndarray) -> np.ndarray:
        """Values, int64 (T, D)."""
        return counted.astype(np.int64) + self._starts

    def one_hot(self, values: np.ndarray) -> np.ndarray:
        """One-hot vectors of all numbers side by side, float32 (T, width), of values (T, D)."""
        columns = self.encode(values) + self._columns
        rows = np.zeros((len(columns), self.width), np.float32)
        rows[np.arange(len(columns))[:, None], columns] = 1.0
        return rows
