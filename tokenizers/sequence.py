"""The assembler, which puts pieces in order (Gato, section 2.1 and appendix B).

A window of control is one of two layouts. `o` observation positions, `|` the separator (if asked for), `a` action tokens:

    Gato     o o | a0 a1 a2  o o | a0 a1 a2       every action token is read by what follows
    hidden   o o | h  h      o o | h  h           actions are targets only; all of a step's can be decoded at once

In both, the first action token is predicted from the last position before it, and each next one from the next position.
Hiding keeps the policy from copying its last action, and leaves out the position from which nothing is read.
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence as Sequences
from functools import cached_property
from typing import get_args

import numpy as np

from generalist.tokenizers.image import frame_piece, image_piece, patch_piece, to_frame
from generalist.tokenizers.pieces import (
    ACTION_POSITION,
    PATCH_SIZE,
    PAYLOADS,
    POSITIONAL,
    Images,
    Modality,
    Piece,
    Sequence,
    Visual,
)
from generalist.tokenizers.placement import Placed, interleave, joined, payloads, place, positions
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import KINDS, Vocabulary

__all__ = ["ACTION_POSITION", "CHUNK_END", "Assembler", "Modality", "Piece", "Predicted", "Sequence"]

Values = Mapping[str, np.ndarray]
"""Flat key → (T, ...): what `SpaceTokenizer.stack` returns."""

# Modality of the vocabulary's kinds in their order, then of special tokens: among actions only the end marker of a text.
_MODALITY_OF_KIND = np.array(
    [Modality.TEXT, Modality.CONTINUOUS, *[Modality.DISCRETE] * (len(KINDS) - 2), Modality.TEXT], np.int32
)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Text of a document that the model learns to write, not only to read."""

    text: str


class ChunkEnd:
    """Ends a chunk of a document that has no image; before an image and at the end of a document it goes without saying."""


CHUNK_END = ChunkEnd()
Part = np.ndarray | str | Predicted | ChunkEnd
"""What a document is made of: images uint8 (H, W) or (H, W, C), ids int32 (n,), texts."""


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
    images: Images = "frame"
    """How the images of documents enter."""
    visual: Visual | None = None
    """What the frozen encoder is given of images, where there is one."""

    def __post_init__(self) -> None:
        if self.text_tokenizer.size > self.vocabulary.text:
            raise ValueError(
                f"the text tokenizer has {self.text_tokenizer.size} pieces but vocabulary.text is {self.vocabulary.text}: "
                "raise vocabulary.text or train the tokenizer with fewer pieces"
            )
        if self.images not in get_args(Images):
            raise ValueError(f"images must be one of {', '.join(get_args(Images))}, got {self.images!r}")

    def control(
        self,
        layout: TaskLayout,
        instruction: str,
        observations: Values,
        actions: Values,
        *,
        hide_actions: bool,
        prompts: Sequences[tuple[Values, Values]] = (),
        prompt_loss: bool = False,
    ) -> Sequence:
        """A window of T steps, after its instruction and, if given, after prompts: steps of other episodes.

        The loss is on the window's actions alone, and on the prompts' with `prompt_loss`. A prompt's actions are shown
        even where the window's are hidden: with them hidden it would demonstrate nothing.
        """
        before = self.prefix(layout, instruction, prompts, prompt_loss=prompt_loss)
        return self.concatenate([before, self._steps(layout, observations, actions, hide=hide_actions)])

    def prefix(
        self,
        layout: TaskLayout,
        instruction: str,
        prompts: Sequences[tuple[Values, Values]] = (),
        *,
        prompt_loss: bool = False,
    ) -> Sequence:
        """What stands before an episode's own steps: the instruction, and steps of other episodes, observations and actions."""
        shown = [self._steps(layout, *prompt, hide=False, weight=float(prompt_loss)) for prompt in prompts]
        return self.concatenate([self.instruction(instruction), *shown])

    def room(self, layout: TaskLayout, instruction: str, *, window: int, length: int) -> int:
        """Steps with their actions that fit between an instruction and a window of `window` steps in a row of `length` positions;
        0 for a layout with texts, whose steps vary in length."""
        observed, acted = layout.observation.tokens_per_step, layout.action.tokens_per_step
        if observed is None or acted is None:
            return 0
        left = length - len(self.instruction(instruction)) - window * (observed + self.separator + acted)
        return max(0, left // (observed + self.separator + acted))

    def instruction(self, text: str) -> Sequence:
        """What the agent is told: given, never predicted, with no special tokens. An empty text gives no positions."""
        return self._document(self._given(self._text_ids(text)))

    def step(self, layout: TaskLayout, observations: Values, *, hide_actions: bool) -> Sequence:
        """Steps as they stand when their actions are still to be chosen: observation, separator and, with hidden actions,
        the hidden tokens that the later dimensions are read from."""
        return self._steps(layout, observations, None, hide=hide_actions)

    def action(self, layout: TaskLayout, tokens: np.ndarray) -> Sequence:
        """Chosen action tokens, int (n,), as positions to append: any number of them, also a part of an action."""
        tokens = np.asarray(tokens, np.int32)
        placed = place([Piece(Modality.SPECIAL, tokens, np.array([len(tokens)], np.int32))], last_is_action=True)
        placed.modality[:] = self._modality_of(tokens)
        return self._sequence(placed, {})

    def text(self, text: str | np.ndarray, bos: bool = True, eos: bool = True) -> Sequence:
        """A text, or its ids int32 (n,), with the loss on all of it. The end marker is a target only: nothing is read from
        its position."""
        ids = text if isinstance(text, np.ndarray) else self._text_ids(text)
        tokens = np.concatenate([[self.vocabulary.bos], ids] if bos else [ids]).astype(np.int32)
        targets = np.concatenate([tokens[1:], [self.vocabulary.eos if eos else self.vocabulary.pad]])[: len(tokens)]
        sequence = self._document(self._given(tokens))
        weight = (targets != self.vocabulary.pad).astype(np.float32)
        return dataclasses.replace(sequence, targets=targets.astype(np.int32), loss_weight=weight)

    def document(self, parts: Sequences[Part], *, to_next: bool = False, is_open: bool = False) -> Sequence:
        """Images (uint8 H×W or H×W×C) and texts (or their ids, int32 (n,)) in any order, as Flamingo reads them (sections 2.4
        and 3.1):

            bos  text  <image> text text chunk_end  <image> text chunk_end

        Every text attends to the image before it or, with `to_next`, to the one after it. It is predicted unless there is none
        (as OpenFlamingo does), and so is the end of its chunk, an image's marker never; but if some parts are `Predicted`, those
        alone are, and the ends of their chunks.

        Args:
            parts: `CHUNK_END` ends a chunk that has no image.
            is_open: the last chunk has no end, and nothing is predicted: what is to be written on.

        Raises:
            ValueError: an image has a shape or type that no image has.
        """
        total, marked = sum(map(_is_image, parts)), any(isinstance(part, Predicted) for part in parts)
        pieces, weights, attended = [self._given(np.array([self.vocabulary.bos], np.int32))], [0], [0]
        before = chunk = 0  # images so far; the image of the text that stands last
        written = predicted = False  # of the chunk: whether it has text, and whether the last of it is predicted

        def end(always: bool = False) -> None:
            if chunk or predicted or (always and written):
                pieces.append(self._repeated(self.vocabulary.chunk_end, np.ones((1,), np.int32)))
                weights.append(int(predicted))
                attended.append(chunk)

        for part in parts:
            if part is CHUNK_END or _is_image(part):
                end(always=part is CHUNK_END)
                chunk, written, predicted = 0, False, False
            if part is CHUNK_END:
                continue
            if _is_image(part):
                before += 1
                placed = self._image(np.asarray(part))
            else:
                text = part.text if isinstance(part, Predicted) else part
                chunk = before if not to_next else before + 1 if before < total else 0
                placed = [self._given(text if isinstance(text, np.ndarray) else self._text_ids(str(text)))]
                written, predicted = True, isinstance(part, Predicted) if marked else chunk > 0
            predicted = predicted and not is_open
            pieces += placed
            weights += [int(predicted)] * len(placed)
            attended += [chunk or (before if _is_image(part) else 0)] * len(placed)
        if not is_open:
            end()
        sequence = self._shifted(self.concatenate([self._document(piece) for piece in pieces]), pieces, weights)
        if self.visual is None:
            return sequence
        image = np.repeat(np.array(attended, np.int32), [len(piece.tokens) for piece in pieces])
        return dataclasses.replace(sequence, image=image[: len(sequence)])

    def concatenate(self, sequences: Sequences[Sequence]) -> Sequence:
        """Sequences one after the other; payloads are joined and their indices moved along."""
        filled = [sequence for sequence in sequences if len(sequence.tokens)]
        if not filled:
            return self._document(self._given(np.zeros((0,), np.int32)))
        if len(filled) == 1:
            return filled[0]
        fields = {
            field.name: [getattr(sequence, field.name) for sequence in filled] for field in dataclasses.fields(Sequence)
        }
        for modality, payload in PAYLOADS.items():
            each = self.frame_tokens if modality == Modality.FRAME else 1
            before = 0
            for number, sequence in enumerate(filled):
                count = len(getattr(sequence, payload)) * each
                if before and count:
                    index = fields["payload_index"][number]
                    fields["payload_index"][number] = np.where(
                        sequence.modality == modality, index + np.int32(before), index
                    )
                before += count
        # What follows an image attends to it, unless it has one of its own (Flamingo, section 2.4).
        held = np.cumsum([0] + [int((sequence.modality == Modality.IMAGE).sum()) for sequence in filled])
        fields["image"] = [
            image + np.int32(before) if before else image
            for image, before in zip(fields["image"], held[:-1], strict=True)
        ]
        return Sequence(**{name: joined(arrays) for name, arrays in fields.items()})

    def _steps(
        self, layout: TaskLayout, observations: Values, actions: Values | None, *, hide: bool, weight: float = 1.0
    ) -> Sequence:
        """Steps of one layout; what is predicted, where `actions` say it."""
        pieces = self._observed(layout, observations)
        steps = len(pieces[0].lengths)
        if hide:
            pieces.append(self._repeated(self.vocabulary.hidden, np.full((steps,), _dimensions(layout) - 1, np.int32)))
        if actions is None:
            return self._sequence(place(pieces, last_is_action=hide), self._payloads(pieces))
        acted, modality, counts = interleave(layout.action.encode(actions))
        if len(counts) != steps:
            raise ValueError(f"{layout.name} has {steps} observed steps but {len(counts)} actions: give one a step")
        if not hide:
            pieces.append(Piece(Modality.SPECIAL, acted, counts))
        placed = place(pieces, last_is_action=True)
        begin = placed.starts[:, -1]
        if not hide:
            placed.modality[positions(begin, counts)] = modality
        sequence = self._sequence(placed, self._payloads(pieces))
        # The first dimension is read from the position before it, each next one from the next position, in both layouts.
        read_from = positions(begin - 1, counts)
        sequence.targets[read_from] = acted
        sequence.loss_weight[read_from] = weight
        return sequence

    def _observed(self, layout: TaskLayout, observations: Values) -> list[Piece]:
        """The observation's pieces with the separator, checked against what this assembler has room for."""
        pieces = layout.observation.encode(observations)
        steps = len(pieces[0].lengths)
        if steps == 0 or any(len(piece.lengths) != steps for piece in pieces):
            raise ValueError(f"the observation parts of {layout.name} have different numbers of steps, or none")
        if self.separator:
            pieces.append(self._repeated(self.vocabulary.separator, np.ones((steps,), np.int32)))
        longest = int(np.sum([piece.lengths for piece in pieces], axis=0).max())
        if longest > ACTION_POSITION:
            raise ValueError(
                f"a step of {layout.name} has {longest} observation positions, but there are {ACTION_POSITION} local positions: "
                'use tensors="projected" or images="frame", or shorten its text'
            )
        for piece in pieces:
            if piece.modality == Modality.FRAME and piece.payload is not None:
                self._check_frame(layout, piece.payload.shape[1], int(piece.lengths[0]))
        return pieces

    def _check_frame(self, layout: TaskLayout, size: int, each: int) -> None:
        if size != self.frame_size or each != self.frame_tokens:
            raise ValueError(
                f"a frame of {layout.name} has {size} pixels a side and {each} positions, but the assembler has frame_size "
                f"{self.frame_size} and frame_tokens {self.frame_tokens}: use one setting for both"
            )

    def _sequence(self, placed: Placed, found: Mapping[str, np.ndarray]) -> Sequence:
        """A sequence that predicts nothing yet. Payloads that were not found are empty."""
        empty = np.zeros((0, self.frame_size, self.frame_size, 3), np.uint8)
        return Sequence(
            tokens=placed.tokens,
            targets=np.full_like(placed.tokens, self.vocabulary.pad),
            loss_weight=np.zeros(placed.tokens.shape, np.float32),
            modality=placed.modality,
            local_position=placed.local_position,
            payload_index=placed.payload_index,
            image=np.cumsum(placed.modality == Modality.IMAGE, dtype=np.int32),
            tensors=found.get("tensors", np.zeros((0, self.projection_width), np.float32)),
            frames=found.get("frames", empty),
            patches=found.get("patches", np.zeros((0, PATCH_SIZE, PATCH_SIZE, 3), np.uint8)),
            intervals=found.get("intervals", np.zeros((0, 4), np.int32)),
            images=found.get("images", self._no_images),
        )

    @cached_property
    def _no_images(self) -> np.ndarray:
        return np.zeros((0, 0, 0, 3), np.uint8) if self.visual is None else self.visual.empty

    def _payloads(self, pieces: list[Piece]) -> dict[str, np.ndarray]:
        return payloads(pieces, self.projection_width, self.visual)

    def _document(self, piece: Piece) -> Sequence:
        """A piece of a document or an instruction: all its local positions are 0."""
        placed = place([piece])
        placed.local_position[:] = 0
        return self._sequence(placed, self._payloads([piece]))

    def _shifted(self, sequence: Sequence, pieces: list[Piece], weights: list[int]) -> Sequence:
        """The document with every predicted token as the target of the position before it."""
        weight = np.repeat(np.array(weights, np.float32), [len(piece.tokens) for piece in pieces])
        next_weight = np.append(weight[1:], np.float32(0))
        following = np.append(sequence.tokens[1:], np.int32(self.vocabulary.pad))
        targets = np.where(next_weight > 0, following, np.int32(self.vocabulary.pad))
        # The closing end marker is a target only: nothing is read from its position.
        stop = len(sequence) - 1 if weights and weights[-1] else len(sequence)
        shifted = dataclasses.replace(sequence, targets=targets, loss_weight=next_weight)
        return dataclasses.replace(shifted, **{name: getattr(shifted, name)[:stop] for name in POSITIONAL})

    def _given(self, ids: np.ndarray) -> Piece:
        return Piece(Modality.TEXT, ids, np.array([len(ids)], np.int32))

    def _repeated(self, token: int, lengths: np.ndarray) -> Piece:
        return Piece(Modality.SPECIAL, np.full((int(lengths.sum()),), token, np.int32), lengths)

    def _text_ids(self, text: str) -> np.ndarray:
        return self.text_tokenizer.encode(text)

    def _image(self, image: np.ndarray) -> list[Piece]:
        """An image of a document in each way that it enters, the marker first."""
        pieces, ways, pad = [], self.images.split("+"), self.vocabulary.pad
        if image.ndim == 2:
            image = image[..., None]
        if "encoder" in ways:
            pieces.append(image_piece(image[None], marker=self.vocabulary.image))
        if "patches" in ways:
            pieces.append(patch_piece(image[None], pad=pad))
        if "frame" in ways:
            frame = to_frame(image, self.frame_size)
            pieces.append(frame_piece(frame[None], pad=pad, frame_size=self.frame_size, frame_tokens=self.frame_tokens))
        return pieces

    def _modality_of(self, tokens: np.ndarray) -> np.ndarray:
        """Modality of action tokens, int32 like them. A special one is the end marker of a text."""
        kinds = np.searchsorted(self.vocabulary.boundaries, tokens, side="right") - 1
        return _MODALITY_OF_KIND[kinds]


def _is_image(part: Part) -> bool:
    """Whether a part is an image; the other arrays are ids."""
    return isinstance(part, np.ndarray) and part.ndim > 1


def _dimensions(layout: TaskLayout) -> int:
    """Tokens of one action."""
    count = layout.action.tokens_per_step
    if count is None:
        raise ValueError(f"{layout.name} has text in its actions, whose length varies: use hide_actions=False")
    return count
