"""Pieces, which represent the parts of a space, and sequences made of them: the structures that leave this folder.

Dimension key: T steps, L positions of a sequence, n positions of a piece, R payload rows, N tensors, F projection width,
M frames, S pixels per side of a frame, P patches, I images, K parallel actions, A dimensions of the largest of them.
"""

import dataclasses
from collections.abc import Sequence as Sequences
from enum import IntEnum
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8

ACTION_POSITION = 511
"""The one local position that all action tokens share (Gato, appendix C.3); observations use lower ones."""

PATCH_SIZE = 16
"""Pixels per side of an image patch (Gato, section 2.1)."""


Images = Literal["patches", "frame", "encoder", "patches+encoder", "frame+encoder", "projected"]
"""How images enter: in the sequence as patches (Gato) or as one frame, through the frozen encoder and cross-attention
(Flamingo), or both; or the encoder's features projected into positions of the sequence (LLaVA)."""


class Visual(Protocol):
    """Turns images into the input of the model's cross-attention path: the encoder's pixels, or its stored features."""

    @property
    def empty(self) -> Shaped[np.ndarray, "0 ..."]:
        """Zero images, with the trailing shape and dtype that calls return."""

    def __call__(self, images: UInt8[np.ndarray, "I H W C"]) -> Shaped[np.ndarray, "I ..."]:
        """The images in that form."""


@runtime_checkable
class ImageCodes(Protocol):
    """Turns images into codes and back: an image tokenizer."""

    @property
    def side(self) -> int:
        """Codes along each side of an image."""

    @property
    def codebook(self) -> int:
        """Number of different codes."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal codes."""

    def encode(self, images: Sequences[UInt8[np.ndarray, "_H _W _C"]]) -> Int32[np.ndarray, "N T"]:
        """The codes of images of any size, T = side² each, row by row."""

    def decode(self, codes: Int32[np.ndarray, "N T"]) -> UInt8[np.ndarray, "N S S 3"]:
        """The images of codes."""


class Modality(IntEnum):
    """The kind of a position. TENSOR, PATCH and FRAME embed a payload instead of the token; IMAGE embeds the token, and its
    payload goes to cross-attention. Where images are projected, IMAGE is the first of an image's positions, PROJECTED the others,
    and all of them embed the payload."""

    # The numbers are stored in recorded features and used as array values: append, never renumber.
    TEXT = 0
    DISCRETE = 1
    CONTINUOUS = 2
    SPECIAL = 3
    TENSOR = 4
    PATCH = 5
    FRAME = 6
    IMAGE = 7
    PROJECTED = 8


@dataclasses.dataclass(frozen=True)
class Piece:
    """The values of one part of a space over T steps, as positions of a sequence."""

    modality: Modality
    tokens: Int32[np.ndarray, "n"]
    """All steps one after the other; the pad id where a payload is embedded instead."""
    lengths: Int32[np.ndarray, "T"]
    """Positions per step; their sum is n."""
    payload: Shaped[np.ndarray, "R ..."] | None = None
    """TENSOR: float32 (n, size). PATCH: uint8 (n, 16, 16, 3). FRAME: uint8 (n / tokens per frame, S, S, 3).
    IMAGE: uint8 (n, H, W, C), of any size: the assembler converts it to the input of the frozen encoder."""
    offset: int = 0
    """TENSOR: first column of this part in the run's projection."""
    intervals: Int32[np.ndarray, "n 4"] | None = None
    """PATCH: row low, row high, column low, column high, in 0..128."""


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One example of L positions."""

    tokens: Int32[np.ndarray, "L"]
    """Input ids."""
    targets: Int32[np.ndarray, "L"]
    """The id to predict from each position; the pad id where nothing is predicted."""
    loss_weight: Float32[np.ndarray, "L"]
    """Weight of that prediction, 0 where nothing is predicted."""
    modality: Int32[np.ndarray, "L"]
    """A `Modality`."""
    local_position: Int32[np.ndarray, "L"]
    """Index within the step's observation; `ACTION_POSITION` for actions; 0 for text and documents."""
    payload_index: Int32[np.ndarray, "L"]
    """Row among this sequence's embeddings of its modality (FRAME: frame · tokens per frame + j); else 0."""
    image: Int32[np.ndarray, "L"]
    """1 + index of the image, in the order of positions, that this position attends to; 0: none."""
    block: Int32[np.ndarray, "L"]
    """Positions with the same number above 0 see each other in both directions (`model.blocks`), others only earlier ones."""
    # Payloads in the order of positions. They are kept apart from the positions, most of which have none.
    tensors: Float32[np.ndarray, "N F"]
    """Each tensor in its own columns, zeros elsewhere."""
    frames: UInt8[np.ndarray, "M S S 3"]
    patches: UInt8[np.ndarray, "P 16 16 3"]
    intervals: Int32[np.ndarray, "P 4"]
    """Each patch's row low, row high, column low, column high."""
    images: Shaped[np.ndarray, "I ..."]
    """Per image the frozen encoder's input (pixels) or its output (features); see `Visual`."""
    # Parallel actions to predict: no inputs, and several targets per position, so they are kept apart as payloads are.
    actions: Int32[np.ndarray, "K A"] = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """The ids of each action's dimensions; the pad id behind its last one."""
    action_weight: Float32[np.ndarray, "K A"] = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """Weight of each prediction, 0 behind the last dimension."""
    action_from: Int32[np.ndarray, "K"] = dataclasses.field(default_factory=lambda: np.zeros((0,), np.int32))
    """The position that each action is predicted from."""

    def __len__(self) -> int:
        return len(self.tokens)


POSITIONAL = ("tokens", "targets", "loss_weight", "modality", "local_position", "payload_index", "image", "block")
"""The fields of a sequence with one entry per position."""

# Batches have fields of the same names, so that packing treats all payloads with one loop.
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
