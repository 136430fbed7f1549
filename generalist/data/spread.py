"""A sample that is spread over all there is."""

import numpy as np


def spread(count: int, most: int) -> np.ndarray:
    """Up to `most` of the numbers from 0 to `count` - 1, as even as can be: int64, ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
