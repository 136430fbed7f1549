"""Lanes in which texts are written: what each holds, and the compiled steps over all of them.

A lane keeps what it has read after its text has ended. A prompt that begins like what a lane holds, such as one with the same
shots, is continued from there: whole pieces are found by their content, so that a text does not depend on what was found.

Dimension key: B lanes, V vocabulary, T cells and F channels of an image's features.
"""

import dataclasses
from collections.abc import Sequence as Sequences
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Shaped

from generalist.inference.decode import empty_caches, empty_images
from generalist.inference.prompt import context
from generalist.inference.rows import stack_rows
from generalist.inference.sampling import Decoding
from generalist.inference.weights import Weights
from generalist.inference.writing import writable
from generalist.serve.lane_steps import Choosing, Chosen, LaneState, copy_lane, read, see, write
from generalist.serve.pieces import Piece, cut, piece_sizes, whole_prompts
from generalist.tokenizers.sequence import Sequence


@dataclasses.dataclass(eq=False)
class Lane:
    """What the host knows of a lane."""

    number: int
    names: list[bytes] = dataclasses.field(default_factory=list)
    """Of the pieces that it holds, from the first position on."""
    length: int = 0
    """Number of positions that it holds."""
    images: int = 0
    """Number of images that it has seen."""
    features: list[Float[Array, "1 T F"]] = dataclasses.field(default_factory=list)
    """Of the images that are to stand in the pieces that wait."""
    busy: bool = False
    used: int = 0
    """When it was last taken, as a count: the lane that was not used for longest is taken first."""
    waiting: list[Piece] = dataclasses.field(default_factory=list)
    """Pieces that are still to be read."""
    unseen: list[Float[np.ndarray, "1 ..."]] = dataclasses.field(default_factory=list)
    """Images that are still to be seen, prepared for the encoder."""
    decoding: Decoding = Decoding()
    text: int = 0
    """Number of its text among those of its request."""
    step: int = 0
    """Number of the next id within the text."""
    wanted: bool = False
    """Whether the likeliest ids are needed."""

    @property
    def reading(self) -> bool:
        """Whether something of its prompt is still to be read."""
        return bool(self.waiting or self.unseen)


class ChatLanes:
    """A fixed number of lanes.

    Args:
        lanes: B.
        images: number of images per lane.
        sizes: positions of a piece of text, rising.
    """

    def __init__(self, weights: Weights, lanes: int, images: int, sizes: tuple[int, ...]):
        self.sizes = piece_sizes(weights, sizes, images)
        self.images = images if weights.encoder is not None else 0
        self.lanes = [Lane(number) for number in range(lanes)]
        self.context = context(weights)
        self.reused = self.read_positions = 0
        self._taken = 0
        self.exchange(weights)

    def exchange(self, weights: Weights) -> None:
        """Takes other weights of the same shapes; everything that was read is forgotten. No lane may be busy."""
        assert not any(lane.busy for lane in self.lanes)
        self.weights = weights
        self._state = empty_state(weights, len(self.lanes), self.images, self.sizes[-1])
        self._allowed = jnp.asarray(writable(weights)[0])
        pad = weights.vocabulary.pad
        one = weights.assembler.text(np.array([pad], np.int32), bos=False, eos=False)
        self._position = stack_rows([one] * len(self.lanes), 1, pad=pad)
        self._alone = stack_rows([one], 1, pad=pad)
        for lane in self.lanes:
            lane.names, lane.length, lane.images = [], 0, 0

    @property
    def free(self) -> int:
        """Number of lanes that are not busy."""
        return sum(not lane.busy for lane in self.lanes)

    def take(self, sequence: Sequence, pieces: list[Piece], decoding: Decoding, text: int, wanted: bool) -> Lane:
        """Gives a prompt to a lane that is not busy, one must be: the one that holds the longest beginning of it, or a copy.

        Args:
            pieces: the sequence as `cut` gives it.
        """
        source = max(self.lanes, key=lambda lane: (_common(lane.names, pieces), not lane.busy))
        common = min(_common(source.names, pieces), len(pieces) - 1)  # the last piece gives the logits to begin with
        lane = source
        if source.busy or not common:
            lane = min((one for one in self.lanes if not one.busy), key=lambda one: one.used)
        if common and lane is not source:
            self._state = copy_lane(
                self.weights.decoder[0], self._state, np.int32(source.number), np.int32(lane.number)
            )
        self._taken += 1
        before = pieces[common - 1] if common else None
        lane.used, lane.names = self._taken, [one.name for one in pieces[:common]]
        lane.length, lane.images = (before.stop, before.images) if before is not None else (0, 0)
        lane.waiting, lane.unseen = (
            pieces[common:],
            [sequence.images[at : at + 1] for at in range(len(sequence.images))],
        )
        lane.unseen, lane.features = lane.unseen[lane.images :], []
        lane.decoding, lane.text, lane.step, lane.wanted = decoding, text, 0, wanted
        lane.busy = True  # at the end: a lane that could not be given the prompt stays free
        self.reused += lane.length
        return lane

    def release(self, lane: Lane) -> None:
        """The lane's text has ended; what was read of its prompt is kept."""
        lane.busy, lane.waiting, lane.unseen, lane.features = False, [], [], []

    def read(self, lane: Lane) -> None:
        """Sees an image or reads a piece of the lane's prompt, and waits until that is computed."""
        decoder = self.weights.decoder
        if lane.unseen:
            # Images first: the positions that follow them see them.
            features = self._features(lane.unseen.pop(0))
            if self.weights.projects:
                lane.features.append(features)
            else:
                image = dataclasses.replace(self._alone, images=features, row_images=np.zeros((1, 1), np.int32))
                self._state = see(*decoder, self._state, np.int32(lane.number), np.int32(lane.images), image)
            lane.images += 1
            jax.block_until_ready(self._state.held if not self.weights.projects else features)
            return
        piece = lane.waiting.pop(0)
        shown, lane.features = lane.features[: piece.shown], lane.features[piece.shown :]
        if whole_prompts(self.weights):
            # Of every prompt the same number: others would be other programs.
            shown += [self._no_image] * (self.images - len(shown))
        at = np.arange(piece.batch.tokens.shape[1], dtype=np.int32)[None] + np.int32(lane.length)
        batch = dataclasses.replace(piece.batch, position=at)
        self._state = read(
            *decoder,
            self._state,
            np.int32(lane.number),
            np.int32(lane.length),
            batch,
            np.int32(piece.size),
            np.int32(lane.images),
            shown,
        )
        lane.length = piece.stop
        lane.names.append(piece.name)
        self.read_positions += piece.size
        # Waited for, as every step is: whose turn comes next depends on how long this one took.
        jax.block_until_ready(self._state.logits)

    def _features(self, image: Shaped[np.ndarray, "1 ..."]) -> Float[Array, "1 T F"]:
        """The encoder's features of a prepared image, on every device."""
        features = self.weights.features(jnp.asarray(image)) if image.dtype == np.uint8 else jnp.asarray(image)
        return _on_all(self.weights, features)

    @cached_property
    def _no_image(self) -> Float[Array, "1 T F"]:
        """Features of an image that no position shows."""
        assert self.weights.encoder is not None
        pixels = self.weights.encoder(np.zeros((1, 8, 8, 3), np.uint8))
        return jnp.zeros_like(self._features(pixels))

    def write(self, active: Sequences[Lane]) -> Chosen:
        """Chooses the next id of the active lanes and appends it; what is chosen in others has no meaning. Arrays are NumPy's."""
        number = [lane.number for lane in active]
        mask = np.zeros((len(self.lanes),), bool)
        mask[number] = True
        count = [lane.length for lane in self.lanes]
        images = np.array([lane.images for lane in self.lanes], np.int32)
        chosen, self._state = write(
            *self.weights.decoder,
            self._state,
            np.array(count, np.int32),
            mask,
            dataclasses.replace(self._position, image=images[:, None].copy()),
            images,
            self._allowed,
            self._choosing(active),
            np.bool_(any(lane.wanted for lane in active)),
        )
        for lane in active:
            lane.length, lane.step = lane.length + 1, lane.step + 1
        return Chosen(*jax.tree.map(np.asarray, tuple(chosen)))

    def pieces(self, sequence: Sequence) -> list[Piece]:
        """The pieces in which a prompt is read."""
        return cut(self.weights, sequence, self.sizes)

    def _choosing(self, active: Sequences[Lane]) -> Choosing:
        settings = np.zeros((3, len(self.lanes)), np.float32)
        draws = np.zeros((len(self.lanes), 3), np.uint32)
        for lane in active:
            one = lane.decoding
            settings[:, lane.number] = one.temperature, one.top_k, one.top_p
            draws[lane.number] = one.seed % 2**32, lane.text, lane.step
        return Choosing(settings[0], settings[1].astype(np.int32), settings[2], draws)

    def logits(self) -> Float[Array, "B V"]:
        """Those at the last position of each lane."""
        return self._state.logits


def empty_state(weights: Weights, lanes: int, images: int, largest: int) -> LaneState:
    """Lanes that hold nothing.

    Args:
        images: number of images per lane; 0 if the weights have no encoder.
        largest: positions of the largest piece.
    """
    # A padded piece is written whole; one that is a whole prompt begins at the first slot.
    slots = context(weights) + (0 if whole_prompts(weights) else largest)
    # Images that stand in the sequence are positions like others, and nothing of them is held.
    held = empty_images(weights, lanes, images) if images and not weights.projects else None
    logits = jnp.zeros((lanes, weights.vocabulary.size), jnp.float32)
    return LaneState(empty_caches(weights, lanes, slots), _on_all(weights, held), _on_all(weights, logits))


def _on_all(weights: Weights, arrays: Any) -> Any:
    """Arrays of which every device has the whole."""
    mesh = weights.placing.mesh
    return arrays if mesh is None else jax.device_put(arrays, NamedSharding(mesh, P()))


def bytes_per_lane(weights: Weights, images: int, largest: int) -> int:
    """Device memory that one lane takes."""
    images = images if weights.encoder is not None else 0
    leaves = jax.tree.leaves(jax.eval_shape(lambda: empty_state(weights, 1, images, largest)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _common(names: list[bytes], pieces: list[Piece]) -> int:
    """Number of pieces at the beginning that are held."""
    count = 0
    while count < min(len(names), len(pieces)) and names[count] == pieces[count].name:
        count += 1
    return count
