"""What one part of a space says, before pieces are put in order."""

import dataclasses
from enum import IntEnum

import numpy as np

ACTION_POSITION = 511
"""The one local position that all action tokens share (Gato, appendix C.3); observations use those below it."""

PATCH_SIZE = 16
"""Pixels on a side of an image patch (Gato, section 2.1)."""


class Modality(IntEnum):
    """What stands at a position. For the last three a payload speaks, not the token."""

    TEXT = 0
    DISCRETE = 1
    CONTINUOUS = 2
    SPECIAL = 3
    TENSOR = 4
    PATCH = 5
    FRAME = 6


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one part of a space says over T steps."""

    modality: Modality
    tokens: np.ndarray
    """int32 (n,): all steps one after the other; the pad id where the payload speaks."""
    lengths: np.ndarray
    """int32 (T,): positions in each step; they sum to n."""
    payload: np.ndarray | None = None
    """TENSOR: float32 (n, size). PATCH: uint8 (n, 16, 16, 3). FRAME: uint8 (n / tokens a frame, H, W, 3)."""
    offset: int = 0
    """TENSOR: first column of the run's projection that this part owns."""
    intervals: np.ndarray | None = None
    """PATCH: int32 (n, 4): row low, row high, column low, column high, in 0..128."""
