"""What one part of a space says, and an example made of such pieces: the structures that leave this folder."""

import dataclasses
from enum import IntEnum
from typing import Literal, Protocol

import numpy as np

ACTION_POSITION = 511
"""The one local position that all action tokens share (Gato, appendix C.3); observations use those below it."""

PATCH_SIZE = 16
"""Pixels on a side of an image patch (Gato, section 2.1)."""


Images = Literal["patches", "frame", "encoder", "patches+encoder", "frame+encoder"]
"""How images enter: in the sequence as patches (Gato) or as one frame, through the frozen encoder and cross-attention
(Flamingo), or in both ways."""


class Visual(Protocol):
    """Turns images into what the model's cross-attention path takes: an encoder's pixels, or its stored features."""

    @property
    def empty(self) -> np.ndarray:
        """No images: (0, ...), with the shape and the type that any number of them has."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images, uint8 (n, H, W, C) → (n, ...)."""


class Modality(IntEnum):
    """What stands at a position. At TENSOR, PATCH and FRAME a payload speaks, not the token; at IMAGE the token does, and the
    payload is what cross-attention sees."""

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
    """What one part of a space says over T steps."""

    modality: Modality
    tokens: np.ndarray
    """int32 (n,): all steps one after the other; the pad id where the payload speaks."""
    lengths: np.ndarray
    """int32 (T,): positions in each step; they sum to n."""
    payload: np.ndarray | None = None
    """TENSOR: float32 (n, size). PATCH: uint8 (n, 16, 16, 3). FRAME: uint8 (n / tokens a frame, H, W, 3).
    IMAGE: uint8 (n, H, W, C), of any size: the assembler makes of it what the frozen encoder takes."""
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
    image: np.ndarray
    """int32 (L,): 1 + which of this sequence's images, in the order of their positions, this position attends to; 0: none."""
    tensors: np.ndarray
    """float32 (n, F): each tensor in the columns it owns, zeros elsewhere."""
    frames: np.ndarray
    """uint8 (m, H, W, 3)."""
    patches: np.ndarray
    """uint8 (p, 16, 16, 3)."""
    intervals: np.ndarray
    """int32 (p, 4): each patch's row low, row high, column low, column high."""
    images: np.ndarray
    """(i, ...): what the frozen encoder takes of each image (pixels), or what it gave (features); see `Visual`."""

    def __len__(self) -> int:
        return len(self.tokens)


POSITIONAL = ("tokens", "targets", "loss_weight", "modality", "local_position", "payload_index", "image")
"""The fields of a sequence with one entry a position."""

PAYLOADS = {
    Modality.TENSOR: "tensors",
    Modality.FRAME: "frames",
    Modality.PATCH: "patches",
    Modality.IMAGE: "images",
}
"""The field of a sequence that speaks for a modality."""
