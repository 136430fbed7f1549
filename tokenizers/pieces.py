"""Pieces, which represent the parts of a space, and sequences made of them: the structures that leave this folder."""

import dataclasses
from enum import IntEnum
from typing import Literal, Protocol

import numpy as np

ACTION_POSITION = 511
"""The one local position that all action tokens share (Gato, appendix C.3); observations use lower ones."""

PATCH_SIZE = 16
"""Pixels per side of an image patch (Gato, section 2.1)."""


Images = Literal["patches", "frame", "encoder", "patches+encoder", "frame+encoder"]
"""How images enter: in the sequence as patches (Gato) or as one frame, through the frozen encoder and cross-attention
(Flamingo), or both."""


class Visual(Protocol):
    """Turns images into the input of the model's cross-attention path: the encoder's pixels, or its stored features."""

    @property
    def empty(self) -> np.ndarray:
        """Zero images: (0, ...), with the trailing shape and dtype that calls return."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images, uint8 (n, H, W, C) → (n, ...)."""


class Modality(IntEnum):
    """The kind of a position. TENSOR, PATCH and FRAME embed a payload instead of the token; IMAGE embeds the token, and its
    payload goes to cross-attention."""

    # The numbers are stored in recorded features and used as array values: append, never renumber.
    TEXT = 0
    DISCRETE = 1
    CONTINUOUS = 2
    SPECIAL = 3
    TENSOR = 4
    PATCH = 5
    FRAME = 6
    IMAGE = 7


@dataclasses.dataclass(frozen=True)
class Piece:
    """The values of one part of a space over T steps, as positions of a sequence."""

    modality: Modality
    tokens: np.ndarray
    """int32 (n,): all steps one after the other; the pad id where a payload is embedded instead."""
    lengths: np.ndarray
    """int32 (T,): positions per step; their sum is n."""
    payload: np.ndarray | None = None
    """TENSOR: float32 (n, size). PATCH: uint8 (n, 16, 16, 3). FRAME: uint8 (n / tokens per frame, H, W, 3).
    IMAGE: uint8 (n, H, W, C), of any size: the assembler converts it to the input of the frozen encoder."""
    offset: int = 0
    """TENSOR: first column of this part in the run's projection."""
    intervals: np.ndarray | None = None
    """PATCH: int32 (n, 4): row low, row high, column low, column high, in 0..128."""


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One example of L positions."""

    tokens: np.ndarray
    """int32 (L,): input ids."""
    targets: np.ndarray
    """int32 (L,): the id to predict from each position; the pad id where nothing is predicted."""
    loss_weight: np.ndarray
    """float32 (L,): weight of that prediction, 0 where nothing is predicted."""
    modality: np.ndarray
    """int32 (L,): a `Modality`."""
    local_position: np.ndarray
    """int32 (L,): index within the step's observation; `ACTION_POSITION` for actions; 0 for text and documents."""
    payload_index: np.ndarray
    """int32 (L,): row among this sequence's embeddings of its modality (FRAME: frame · tokens per frame + j); else 0."""
    image: np.ndarray
    """int32 (L,): 1 + index of the image, in the order of positions, that this position attends to; 0: none."""
    tensors: np.ndarray
    """float32 (n, F): each tensor in its own columns, zeros elsewhere."""
    frames: np.ndarray
    """uint8 (m, H, W, 3)."""
    patches: np.ndarray
    """uint8 (p, 16, 16, 3)."""
    intervals: np.ndarray
    """int32 (p, 4): each patch's row low, row high, column low, column high."""
    images: np.ndarray
    """(i, ...): per image the frozen encoder's input (pixels) or its output (features); see `Visual`."""

    def __len__(self) -> int:
        return len(self.tokens)


POSITIONAL = ("tokens", "targets", "loss_weight", "modality", "local_position", "payload_index", "image")
"""The fields of a sequence with one entry per position."""

PAYLOADS = {
    Modality.TENSOR: "tensors",
    Modality.FRAME: "frames",
    Modality.PATCH: "patches",
    Modality.IMAGE: "images",
}
"""The field of a sequence that holds a modality's payloads."""


def positions_per_row(modality: Modality, frame_tokens: int) -> int:
    """Positions that one payload row of a modality takes: `frame_tokens` for a frame, 1 for all others.

    `payload_index` counts positions, not rows: an offset in it is rows times this number.
    """
    return frame_tokens if modality == Modality.FRAME else 1
