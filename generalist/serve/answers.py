"""Texts that are being written for clients: what they ask for, and the events that they are given.

A text is given piece by piece, each as soon as it can no longer change.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

from generalist.inference.sampling import Decoding
from generalist.inference.weights import Weights
from generalist.inference.writing import unsure, until
from generalist.serve.lane_steps import Chosen
from generalist.serve.pieces import Piece
from generalist.tokenizers.sequence import Sequence

Reason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Token:
    """An id that was written, with its log-probability in nats and the likeliest ids there."""

    id: int
    text: str
    log_probability: float
    likeliest: tuple[tuple[int, str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Written:
    """More of a text."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a text."""

    reason: Reason
    ids: int
    """Number of ids that were written."""


@dataclasses.dataclass(frozen=True)
class Failed:
    """A text that will not be written any further."""

    kind: Literal["deadline", "stopped", "internal"]
    message: str


Event = Written | Ended | Failed


@dataclasses.dataclass(eq=False)
class Answer:
    """A text that a client waits for.

    Args:
        give: takes the events; called by the engine's thread.
    """

    sequence: Sequence
    pieces: list[Piece]
    decoding: Decoding
    room: int
    """Maximum number of ids."""
    give: Callable[[Event], None]
    text: int = 0
    """Number among the texts of its request."""
    likeliest: int | None = None
    """Number of likeliest ids that are given with each id; None: no log-probabilities are."""
    deadline: float = float("inf")
    """On the monotonic clock."""
    cancelled: bool = False
    """Set by the client's side; the engine then forgets the text."""
    asked: float = dataclasses.field(default_factory=time.monotonic)
    first: float = 0.0
    """When the first id was chosen; 0: not yet."""
    _ids: list[int] = dataclasses.field(default_factory=list)
    _given: int = 0
    _tokens: list[Token] = dataclasses.field(default_factory=list)

    def add(self, weights: Weights, chosen: Chosen, lane: int) -> bool:
        """Takes the id that was chosen in a lane. Returns whether the text has ended."""
        self.first = self.first or time.monotonic()
        id = int(chosen.ids[lane])
        if id in weights.assembler.marks.ends:
            self._end(weights, "stop", self._whole(weights))
            return True
        self._ids.append(id)
        if self.likeliest is not None:
            self._tokens.append(self._token(weights, chosen, lane))
        # Decoded as a whole each time: a piece's text may depend on the pieces before it.
        whole = self._whole(weights)
        text, stopped = until(whole, self.decoding.stop)
        if stopped or len(self._ids) == self.room:
            self._end(weights, "stop" if stopped else "length", text)
            return True
        if not weights.tokenizers.text.is_byte(id):
            self._give(text[: len(text) - unsure(text, self.decoding.stop)])
        return False

    def _whole(self, weights: Weights) -> str:
        return weights.assembler.written(np.array(self._ids, np.int32))

    def _end(self, weights: Weights, reason: Reason, text: str) -> None:
        self._give(text)
        if self._tokens:
            self.give(Written("", tuple(self._tokens)))
        self.give(Ended(reason, len(self._ids)))

    def _give(self, sure: str) -> None:
        if len(sure) > self._given:
            self.give(Written(sure[self._given :], tuple(self._tokens)))
            self._given, self._tokens = len(sure), []

    def _token(self, weights: Weights, chosen: Chosen, lane: int) -> Token:
        def text(id: int) -> str:
            # The ends of a text have no letters.
            known = id not in weights.assembler.marks.ends
            return weights.assembler.written(np.array([id], np.int32)) if known else ""

        several = zip(chosen.likeliest[lane], chosen.likeliest_log_probability[lane], strict=True)
        likeliest = [(int(id), text(int(id)), float(value)) for id, value in list(several)[: self.likeliest]]
        id = int(chosen.ids[lane])
        return Token(id, text(id), float(chosen.log_probability[lane]), tuple(likeliest))
