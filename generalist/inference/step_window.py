"""A key-value cache that slides over an episode: every row keeps its prefix and newest steps, and nothing is computed twice.

A row's slots are a ring of `steps` steps and, behind it, its prefix (instruction and prompt):

    ring of 4   step 8   step 5   step 6   step 7  |  prefix          step 9 will overwrite step 5
    position     p + 3    p        p + 1    p + 2  |  0 ... p - 1

Positions give the age of a step within the row's window: they stay within those of training, are unique, and keep the prefix as
far from the oldest step as in training. A step's position changes while it is held, by the same amount for all held steps: keys
stay as they were rotated, and the queries that meet them are rotated further instead. A step's keys and values in deeper layers
were computed with the steps that were held then: a step sees its window directly and earlier steps through it, as with
Transformer-XL's memory, which Gato uses for acting (section 2.5).

Where actions are fed back, nothing is chosen at the last number of an action. It waits for the next step and is appended with it,
in front of its observation, which saves a forward pass: a step's slots begin with the last number of the step before.

    slots of step 7   last of 6 | observation | all numbers of 7 but the last

That number sees what its successor's window holds, as in a training row that begins with the window's oldest step.

Dimension key: B rows, R rows that start, W steps, N positions per step, P prefix slots, S = W·N + P slots, A positions read, V
vocabulary, I image slots.
"""

import dataclasses
from collections.abc import Sequence as Sequences
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from generalist.data.batch import Batch
from generalist.inference.decode import empty_caches, empty_images, extend, hold_images, without_images, without_places
from generalist.inference.in_turn import act_in_turn
from generalist.inference.rows import bucket, filled, pad_payloads, stack_rows
from generalist.inference.structure import Structure, compiled
from generalist.inference.weights import Weights
from generalist.model.attention import Cache, Slide
from generalist.model.constrain import constrain
from generalist.model.cross_attention import VisualKeys
from generalist.model.visual import ImageCache
from generalist.tokenizers.sequence import Sequence

# Prefixes per call: a single shape, a single compilation. Rows that step apart also start one by one.
STARTED_AT_ONCE = 4


@compiled(static_argnames=("structure", "dtype"))
def prefix_caches(
    structure: Structure, params: Any, batch: Batch, dtype: Any
) -> tuple[list[Cache], list[VisualKeys] | None]:
    """Computes prefixes, in caches of their own: one program, however long the rings are behind which they are put.

    Args:
        batch: the prefixes, (R, P) positions.
        dtype: of the caches.

    Returns:
        The caches, and the keys of the prefixes' images if there are any.
    """
    model, (count, length) = structure.model(params), batch.tokens.shape  # (R, P)
    keys, seen = None, None
    if model.visual is not None and batch.row_images.shape[1]:
        keys = model.visual.keys(batch, structure.dtype)
        number = jnp.arange(1, batch.row_images.shape[1] + 1)[None]
        # A padded image slot has number 0, which no position attends to.
        seen = ImageCache(keys, jnp.where(number <= batch.image.max(axis=1, keepdims=True), number, 0))
    # Images of cross-attention are in the keys now; projected ones are positions, which need no table of their places.
    batch = without_places(batch) if model.visual is None else without_images(batch)
    fresh = model.empty_caches(count, length, dtype)
    _, fresh = model.hidden_cached(
        *(batch, fresh, batch.segment, batch.position, jnp.int32(0), seen), dtype=structure.dtype
    )
    return fresh, keys


@compiled(static_argnames=("structure", "axis", "start"), donate_argnames=("whole",))
def put_prefixes(
    structure: Structure,
    whole: Float[Array, "..."],
    part: Float[Array, "..."],
    rows: Int[Array, "R"],
    axis: int,
    start: int,
) -> Float[Array, "..."]:
    """Writes the keys or values of prefixes behind the rings of their rows: a small program, which all layers share.

    Args:
        whole: of a cache, (B · M, S, H), or of images, (B, M, I, T, H).
        part: the same of R rows, with fewer slots.
        rows: where each prefix belongs; numbers beyond the last row drop it.
        axis: that of the slots.
        start: the first slot.
    """
    del structure  # it names the mesh
    new = part.reshape(len(rows), -1, *part.shape[axis:])
    by_row = whole.reshape(-1, *new.shape[1:2], *whole.shape[axis:])
    written = by_row.at[rows, :, start : start + new.shape[2]].set(new, mode="drop").reshape(whole.shape)
    return constrain(written, "cells", None, None) if axis == 1 else written


class StepWindow:
    """Rows that act, each with its own start, prefix and window.

    Args:
        rows: B.
        steps: W.
        positions: N, including those of the action if actions are fed.
        carried: positions at the end of a step that are appended with the next one, in front of it.
        images: images per step for the frozen encoder.
        temperature: 0 takes the likeliest ids, and the median bin of a continuous number.
        apart: each row steps when it likes and has its own clock; otherwise all rows step together.

    Raises:
        ValueError: the model's positions are learned, so a step's position cannot change.
    """

    def __init__(
        self,
        generalist: Weights,
        rows: int,
        *,
        steps: int,
        positions: int,
        carried: int = 0,
        images: int = 0,
        temperature: float = 0.0,
        apart: bool = False,
    ):
        if generalist.config.model.learned_positions:
            raise ValueError(
                "acting slides a window over the episode, which needs rotary positions, but this model's trunk has learned ones "
                "(GPT-2): act with another trunk"
            )
        self._generalist, self._temperature = generalist, temperature
        continuous = generalist.vocabulary.range("continuous")
        self._numbers = (continuous.start, continuous.stop)
        self.rows, self.steps, self.positions, self.carried, self.images = rows, steps, positions, carried, images
        self._caches = empty_caches(generalist, rows, steps * positions)
        # Projected images are positions like others, and nothing of them is held.
        crossed = generalist.encoder is not None and not generalist.projects
        self._held = empty_images(generalist, rows, steps * images) if crossed else None
        self._prefix_slots = self._prefix_image_slots = 0
        self._prefix = np.zeros((rows,), np.int32)  # positions of each row's prefix
        self._prefix_images = np.zeros((rows,), np.int32)
        self._first = np.zeros((rows,), np.int64)  # clock at each row's first step
        self._seed = np.zeros((rows,), np.uint32)
        self._apart, self._at_once = apart, 1 if apart else STARTED_AT_ONCE
        self._clock = np.full((rows,), -1, np.int64)  # index of each row's newest step

    def start(self, rows: Sequences[int], prefixes: Sequences[Sequence], seeds: Sequences[int | np.integer]) -> None:
        """Begins an episode in some rows: their contents are dropped and their prefixes computed.

        Args:
            prefixes: one per row in `rows`, of any length.
            seeds: determine, together with the step's number, what is sampled in a row.
        """
        # Slots first: filling writes into them.
        self.reserve(max(len(prefix) for prefix in prefixes), max(_images_of(prefix) for prefix in prefixes))
        for at in range(0, len(rows), self._at_once):
            self._fill(rows[at : at + self._at_once], prefixes[at : at + self._at_once])
        for row, prefix, seed in zip(rows, prefixes, seeds, strict=True):
            self._prefix[row], self._prefix_images[row] = len(prefix), _images_of(prefix)
            self._first[row], self._seed[row] = self._clock[row] + 1, np.uint32(int(seed) % 2**32)

    def append(
        self,
        batch: Batch,
        allowed: Bool[Array, "#B A V"],
        action: Batch | None = None,
        fed: Int[np.ndarray, "B A"] | None = None,
        *,
        parallel: bool = False,
        acting: Bool[np.ndarray, "B"] | None = None,
    ) -> tuple[Int[np.ndarray, "B A"], Float[Array, "B A V"]]:
        """Feeds a step to all rows, behind the positions carried over from the one before. Returns the allowed ids chosen at its
        last A positions and the logits there; with `action`, chosen in turn, each fed back before the next; with `parallel`
        those of the A dimensions of an action, all chosen at its last position.

        Args:
            action: the position of an action's first number in each row, (B, 1), whose token is replaced.
            fed: what is fed back; None: what is chosen.
            acting: the rows that step, if rows step apart; None: all do. What the others are given is written where their next
                step will be, which overwrites it, and their results have no meaning.
        """
        before = self._clock
        self._clock = before + 1
        size, turn = batch.tokens.shape[1], self._clock % self.steps  # (B,)
        at, slot = self._place(turn * self.positions), self._place(turn * self.images)
        index = self._index()
        newest = index[np.arange(self.rows), turn]  # place of the newest step in each row's window
        # Positions follow the prefix and the steps that are held, whatever slot they are written to.
        start = self._prefix + newest * self.positions - self.carried
        image = (self._prefix_images + newest * self.images)[:, None]
        segment = batch.segment.copy()
        segment[:, : self.carried] *= newest[:, None] > 0  # of the step before: the first of a window has none
        batch = dataclasses.replace(
            batch,
            position=(start[:, None] + np.arange(size)).astype(np.int32),  # (B, L)
            image=(batch.image + image).astype(np.int32),
            segment=segment,
        )
        # Images stay on the device; a batch without them is small enough to be copied by the call itself.
        placed = batch
        if batch.row_images.shape[1] and self._generalist.projects:
            placed = without_places(self._generalist.on_device(batch))
        elif batch.row_images.shape[1] and self._held is not None:
            placed = self._generalist.on_device(batch)
            # The ring of images turns with that of the steps.
            self._held = hold_images(*self._generalist.decoder, placed, self._held, slot)
            placed = without_images(placed)
        segment, position = self._slots(index)
        caches, images = self._caches, self._images(index)
        arguments = (*self._generalist.decoder, caches, segment, position, at, placed, images, allowed)
        settings: dict[str, Any] = {
            "slide": self._slide(newest),
            "sample": self._temperature > 0,
            "temperature": self._temperature,
            "draws": self._draws(size - self.carried),
            "numbers": self._numbers,
        }
        if action is None:
            ids, logits, self._caches = extend(*arguments, **settings, parallel=parallel)
        else:
            # Numbers follow all images of their step.
            place = {"position": start[:, None] + size, "image": image + self.images}
            action = dataclasses.replace(action, **{name: one.astype(np.int32) for name, one in place.items()})
            ids, logits, self._caches = act_in_turn(*arguments, action, fed, **settings)
        if acting is not None:
            self._clock = np.where(acting, self._clock, before)
        return np.asarray(ids), logits

    def _place(self, slot: Int[np.ndarray, "B"]) -> Int[np.ndarray, "*B"]:
        """The first slot of a step: one per row if rows step apart, else the one of all."""
        return slot.astype(np.int32) if self._apart else np.asarray(slot[0], np.int32)

    def _index(self) -> Int[np.ndarray, "B W"]:
        """The place of each ring slot's step in its row's window, the oldest first; -1 for steps of an earlier episode."""
        # The ring's slot of step t is t mod W. Rows that step together have equal clocks, and differ in where an episode began.
        clock = self._clock[:, None]
        age = (clock - np.arange(self.steps)) % self.steps  # (B, W)
        when = clock - age
        # A row's window begins with its episode, or W steps ago.
        oldest = np.maximum(self._first[:, None], clock - self.steps + 1)
        return np.where(when >= oldest, when - oldest, -1)

    def _slots(self, index: Int[np.ndarray, "B W"]) -> tuple[Int[np.ndarray, "B S"], Int[np.ndarray, "B S"]]:
        """Segment and position of every slot. Those of the newest step that are not written yet come later than what attends, so
        they are not seen."""
        # A slot of another episode keeps its old numbers on the device; segment 0 hides it.
        offset = np.arange(self.positions)
        # Carried positions belong to the step before, which the window's first one has not.
        held = np.where(offset < self.carried, index[..., None] > 0, index[..., None] >= 0)  # (B, W, N)
        position = self._prefix[:, None, None] + index[..., None] * self.positions + offset - self.carried  # (B, W, N)
        behind = np.broadcast_to(np.arange(self._prefix_slots), (self.rows, self._prefix_slots))
        segment = np.concatenate([held.reshape(self.rows, -1), behind < self._prefix[:, None]], axis=1)
        position = np.concatenate([position.reshape(self.rows, -1), behind], axis=1)
        return segment.astype(np.int32), np.where(segment, position, 0).astype(np.int32)

    def _slide(self, newest: Int[np.ndarray, "B"]) -> Slide:
        """The distance of the ring's positions from those at which its keys were rotated, which count the whole episode."""
        gone = self._clock - self._first - newest  # steps that have left the window
        # On the host: the call of the compiled step copies them in a fraction of the time.
        moved = (gone * self.positions).astype(np.int32)
        if not self._prefix_slots:
            return Slide(moved, None)
        ring = np.arange(self.steps * self.positions + self._prefix_slots) < self.steps * self.positions
        return Slide(moved, ring)

    def _images(self, index: Int[np.ndarray, "B W"]) -> ImageCache | None:
        """The held images, numbered within each row's window."""
        if self._held is None or not self.steps * self.images + self._prefix_image_slots:
            return None
        # The images of the prefix come first, then those of the steps in the order of their age.
        number = self._prefix_images[:, None, None] + index[..., None] * self.images + np.arange(self.images) + 1
        # (B, W, images per step) → (B, I): 0 is an empty slot, which no position attends to.
        number = np.where(index[..., None] >= 0, number, 0).reshape(self.rows, -1)
        behind = np.arange(1, self._prefix_image_slots + 1)[None]
        behind = np.where(behind <= self._prefix_images[:, None], behind, 0)
        return ImageCache(self._held, jnp.asarray(np.concatenate([number, behind], axis=1), jnp.int32))

    def _draws(self, read: int) -> UInt[np.ndarray, "B 2"] | None:
        """Seed and number of the position within the episode, which determine the samples; None if nothing is sampled. `read`:
        positions of the step up to the one that is read."""
        if not self._temperature:
            return None
        # Positions are counted over the whole episode, so no two of them draw with the same numbers.
        number = np.maximum(self._clock - self._first, 0) * (self.positions + 1) + read
        return np.stack([self._seed, number.astype(np.uint32)], axis=1)

    def reserve(self, prefix: int, images: int) -> None:
        """Adds slots for longer prefixes and more of their images."""

        def padded(leaf: Shaped[Array, "..."], more: int, axis: int) -> Shaped[Array, "..."]:
            return jnp.pad(leaf, [(0, more if one == axis else 0) for one in range(leaf.ndim)])

        # Only ever grown, and in buckets: each new size compiles the step again.
        if (more := bucket(prefix) - self._prefix_slots) > 0:
            self._caches = jax.tree.map(partial(padded, more=more, axis=1), self._caches)
            self._prefix_slots += more
        if self._held is not None and (more := bucket(images, 4) - self._prefix_image_slots) > 0:
            self._held = jax.tree.map(partial(padded, more=more, axis=2), self._held)
            self._prefix_image_slots += more

    def _fill(self, rows: Sequences[int], prefixes: Sequences[Sequence]) -> None:
        """Computes a few prefixes in one call."""
        if not self._prefix_slots:  # no row has a prefix
            return
        missing = self._at_once - len(rows)
        batch = stack_rows(
            filled(list(prefixes), self._at_once),
            self._prefix_slots,
            pad=self._generalist.vocabulary.pad,
            frame_tokens=self._generalist.config.model.frame_tokens,
        )
        # Rows that step apart are a server's, which compiles ahead: one program without shown steps, one for any number of them.
        least = self._prefix_slots if self._apart else 1
        placed = self._generalist.on_device(pad_payloads(batch, self._prefix_image_slots, least))
        structure, params = self._generalist.decoder
        fresh, keys = prefix_caches(structure, params, placed, self._caches[0].key.dtype)
        # Row numbers beyond the last one are dropped: the copies go nowhere.
        index = jnp.asarray([*rows, *[self.rows] * missing], jnp.int32)
        put = partial(put_prefixes, structure)
        ring, images = self.steps * self.positions, self.steps * self.images
        self._caches = jax.tree.map(
            lambda whole, part: put(whole, part, index, axis=1, start=ring), self._caches, fresh
        )
        if keys is not None:
            self._held = jax.tree.map(
                lambda whole, part: put(whole, part, index, axis=2, start=images), self._held, keys
            )


def _images_of(sequence: Sequence) -> int:
    """Number of images in a prefix."""
    return int(sequence.image.max(initial=0))
