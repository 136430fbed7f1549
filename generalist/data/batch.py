"""The one structure at the model's door: a batch of packed sequences, and its sizes.

Dimension key: B rows, L positions, N tensors, F projection width, M frames, S pixels on a side, P patches, I images a row.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8

from generalist.tokenizers.pieces import PATCH_SIZE, Modality

if TYPE_CHECKING:
    ArrayLike = Any  # numpy on the way to the devices, JAX on them: neither's methods are common to both
else:
    ArrayLike = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences packed to a fixed shape. Payloads stand in flat arrays for the whole batch, padded with zero rows."""

    tokens: Int32[ArrayLike, "B L"]
    """Input ids."""
    targets: Int32[ArrayLike, "B L"]
    """The id to predict from each position."""
    loss_weight: Float32[ArrayLike, "B L"]
    """Weight of that prediction; 0 where there is none."""
    modality: Int32[ArrayLike, "B L"]
    """A `Modality`: where the embedding comes from."""
    local_position: Int32[ArrayLike, "B L"]
    """Index within a timestep."""
    position: Int32[ArrayLike, "B L"]
    """Index within the segment: order in time."""
    segment: Int32[ArrayLike, "B L"]
    """0 is padding; sequences of a row count from 1."""
    payload_index: Int32[ArrayLike, "B L"]
    """Row among the batch's embeddings of the position's modality; 0 where none."""
    image: Int32[ArrayLike, "B L"]
    """1 + which of its row's images a position attends to; 0: none."""
    source: Int32[ArrayLike, "B L"]
    """Which data source the sequence is from."""
    tensors: Float32[ArrayLike, "N F"]
    frames: UInt8[ArrayLike, "M S S 3"]
    patches: UInt8[ArrayLike, "P 16 16 3"]
    intervals: Int32[ArrayLike, "P 4"]
    """Each patch's row low, row high, column low, column high in 0..128."""
    images: Shaped[ArrayLike, "J ..."]
    """For cross-attention: what the frozen encoder takes, uint8 (J, S, S, 3), or gave, float16 (J, cells, channels)."""
    row_images: Int32[ArrayLike, "B I"]
    """Which of `images` are a row's, in the order of their positions; padding repeats the first one, and no position
    attends to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """The sizes of a batch; `tensors`, `frames`, `patches` and `images` are budgets for the whole batch."""

    rows: int
    length: int
    tensors: int
    projection_width: int
    frames: int
    frame_size: int
    frame_tokens: int = 1
    patches: int = 0
    images: int = 0
    row_images: int = 0
    """Images a row at most."""
    image_shape: tuple[int, ...] = (0, 0, 3)
    """What one image is: see `Batch.images`."""
    image_dtype: str = "uint8"

    def __post_init__(self) -> None:
        for name in ("rows", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")

    def zeros(self, pad: int) -> Batch:
        """A batch of padding, with room for every payload."""
        shape = (self.rows, self.length)
        fields = ("targets", "local_position", "position", "segment", "payload_index", "image", "source")
        return Batch(
            tokens=np.full(shape, pad, np.int32),
            loss_weight=np.zeros(shape, np.float32),
            modality=np.full(shape, Modality.SPECIAL, np.int32),
            tensors=np.zeros((self.tensors, self.projection_width), np.float32),
            frames=np.zeros((self.frames, self.frame_size, self.frame_size, 3), np.uint8),
            patches=np.zeros((self.patches, PATCH_SIZE, PATCH_SIZE, 3), np.uint8),
            intervals=np.zeros((self.patches, 4), np.int32),
            images=np.zeros((self.images, *self.image_shape), self.image_dtype),
            row_images=np.zeros((self.rows, self.row_images), np.int32),
            **{name: np.zeros(shape, np.int32) for name in fields},
        )
