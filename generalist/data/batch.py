"""The one structure at the model's door: a batch of packed sequences, and its sizes.

A batch consists of equal *shards*, each packed from its own stream of examples: a host makes only the shards that its devices
need, and a position's payload always lies in the position's shard, so that looking it up needs no communication.

Dimension key: B rows, L positions, N tensors, F projection width, M frames, S pixels per side, P patches, J images, I images per
row, K parallel actions, A dimensions of the largest of them.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8

from generalist.data.rows import rows_at, rows_of_shards
from generalist.tokenizers.pieces import PATCH_SIZE, Modality

if TYPE_CHECKING:
    ArrayLike = Any  # numpy on the way to the devices, JAX on them: neither's methods are common to both
else:
    ArrayLike = np.ndarray | jax.Array | jax.ShapeDtypeStruct


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences packed to a fixed shape. Payloads lie in flat arrays, shard after shard, each shard padded with zero rows."""

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
    """Which sequence of its row a position belongs to, counted from 1; 0 is padding."""
    payload_index: Int32[ArrayLike, "B L"]
    """Row among its shard's embeddings of the position's modality; 0 where there is no payload."""
    image: Int32[ArrayLike, "B L"]
    """1 + which of its row's images a position attends to; 0: none."""
    block: Int32[ArrayLike, "B L"]
    """Positions of a segment with the same number above 0 see each other in both directions, if the model has `blocks`."""
    source: Int32[ArrayLike, "B L"]
    """Id of the data source that the sequence is from."""
    tensors: Float32[ArrayLike, "N F"]
    frames: UInt8[ArrayLike, "M S S 3"]
    patches: UInt8[ArrayLike, "P 16 16 3"]
    intervals: Int32[ArrayLike, "P 4"]
    """Each patch's row low, row high, column low, column high in 0..128."""
    images: Shaped[ArrayLike, "J ..."]
    """For cross-attention: the frozen encoder's input, uint8 (J, S, S, 3), or its output, float16 (J, cells, channels)."""
    row_images: Int32[ArrayLike, "B I"]
    """Which of its shard's `images` belong to a row, in the order of their positions; unused places hold 0, and no position
    attends to them."""
    actions: Int32[ArrayLike, "K A"] = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """Parallel actions: the ids to predict together from one position."""
    action_weight: Float32[ArrayLike, "K A"] = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """Weight of each of these predictions; 0 where there is none."""
    action_from: Int32[ArrayLike, "K"] = dataclasses.field(default_factory=lambda: np.zeros((0,), np.int32))
    """The position that an action is predicted from, among all positions of its shard: row · L + place in the row."""
    # Static: it decides the shapes in `gather`, so another number of shards compiles another program.
    shards: int = dataclasses.field(default=1, metadata={"static": True})
    """Number of equal pieces, in order, into which the rows and each payload array are divided."""

    def gather(
        self, payload: Shaped[ArrayLike, "N ..."], index: Int32[ArrayLike, "B ..."]
    ) -> Shaped[jax.Array, "B ..."]:
        """Rows of a payload array, or of any array with equal parts per shard, by their index within their shard."""
        if self.shards == 1:
            return rows_at(jnp.asarray(payload), jnp.asarray(index))
        pieces, within = (jnp.asarray(x).reshape(self.shards, -1, *x.shape[1:]) for x in (payload, index))
        found = rows_of_shards(pieces, within)
        return found.reshape(*index.shape, *payload.shape[1:])


# How many payloads a batch holds depends on what is packed, but its shapes must not: each has room for a fixed number.
BUDGETS = ("tensors", "frames", "patches", "images", "actions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """The sizes of a batch; `tensors`, `frames`, `patches`, `images` and `actions` are budgets of the whole batch, divided
    equally among its shards."""

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
    """Maximum number of images per row; 0: rows have no table of their images (`Batch.row_images`), and no limit."""
    image_shape: tuple[int, ...] = (0, 0, 3)
    """Shape of one image, see `Batch.images`."""
    image_dtype: str = "uint8"
    actions: int = 0
    """Parallel actions."""
    action_dimensions: int = 0
    """Dimensions of the largest parallel action."""
    shards: int = 1

    def __post_init__(self) -> None:
        # First, since the remainders below divide by the number of shards.
        for name in ("rows", "length", "shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("rows", *BUDGETS):
            if getattr(self, name) % self.shards:
                raise ValueError(
                    f"data.{name} = {getattr(self, name)} must be a multiple of data.shards = {self.shards}, "
                    "since all shards are equal"
                )

    @property
    def shard(self) -> "BatchSpec":
        """The sizes of one shard."""
        parts = {name: getattr(self, name) // self.shards for name in ("rows", *BUDGETS)}
        return dataclasses.replace(self, **parts, shards=1)

    def zeros(self, pad: int) -> Batch:
        """A batch of padding, with room for every payload."""
        shape = (self.rows, self.length)
        fields = ("targets", "local_position", "position", "segment", "payload_index", "image", "block", "source")
        zeros: dict[str, Any] = {name: np.zeros(shape, np.int32) for name in fields}
        return Batch(
            tokens=np.full(shape, pad, np.int32),
            loss_weight=np.zeros(shape, np.float32),
            # A modality without payload, so that padding looks up none.
            modality=np.full(shape, Modality.SPECIAL, np.int32),
            tensors=np.zeros((self.tensors, self.projection_width), np.float32),
            frames=np.zeros((self.frames, self.frame_size, self.frame_size, 3), np.uint8),
            patches=np.zeros((self.patches, PATCH_SIZE, PATCH_SIZE, 3), np.uint8),
            intervals=np.zeros((self.patches, 4), np.int32),
            images=np.zeros((self.images, *self.image_shape), self.image_dtype),
            row_images=np.zeros((self.rows, self.row_images), np.int32),
            actions=np.full((self.actions, self.action_dimensions), pad, np.int32),
            action_weight=np.zeros((self.actions, self.action_dimensions), np.float32),
            action_from=np.zeros((self.actions,), np.int32),
            **zeros,
        )
