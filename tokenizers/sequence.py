"""An example as flat arrays, and the assembler that puts pieces in order (Gato, section 2.1 and appendix B).

A window of control is one of two layouts. `o` observation positions, `|` the separator (if asked for), `a` action tokens:

    Gato     o o | a0 a1 a2  o o | a0 a1 a2       every action token is read by what follows
    hidden   o o | h  h      o o | h  h           actions are targets only; all of a step's can be decoded at once

In both, the first action token is predicted from the last position before it, and each next one from the next position.
Hiding keeps the policy from copying its last action, and leaves out the position from which nothing is read.
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence as Sequences
from typing import Literal

import numpy as np

from generalist.tokenizers.image import frame_piece, patch_piece, to_frame
from generalist.tokenizers.pieces import ACTION_POSITION, PATCH_SIZE, Modality, Piece
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

__all__ = ["ACTION_POSITION", "Assembler", "Modality", "Piece", "Predicted", "Sequence"]

Values = Mapping[str, np.ndarray]
"""Flat key → (T, ...): what `SpaceTokenizer.stack` returns."""


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
    tensors: np.ndarray
    """float32 (n, F): each tensor in the columns it owns, zeros elsewhere."""
    frames: np.ndarray
    """uint8 (m, H, W, 3)."""
    patches: np.ndarray
    """uint8 (p, 16, 16, 3)."""
    intervals: np.ndarray
    """int32 (p, 4): each patch's row low, row high, column low, column high."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Text of a document that the model learns to write, not only to read."""

    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembler:
    """Puts pieces in order: the same code for training and for acting, so that the two can't drift."""

    vocabulary: Vocabulary
    text_tokenizer: TextTokenizer
    projection_width: int = 0
    """F: columns of the run's projection of tensors."""
    frame_size: int = 84
    """Pixels on a side of a frame."""
    frame_tokens: int = 1
    """Positions a frame takes."""
    separator: bool = False
    """Put the separator between an observation and its action."""
    images: Literal["frame", "patches"] = "frame"
    """How the images of documents enter."""

    def __post_init__(self) -> None:
        if self.text_tokenizer.size > self.vocabulary.text:
            raise ValueError(
                f"the text tokenizer has {self.text_tokenizer.size} pieces but vocabulary.text is {self.vocabulary.text}: "
                "raise vocabulary.text or train the tokenizer with fewer pieces"
            )
        if self.images not in ("frame", "patches"):
            raise ValueError(f'images must be "frame" or "patches", got {self.images!r}')

    def control(
        self,
        layout: TaskLayout,
        instruction: str,
        observations: Values,
        actions: Values,
        *,
        hide_actions: bool,
        prompt: tuple[Values, Values] | None = None,
        prompt_loss: bool = False,
    ) -> Sequence:
        """A window of T steps, after its instruction and, if given, after a prompt: steps of another episode.

        The loss is on the window's actions alone, and on the prompt's with `prompt_loss`. A prompt's actions are shown
        even where the window's are hidden: with them hidden it would demonstrate nothing.
        """
        parts = [self.instruction(instruction)]
        if prompt is not None:
            parts.append(self._steps(layout, *prompt, hide=False, weight=float(prompt_loss)))
        parts.append(self._steps(layout, observations, actions, hide=hide_actions))
        return self.concatenate(parts)

    def instruction(self, text: str) -> Sequence:
        """What the agent is told: given, never predicted, with no special tokens. An empty text gives no positions."""
        return self._piece(self._given(self._text_ids(text)))

    def step(self, layout: TaskLayout, observations: Values, *, hide_actions: bool) -> Sequence:
        """Steps as they stand when their actions are still to be chosen: observation, separator and, with hidden actions,
        the hidden tokens that the later dimensions are read from."""
        return self._steps(layout, observations, None, hide=hide_actions)

    def action(self, layout: TaskLayout, tokens: np.ndarray) -> Sequence:
        """Chosen action tokens, int (n,), as positions to append: any number of them, also a part of an action."""
        tokens = np.asarray(tokens, np.int32)
        modality = self._modality_of(tokens)
        return self._sequence(tokens, modality, np.full_like(tokens, ACTION_POSITION))

    def text(self, string: str, bos: bool = True, eos: bool = True) -> Sequence:
        """A text with the loss on all of it. The end marker is a target only: nothing is read from its position."""
        ids = self._text_ids(string)
        tokens = np.concatenate([[self.vocabulary.bos], ids] if bos else [ids]).astype(np.int32)
        targets = np.concatenate([tokens[1:], [self.vocabulary.eos if eos else self.vocabulary.pad]])[: len(tokens)]
        sequence = self._piece(self._given(tokens))
        weight = (targets != self.vocabulary.pad).astype(np.float32)
        return dataclasses.replace(sequence, targets=targets.astype(np.int32), loss_weight=weight)

    def image_text(self, parts: Sequences["np.ndarray | str | Predicted"]) -> Sequence:
        """A document of images (uint8 H×W or H×W×C), given text and `Predicted` text, in any order.

        Each predicted text closes with a predicted end marker. A document that begins with text begins with the beginning
        marker, so that its first word has a position to be predicted from.

        Raises:
            ValueError: an image has a shape or type that no image has.
        """
        pieces, weights = [], []
        for index, part in enumerate(parts):
            text = part.text if isinstance(part, Predicted) else part
            if isinstance(text, np.ndarray):
                pieces.append(self._image(text))
                weights.append(0)
                continue
            if index == 0:
                pieces.append(self._given(np.array([self.vocabulary.bos], np.int32)))
                weights.append(0)
            ids, predicted = self._text_ids(text), isinstance(part, Predicted)
            pieces.append(self._given(np.append(ids, self.vocabulary.eos).astype(np.int32) if predicted else ids))
            weights.append(int(predicted))
        return self._shifted(self.concatenate([self._piece(piece) for piece in pieces]), pieces, weights)

    def concatenate(self, sequences: Sequences[Sequence]) -> Sequence:
        """Sequences one after the other; payloads are joined and their indices moved along."""
        filled = [sequence for sequence in sequences if len(sequence.tokens)]
        if len(filled) == 1:
            return filled[0]
        if not filled:
            return self._piece(self._given(np.zeros((0,), np.int32)))
        joined = {
            name: np.concatenate([getattr(s, name) for s in filled]) for name in _FIELDS if name != "payload_index"
        }
        counts, indices = {modality: 0 for modality in _PAYLOADS}, []
        for sequence in filled:
            index = sequence.payload_index
            for modality, payload in _PAYLOADS.items():
                if counts[modality] and len(getattr(sequence, payload)):
                    index = np.where(sequence.modality == modality, index + np.int32(counts[modality]), index)
                counts[modality] += len(getattr(sequence, payload)) * self._positions_each(modality)
            indices.append(index)
        return Sequence(**joined, payload_index=np.concatenate(indices))

    def _steps(
        self, layout: TaskLayout, observations: Values, actions: Values | None, *, hide: bool, weight: float = 1.0
    ) -> Sequence:
        """Steps of one layout, placed all at once: every piece knows its positions from cumulative lengths."""
        pieces = layout.observation.encode(observations)
        steps = len(pieces[0].lengths)
        self._check_observation(layout, pieces, steps)
        if self.separator:
            pieces.append(self._repeated(self.vocabulary.separator, np.ones((steps,), np.int32)))
        acted, counts = np.zeros((0,), np.int32), None
        if actions is not None:
            acted, modality, counts = _interleave(layout.action.encode(actions))
            if len(counts) != steps:
                raise ValueError(f"{layout.name} has {steps} observed steps but {len(counts)} actions: give one a step")
        if hide:
            pieces.append(
                self._repeated(self.vocabulary.hidden, np.full((steps,), self._hidden_count(layout), np.int32))
            )
        elif counts is not None:
            pieces.append(Piece(Modality.SPECIAL, acted, counts))
        sequence, starts = self._placed(pieces, actions=hide or counts is not None)
        if counts is None:
            return sequence
        if not hide:
            sequence.modality[_positions(starts[:, -1], counts)] = modality
        before = starts[:, -1] - 1
        read_from = _positions(before, counts)
        sequence.targets[read_from] = acted
        sequence.loss_weight[read_from] = weight
        return sequence

    def _placed(self, pieces: list[Piece], *, actions: bool) -> tuple[Sequence, np.ndarray]:
        """Pieces of T steps in step-major order, and where each begins, int (T, pieces). `actions`: the last piece is one."""
        lengths = np.stack([piece.lengths for piece in pieces], axis=1)
        ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
        starts, total = ends - lengths, int(ends[-1, -1])
        tokens, modality = np.empty((2, total), np.int32)
        index = np.zeros((total,), np.int32)
        local = (np.arange(total) - np.repeat(starts[:, 0], lengths.sum(axis=1))).astype(np.int32)
        rows = dict.fromkeys(_PAYLOADS, 0)
        for number, piece in enumerate(pieces):
            at = _positions(starts[:, number], piece.lengths)
            tokens[at], modality[at] = piece.tokens, piece.modality
            if piece.payload is not None:
                index[at] = np.arange(rows[piece.modality], rows[piece.modality] + len(at))
                rows[piece.modality] += len(at)
        if actions:
            local[at] = ACTION_POSITION
        return self._sequence(tokens, modality, local, index, self._payloads(pieces)), starts

    def _payloads(self, pieces: list[Piece]) -> dict[str, np.ndarray]:
        """The pieces' payloads, each kind joined in the order of the pieces."""
        by_kind = {modality: [piece for piece in pieces if piece.modality == modality] for modality in _PAYLOADS}
        found = {}
        if tensors := by_kind[Modality.TENSOR]:
            found["tensors"] = np.zeros(
                (sum(len(piece.tokens) for piece in tensors), self.projection_width), np.float32
            )
            row = 0
            for piece in tensors:
                size = piece.payload.shape[1]
                if piece.offset + size > self.projection_width:
                    raise ValueError(
                        f"a tensor owns columns {piece.offset} to {piece.offset + size} but projection_width is "
                        f"{self.projection_width}: give the assembler the width that assign_offsets returned"
                    )
                found["tensors"][row : row + len(piece.tokens), piece.offset : piece.offset + size] = piece.payload
                row += len(piece.tokens)
        if frames := by_kind[Modality.FRAME]:
            self._check_frames(frames)
            found["frames"] = _joined([piece.payload for piece in frames])
        if patches := by_kind[Modality.PATCH]:
            found["patches"] = _joined([piece.payload for piece in patches])
            found["intervals"] = _joined([piece.intervals for piece in patches])
        return found

    def _sequence(
        self,
        tokens: np.ndarray,
        modality: np.ndarray,
        local_position: np.ndarray,
        payload_index: np.ndarray | None = None,
        payloads: Mapping[str, np.ndarray] | None = None,
    ) -> Sequence:
        """A sequence that predicts nothing yet."""
        empty = {
            "tensors": np.zeros((0, self.projection_width), np.float32),
            "frames": np.zeros((0, self.frame_size, self.frame_size, 3), np.uint8),
            "patches": np.zeros((0, PATCH_SIZE, PATCH_SIZE, 3), np.uint8),
            "intervals": np.zeros((0, 4), np.int32),
        }
        return Sequence(
            tokens=tokens,
            targets=np.full_like(tokens, self.vocabulary.pad),
            loss_weight=np.zeros(tokens.shape, np.float32),
            modality=modality,
            local_position=local_position,
            payload_index=np.zeros_like(tokens) if payload_index is None else payload_index,
            **(empty | dict(payloads or {})),
        )

    def _piece(self, piece: Piece) -> Sequence:
        """A piece of a document: all its local positions are 0."""
        index = np.arange(len(piece.tokens), dtype=np.int32) if piece.payload is not None else None
        modality = np.full_like(piece.tokens, piece.modality)
        return self._sequence(piece.tokens, modality, np.zeros_like(piece.tokens), index, self._payloads([piece]))

    def _shifted(self, sequence: Sequence, pieces: list[Piece], weights: list[int]) -> Sequence:
        """The document with every predicted token as the target of the position before it."""
        weight = np.repeat(np.array(weights, np.float32), [len(piece.tokens) for piece in pieces])
        next_weight = np.append(weight[1:], np.float32(0))
        following = np.append(sequence.tokens[1:], np.int32(self.vocabulary.pad))
        targets = np.where(next_weight > 0, following, np.int32(self.vocabulary.pad))
        # The closing end marker is a target only: nothing is read from its position.
        stop = len(sequence) - 1 if weights and weights[-1] else len(sequence)
        shifted = dataclasses.replace(sequence, targets=targets, loss_weight=next_weight)
        return dataclasses.replace(shifted, **{name: getattr(shifted, name)[:stop] for name in _POSITIONAL})

    def _given(self, ids: np.ndarray) -> Piece:
        return Piece(Modality.TEXT, ids, np.array([len(ids)], np.int32))

    def _repeated(self, token: int, lengths: np.ndarray) -> Piece:
        return Piece(Modality.SPECIAL, np.full((int(lengths.sum()),), token, np.int32), lengths)

    def _text_ids(self, text: str) -> np.ndarray:
        return self.text_tokenizer.encode(text)

    def _image(self, image: np.ndarray) -> Piece:
        if self.images == "patches":
            return patch_piece(image[None], pad=self.vocabulary.pad)
        frame = to_frame(image, self.frame_size)
        return frame_piece(
            frame[None], pad=self.vocabulary.pad, frame_size=self.frame_size, frame_tokens=self.frame_tokens
        )

    def _modality_of(self, tokens: np.ndarray) -> np.ndarray:
        """Modality of action tokens, int32 like them. A special one is the end marker of a text."""
        kinds = np.searchsorted(self.vocabulary.boundaries, tokens, side="right") - 1
        table = (
            Modality.TEXT,
            Modality.CONTINUOUS,
            Modality.DISCRETE,
            Modality.DISCRETE,
            Modality.DISCRETE,
            Modality.TEXT,
        )
        return np.array(table, np.int32)[kinds]

    def _positions_each(self, modality: Modality) -> int:
        return self.frame_tokens if modality == Modality.FRAME else 1

    def _hidden_count(self, layout: TaskLayout) -> int:
        count = layout.action.tokens_per_step
        if count is None:
            raise ValueError(f"{layout.name} has text in its actions, whose length varies: use hide_actions=False")
        return count - 1

    def _check_observation(self, layout: TaskLayout, pieces: list[Piece], steps: int) -> None:
        counts = sum(piece.lengths for piece in pieces)
        if any(len(piece.lengths) != steps for piece in pieces) or steps == 0:
            raise ValueError(f"the observation parts of {layout.name} have different numbers of steps, or none")
        longest = int(counts.max()) + self.separator
        if longest > ACTION_POSITION:
            raise ValueError(
                f"a step of {layout.name} has {longest} observation positions, but there are {ACTION_POSITION} local positions: "
                'use tensors="projected" or images="frame", or shorten its text'
            )

    def _check_frames(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            size, each = piece.payload.shape[1], len(piece.tokens) // max(1, len(piece.payload))
            if size != self.frame_size or each != self.frame_tokens:
                raise ValueError(
                    f"a frame has {size} pixels a side and {each} positions, but the assembler has frame_size "
                    f"{self.frame_size} and frame_tokens {self.frame_tokens}: use one setting for both"
                )


_POSITIONAL = ("tokens", "targets", "loss_weight", "modality", "local_position", "payload_index")
_PAYLOADS = {Modality.TENSOR: "tensors", Modality.FRAME: "frames", Modality.PATCH: "patches"}
_FIELDS = tuple(field.name for field in dataclasses.fields(Sequence))


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions of ragged runs, step after step: int (sum of lengths,)."""
    total = int(lengths.sum())
    if total == lengths[0] * len(lengths) and (lengths == lengths[0]).all():
        return (starts[:, None] + np.arange(lengths[0])).ravel()
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(total)


def _interleave(pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces as one step-major stream: tokens and modality, int32 (n,); lengths, int32 (T,)."""
    if len(pieces) == 1:
        piece = pieces[0]
        return piece.tokens, np.full_like(piece.tokens, piece.modality), piece.lengths
    lengths = np.stack([piece.lengths for piece in pieces], axis=1)
    ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
    tokens, modality = np.empty((2, int(ends[-1, -1])), np.int32)
    for number, piece in enumerate(pieces):
        at = _positions((ends - lengths)[:, number], piece.lengths)
        tokens[at], modality[at] = piece.tokens, piece.modality
    return tokens, modality, lengths.sum(axis=1).astype(np.int32)
