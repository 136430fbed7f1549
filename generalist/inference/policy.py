"""A batched policy: many environments of one layout act together, each in its own row of a key-value cache.

All rows share one clock. A step appends one observation (and the actions) to the caches; once they hold `steps` steps they
are rebuilt from the newest half, so the context is always between half a window and a whole one, as in training, where
windows begin anywhere. Positions start over with it.

Dimension key: B lanes, S positions of a step, A action dimensions, V vocabulary.
"""

import dataclasses
from collections import deque
from typing import Any

import jax
import numpy as np

from generalist.data.batch import Batch
from generalist.inference.decode import CachedRows, allow
from generalist.inference.load import Generalist
from generalist.inference.rows import POSITIONAL, bucket, join, row_images, stack_rows
from generalist.tokenizers.pieces import Modality


class ControlPolicy:
    """Acts in `lanes` environments of one layout: the likeliest actions, or drawn ones if the suite has a temperature.

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
        self._temperature = control.temperature
        self._allowed = allow(self.layout.action.valid_ranges, generalist.vocabulary.size)
        self._rows: CachedRows | None = None
        self._prefix: Batch | None = None
        self._held = 0  # steps in the caches
        self._rebuilt = 0  # times since the reset
        self._history: deque[Batch] = deque(maxlen=self.window // 2)

    def reset(self, instructions: list[str]) -> None:
        """Starts an episode in every lane, each with its instruction."""
        if len(instructions) != self.lanes:
            raise ValueError(f"the policy has {self.lanes} lanes but got {len(instructions)} instructions")
        sequences = [self.generalist.assembler.instruction(text) for text in instructions]
        length = bucket(max(1, *(len(sequence.tokens) for sequence in sequences)), 4)
        self._prefix = self._stack(sequences, length)
        self._history.clear()
        self._rows, self._rebuilt = None, 0

    def act(self, observations: list[Any], active: np.ndarray | None = None) -> list[Any]:
        """One action a lane. Lanes that are not `active` (bool (B,)) get one too, for nobody to use.

        Raises:
            ValueError: there was no `reset`.
        """
        del active  # all lanes share the compiled step: leaving some out would cost more than it saves
        step = self._observe(observations)
        tokens = self._decode_at_once(step) if self.hidden else self._decode_in_turn(step)
        return self.layout.action.decode_batch(tokens)

    def _observe(self, observations: list[Any]) -> Batch:
        """All lanes' observations in one call of the tokenizer, as if they were the steps of one episode."""
        values = self.layout.observation.stack(observations)
        flat = self.generalist.assembler.step(self.layout, values, hide_actions=self.hidden)
        return self._split(self._stack([flat], len(flat.tokens)))

    def _decode_at_once(self, step: Batch) -> np.ndarray:
        """Past actions are hidden, so one pass reads every dimension."""
        tokens = self._feed(step, step.tokens.shape[1], self._allowed)
        self._history.append(step)
        return tokens

    def _decode_in_turn(self, step: Batch) -> np.ndarray:
        """Every dimension is fed back before the next is chosen, as Gato does (section 2.5)."""
        dimensions = len(self._allowed)
        token = self._feed(step, step.tokens.shape[1] + dimensions, self._allowed[:1])
        chosen = [token]
        assert self._rows is not None
        for allowed in self._allowed[1:]:
            chosen.append(self._rows.append(self._action(chosen[-1]), allowed[None]))
        self._rows.append(self._action(chosen[-1]), self._allowed[-1:])  # context for the next step
        actions = np.concatenate(chosen, axis=1)
        self._history.append(join([step, self._action(actions)], self._frame_tokens))
        return actions

    def _feed(self, step: Batch, positions: int, allowed: np.ndarray) -> np.ndarray:
        """Appends a step; to fresh caches with the newest steps when the old ones are full. `positions` a whole step takes."""
        if self._prefix is None:
            raise ValueError("call reset() with the instructions before act()")
        if self._rows is None or self._held == self.window:
            slots = self._prefix.tokens.shape[1] + self.window * positions
            images = self.window * step.row_images.shape[1]
            key = jax.random.fold_in(
                jax.random.key(0), self._rebuilt
            )  # the same draws every time the episodes are played
            self._rows = CachedRows(
                self.generalist, self.lanes, bucket(slots, 8), temperature=self._temperature, key=key, images=images
            )
            self._rebuilt += 1
            self._held = len(self._history)
            step = join([self._prefix, *self._history, step], self._frame_tokens)
        self._held += 1
        return self._rows.append(step, allowed)

    def _action(self, tokens: np.ndarray) -> Batch:
        """Action ids (B, n) as positions to append."""
        sequence = self.generalist.assembler.action(self.layout, tokens.reshape(-1))
        return self._split(self._stack([sequence], tokens.size))

    def _split(self, whole: Batch) -> Batch:
        """One row with all lanes one after the other, as one row a lane, which sees no other lane's images."""
        rows = {name: getattr(whole, name).reshape(self.lanes, -1) for name in POSITIONAL}
        shown = (rows["modality"] == Modality.IMAGE).sum(axis=1, keepdims=True)
        rows["image"] = np.maximum(rows["image"] - (np.cumsum(shown, axis=0) - shown), 0).astype(np.int32)
        return dataclasses.replace(whole, **rows, row_images=row_images(rows["modality"], rows["payload_index"]))

    def _stack(self, sequences: list[Any], length: int) -> Batch:
        return stack_rows(sequences, length, pad=self.generalist.vocabulary.pad, frame_tokens=self._frame_tokens)

    @property
    def _frame_tokens(self) -> int:
        return self.generalist.config.model.frame_tokens
