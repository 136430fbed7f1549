"""Evenly spread samples.

Dimension key: n numbers of a sample.
"""

import numpy as np
from jaxtyping import Int64


def spread(count: int, most: int) -> Int64[np.ndarray, "n"]:
    """Up to `most` of the numbers from 0 to `count` - 1, spread as evenly as possible, ascending."""
    # Evenly, not the first ones: what comes late in a data set may differ from what comes early.
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
