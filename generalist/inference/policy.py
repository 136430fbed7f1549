"""A batched policy: many environments of one layout act together, each in its own row of a key-value cache.

All rows share one clock. A step appends one observation (and the actions) to the caches; once they hold `steps` steps they
are rebuilt from the newest half, so the context is always between half a window and a whole one, as in training, where
windows begin anywhere. Positions restart with it.

Dimension key: B lanes, S positions of a step, A action dimensions, V vocabulary.
"""

import dataclasses
from collections import deque
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from generalist.data.batch import Batch
from generalist.inference.load import Generalist
from generalist.inference.rows import bucket, stack_rows
from generalist.model.attention import MASKED, Cache

# Fields of a batch with a (rows, positions) shape.
POSITIONAL = ("tokens", "targets", "modality", "local_position", "payload_index", "position", "segment", "source", "loss_weight")


@partial(jax.jit, static_argnames=("graph", "outputs"), donate_argnames=("caches",))
def extend(
    graph: nnx.GraphDef,
    params: Any,
    caches: list[Cache],
    cache_segment: Int[Array, "B S"],
    cache_position: Int[Array, "B S"],
    start: Int[Array, ""],
    batch: Batch,
    ranges: Int[Array, "A 2"],
    outputs: int,
) -> tuple[Int[Array, "B A"], list[Cache]]:
    """Appends a batch at slot `start` and reads the greedy tokens off its last `outputs` positions.

    A token outside its `ranges` row (low, high) can't be chosen: an action is always one that the task has.
    """
    model = nnx.merge(graph, params)
    hidden, caches = model.hidden_cached(batch, caches, cache_segment, cache_position, start)
    logits = model.logits(hidden[:, hidden.shape[1] - outputs :])
    return jnp.argmax(confine(logits, ranges), axis=-1).astype(jnp.int32), caches


def confine(logits: Float[Array, "B A V"], ranges: Int[Array, "A 2"]) -> Float[Array, "B A V"]:
    """Logits with everything outside each position's id range masked."""
    ids = jnp.arange(logits.shape[-1])[None, None, :]
    return jnp.where((ids >= ranges[None, :, 0, None]) & (ids < ranges[None, :, 1, None]), logits, MASKED)


class ControlPolicy:
    """Acts greedily in `lanes` environments of one layout.

    Args:
        generalist: the weights with their tokenizers.
        layout: name of the layout that all lanes share.
        lanes: how many environments.
    """

    def __init__(self, generalist: Generalist, layout: str, lanes: int):
        self.generalist, self.lanes = generalist, lanes
        self.layout = generalist.layouts[layout]
        control = generalist.control(layout)
        self.window, self.hidden = control.steps, control.hide_actions > 0
        self.ranges = np.asarray(self.layout.action.valid_ranges)
        self._pad = generalist.vocabulary.pad
        self._frame_tokens = generalist.config.model.frame_tokens
        self._history: deque[Batch] = deque(maxlen=max(1, self.window // 2))
        self._prefix: Batch | None = None

    def reset(self, instructions: list[str]) -> None:
        """Starts an episode in every lane, each with its instruction."""
        if len(instructions) != self.lanes:
            raise ValueError(f"the policy has {self.lanes} lanes but got {len(instructions)} instructions")
        sequences = [self.generalist.assembler.instruction(text) for text in instructions]
        length = bucket(max((len(sequence.tokens) for sequence in sequences), default=1), 4)
        self._prefix = stack_rows(sequences, max(length, 4), pad=self._pad, frame_tokens=self._frame_tokens)
        self._history.clear()
        self._caches: list[Cache] | None = None

    def act(self, observations: list[Any], active: np.ndarray | None = None) -> list[Any]:
        """One action a lane. Lanes that are not `active` (bool (B,)) get one too, which nobody needs to use."""
        if self._prefix is None:
            raise ValueError("call reset() with the instructions before act()")
        step = self._observe(observations)
        tokens = self._decode_hidden(step) if self.hidden else self._decode_in_turn(step)
        return self.layout.action.decode_batch(np.asarray(tokens))

    def _observe(self, observations: list[Any]) -> Batch:
        """All lanes' observations in one call of the tokenizer, as if they were the steps of one episode."""
        values = self.layout.observation.stack(observations)
        flat = self.generalist.assembler.step(self.layout, values, hide_actions=self.hidden)
        width = len(flat.tokens) // self.lanes
        whole = stack_rows([flat], len(flat.tokens), pad=self._pad, frame_tokens=self._frame_tokens)
        rows = {name: getattr(whole, name).reshape(self.lanes, width) for name in POSITIONAL}
        return dataclasses.replace(whole, **rows)

    def _append(self, batch: Batch, outputs: int, ranges: np.ndarray) -> np.ndarray:
        """Feeds a batch to the caches; its positions count on in every lane."""
        size = batch.tokens.shape[1]
        count = self._position[:, None] + np.cumsum(batch.segment > 0, axis=1) - (batch.segment > 0)
        batch = dataclasses.replace(batch, position=count.astype(np.int32))
        self._cache_segment[:, self._used : self._used + size] = batch.segment
        self._cache_position[:, self._used : self._used + size] = batch.position
        tokens, self._caches = extend(
            self.generalist.graph,
            self.generalist.params,
            self._caches,
            self._cache_segment,
            self._cache_position,
            np.int32(self._used),
            batch,
            ranges,
            outputs,
        )
        self._used += size
        self._position += (batch.segment > 0).sum(axis=1)
        return np.asarray(tokens)

    def _begin(self, batches: list[Batch]) -> Batch:
        """Empty caches, and the prefix with the given steps joined to one batch."""
        assert self._prefix is not None
        slots = self._prefix.tokens.shape[1] + self.window * self._step_positions
        model = nnx.merge(self.generalist.graph, self.generalist.params)
        self._caches = model.empty_caches(self.lanes, bucket(slots, 8), self.generalist.dtype)
        self._cache_segment = np.zeros((self.lanes, bucket(slots, 8)), np.int32)
        self._cache_position = np.zeros_like(self._cache_segment)
        self._used, self._position, self._held = 0, np.zeros((self.lanes,), np.int32), 0
        return join([self._prefix, *batches], self._frame_tokens)

    def _decode_hidden(self, step: Batch) -> np.ndarray:
        """Past actions are hidden, so one pass reads every dimension."""
        self._step_positions = step.tokens.shape[1]
        if self._caches is None or self._held == self.window:
            batch = self._begin([*self._history, step])
            self._held = len(self._history)
        else:
            batch = step
        self._held += 1
        self._history.append(step)
        return self._append(batch, len(self.ranges), self.ranges)

    def _decode_in_turn(self, step: Batch) -> np.ndarray:
        """Every dimension is fed back before the next is chosen, as Gato does (section 2.5)."""
        dimensions = len(self.ranges)
        self._step_positions = step.tokens.shape[1] + dimensions
        if self._caches is None or self._held == self.window:
            batch = self._begin([*self._history, step])
            self._held = len(self._history)
        else:
            batch = step
        chosen: list[np.ndarray] = []
        for index in range(dimensions):
            token = self._append(batch, 1, self.ranges[index : index + 1])
            chosen.append(token)
            batch = self._action_batch(token)
        self._append(batch, 1, self.ranges[-1:])  # the last dimension is context for the next step
        self._held += 1
        actions = np.concatenate(chosen, axis=1)
        self._history.append(join([step, self._action_batch(actions)], self._frame_tokens))
        return actions

    def _action_batch(self, tokens: np.ndarray) -> Batch:
        """Action tokens (B, n) as positions to append."""
        sequence = self.generalist.assembler.action(self.layout, tokens.reshape(-1))
        whole = stack_rows([sequence], tokens.size, pad=self._pad)
        return dataclasses.replace(whole, **{name: getattr(whole, name).reshape(tokens.shape) for name in POSITIONAL})


def join(batches: list[Batch], frame_tokens: int) -> Batch:
    """Batches of the same rows one after the other; payloads are concatenated and their indices moved along."""
    from generalist.inference.rows import PAYLOADS

    offsets, moved = dict.fromkeys(PAYLOADS, 0), []
    for batch in batches:
        index = batch.payload_index.copy()
        for modality, payload in PAYLOADS.items():
            index[batch.modality == modality] += offsets[modality]
            offsets[modality] += len(getattr(batch, payload)) * (frame_tokens if payload == "frames" else 1)
        moved.append(dataclasses.replace(batch, payload_index=index))
    rows = {name: np.concatenate([getattr(batch, name) for batch in moved], axis=1) for name in POSITIONAL}
    flat = {name: np.concatenate([getattr(batch, name) for batch in moved]) for name in ("tensors", "frames", "patches", "intervals")}
    return Batch(**rows, **flat)
