"""What one part of a space says, and an example made of such pieces: the structures that leave this folder."""

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


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One example of L positions."""

    tokens: np.ndarray
    """int32 (L,): input ids."""
    targets: np.ndarray
    """int32 (L,): the id to predict from each position; the pad id where there is none."""
    loss_weight: np.ndarray
    """float32 (L,): weight of that prediction, 0 where there is none."""
    modality: np.ndarray
    """int32 (L,): a `Modality`."""
    local_position: np.ndarray
    """int32 (L,): index within the step's observation; `ACTION_POSITION` for actions; 0 for text and documents."""
    payload_index: np.ndarray
    """int32 (L,): row among this sequence's embeddings of its modality (FRAME: image · tokens a frame + j); else 0."""
    tensors: np.ndarray
    """float32 (n, F): each tensor in the columns it owns, zeros elsewhere."""
    frames: np.ndarray
    """uint8 (m, H, W, 3)."""
    patches: np.ndarray
    """uint8 (p, 16, 16, 3)."""
    intervals: np.ndarray
    """int32 (p, 4): each patch's row low, row high, column low, column high."""

    def __len__(self) -> int:
        return len(self.tokens)


POSITIONAL = ("tokens", "targets", "loss_weight", "modality", "local_position", "payload_index")
"""The fields of a sequence with one entry a position."""

PAYLOADS = {Modality.TENSOR: "tensors", Modality.FRAME: "frames", Modality.PATCH: "patches"}
"""The field of a sequence that speaks for a modality."""
