"""The assembler, which puts pieces in order (Gato, section 2.1 and appendix B).

A control window has one of these layouts. `o` observation positions, `|` the optional separator, `a` action tokens, `h` hidden
ones:

    sequential           o o | a0 a1 a2  o o | a0 a1 a2       Gato's: every action token is read by what follows
    sequential, hidden   o o | h  h      o o | h  h           actions are targets only
    parallel             o o | a0 a1 a2  o o | a0 a1 a2       action tokens are read by what follows, and predict nothing
    parallel, hidden     o o |           o o |                actions are targets only, and take no position

Of sequential actions, the first token is predicted from the last position before it, and each later one from the next position:
the last one needs no hidden position, as nothing is read from it. Of parallel ones, all tokens are predicted from the last
position before them, as JAT does (section 3). Hiding keeps the policy from copying its last action.

Dimension key: T steps, n ids, H height, W width, C channels of an image, K parallel actions, A dimensions of the largest of them.
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence as Sequences
from functools import cached_property
from typing import get_args

import numpy as np
from jaxtyping import Int, Int32, Shaped, UInt8

from generalist.tokenizers.documents import CHUNK_END, Arranged, ChunkEnd, Part, Predicted, arrange, is_image, marked
from generalist.tokenizers.image import frame_piece, image_piece, patch_piece, to_frame, to_rgb
from generalist.tokenizers.locations import BINS, place_in, promoted, written
from generalist.tokenizers.marks import ImageMarks, Marks
from generalist.tokenizers.pieces import (
    ACTION_POSITION,
    PATCH_SIZE,
    PAYLOADS,
    POSITIONAL,
    ImageCodes,
    Images,
    Modality,
    Piece,
    Sequence,
    Visual,
    positions_per_row,
)
from generalist.tokenizers.placement import Placed, interleave, joined, payloads, place, positions
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import KINDS, Vocabulary
from generalist.tokenizers.written import image_positions, written_document

__all__ = ["ACTION_POSITION", "CHUNK_END", "Assembler", "Modality", "Piece", "Predicted", "Sequence"]

Values = Mapping[str, Shaped[np.ndarray, "_T ..."]]
"""The values of T steps by flat key: the result of `SpaceTokenizer.stack`."""

# Modality of the vocabulary's kinds in their order, then of special tokens: an action contains only the end marker of a text.
_MODALITY_OF_KIND = np.array(
    [Modality.TEXT, Modality.CONTINUOUS, *[Modality.DISCRETE] * (len(KINDS) - 2), Modality.TEXT], np.int32
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembler:
    """Puts pieces in order: the same code for training and for acting, so that the two cannot differ."""

    vocabulary: Vocabulary
    text_tokenizer: TextTokenizer
    projection_width: int = 0
    """F: columns of the run's projection of tensors."""
    frame_size: int = 84
    """Pixels per side of a frame."""
    frame_tokens: int = 1
    """Positions per frame."""
    action_dimensions: int = 0
    """A: dimensions of the run's largest parallel action."""
    separator: bool = False
    """Put the separator between an observation and its action."""
    images: Images = "frame"
    """How document images enter the model; same choices as for observations."""
    visual: Visual | None = None
    """Converts images for the frozen encoder; None without one."""
    image_positions: int = 1
    """Positions per image that is projected."""
    both_ways: bool = False
    """Whether the positions of a projected image are a block, which see each other in both directions."""
    around_images: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Ids before and behind a document's image that is projected, as a published model knows them; none for observations."""
    codes: ImageCodes | None = None
    """The image tokenizer; None without one."""
    published: Marks | None = None
    """The marks of a published model; None: our own special ids."""

    def __post_init__(self) -> None:
        if self.text_tokenizer.size > self.vocabulary.text:
            raise ValueError(
                f"the text tokenizer has {self.text_tokenizer.size} pieces but vocabulary.text is {self.vocabulary.text}: "
                "raise vocabulary.text or train the tokenizer with fewer pieces"
            )
        if self.images not in get_args(Images):
            raise ValueError(f"images must be one of {', '.join(get_args(Images))}, got {self.images!r}")

    @property
    def marks(self) -> Marks:
        """The ids around texts."""
        return self.published or Marks.of(self.vocabulary, self.text_tokenizer.size)

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """Ids of a text; the location tokens in it, such as `<loc0123>`, have their own where the vocabulary has locations.

        Raises:
            ValueError: the text has a lone surrogate, or a location token beyond the vocabulary's.
        """
        return promoted(text, self.text_tokenizer.encode, self.vocabulary.range("locations"))

    def check_places(self, text: str) -> None:
        """Checks that the places in a prompt have ids. A published model has tokens of its own for them, or none.

        Raises:
            ValueError: the text has a location token, and the vocabulary has no locations.
        """
        # Such weights would read a place as the characters that it is written with.
        if self.published is None and not self.vocabulary.locations and (place := place_in(text)):
            raise ValueError(
                f"{place} is a place in an image, but these weights have no ids for places: leave it out, or use weights "
                f"that were trained with --tokens.locations {BINS}, such as those of the preset pocket_all"
            )

    def written(self, ids: Int[np.ndarray, "n"]) -> str:
        """The text of ids that a model wrote: control tokens, and ids without a piece or place, are left out."""
        return written(ids, self.text_tokenizer.written, self.vocabulary.range("locations"))

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
        """A window of T steps, after its instruction and, if given, prompts: steps of other episodes.

        The loss is on the window's actions alone, and on the prompts' too with `prompt_loss`. A prompt's actions are shown
        even if the window's are hidden: with hidden actions it would demonstrate nothing.
        """
        # The same two calls that acting makes, one after the other: prefix once, then step by step.
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
        """What precedes an episode's steps: the instruction, and steps of other episodes with observations and actions."""
        shown = [self._steps(layout, *prompt, hide=False, weight=float(prompt_loss)) for prompt in prompts]
        return self.concatenate([self.instruction(instruction), *shown])

    def room(self, layout: TaskLayout, instruction: str, *, window: int, length: int) -> int:
        """Number of steps with actions that fit between an instruction and a window of `window` steps in a row of `length`
        positions; 0 for a layout with texts, whose steps vary in length."""
        observed, acted = layout.observation.tokens_per_step, layout.action.tokens_per_step
        if observed is None or acted is None:
            return 0
        # An upper bound: a hidden action takes fewer positions.
        left = length - len(self.instruction(instruction)) - window * (observed + self.separator + acted)
        return max(0, left // (observed + self.separator + acted))

    def instruction(self, text: str) -> Sequence:
        """The instruction: given, never predicted, without special tokens. An empty text gives no positions."""
        return self._document(self._given(self.encode(text)))

    def step(self, layout: TaskLayout, observations: Values, *, hide_actions: bool) -> Sequence:
        """Steps whose actions are still to be chosen: observation, separator and, with hidden actions that are sequential, the
        hidden tokens that the later dimensions are predicted from."""
        return self._steps(layout, observations, None, hide=hide_actions)

    def action(self, layout: TaskLayout, tokens: Int[np.ndarray, "n"]) -> Sequence:
        """Chosen action tokens as positions to append; they may be a part of an action."""
        tokens = np.asarray(tokens, np.int32)
        placed = place([Piece(Modality.SPECIAL, tokens, np.array([len(tokens)], np.int32))], last_is_action=True)
        placed.modality[:] = self._modality_of(tokens)
        return self._sequence(placed, {})

    def text(self, text: str | Int32[np.ndarray, "n"], bos: bool = True, eos: bool = True) -> Sequence:
        """A text, or its ids, with the loss on all of it. The end marker is a target only: nothing is read from its position."""
        ids = text if isinstance(text, np.ndarray) else self.encode(text)
        tokens = np.concatenate([[self.vocabulary.bos], ids] if bos else [ids]).astype(np.int32)
        # Targets are the tokens shifted by one; the cut drops the target that has no position to be predicted from.
        targets = np.concatenate([tokens[1:], [self.vocabulary.eos if eos else self.vocabulary.pad]])[: len(tokens)]
        sequence = self._document(self._given(tokens))
        weight = (targets != self.vocabulary.pad).astype(np.float32)
        return dataclasses.replace(sequence, targets=targets.astype(np.int32), loss_weight=weight)

    def document(self, parts: Sequences[Part], *, to_next: bool = False, is_open: bool = False) -> Sequence:
        """Images and texts (or their ids) in any order, as Flamingo reads them (sections 2.4 and 3.1):

            bos  text  <image> text text chunk_end  <image> text chunk_end

        Every text attends to the image before it or, with `to_next`, to the one after it. A text with an image is predicted (as
        in OpenFlamingo) and so is the end of its chunk, an image's marker never. If some parts are `Predicted`, only those and
        the ends of their chunks are.

        Args:
            parts: `CHUNK_END` ends a chunk that has no image.
            to_next: texts attend to the next image instead of the previous one.
            is_open: the last chunk has no end and nothing is predicted: a document to be continued.

        Raises:
            ValueError: an image has an unsupported shape or dtype, or the model sees no images.
        """
        if self.marks.image is not None:
            return self._written(self.marks.image, parts, is_open=is_open)
        # Parallel lists, one entry per piece: loss weight of its tokens, and the image that they attend to.
        pieces, weights, attended = [self._given(np.array(self.marks.begin, np.int32))], [0], [0]
        cross = self.marks.cross
        arranged = arrange(parts, to_next=to_next, is_open=is_open, implied=cross is None or cross.implied)
        for one in arranged if cross is None else marked(arranged, cross):
            placed = self._part(one)
            pieces += placed
            weights += [int(one.predicted)] * len(placed)
            attended += [one.image] * len(placed)
        whole = self._in_blocks(self.concatenate([self._document(piece) for piece in pieces]))
        sequence = self._shifted(whole, pieces, weights)
        if self.visual is None:
            return sequence
        image = np.repeat(np.array(attended, np.int32), [len(piece.tokens) for piece in pieces])
        return dataclasses.replace(sequence, image=image[: len(sequence)])

    def concatenate(self, sequences: Sequences[Sequence]) -> Sequence:
        """Sequences one after the other; payloads are joined and their indices shifted."""
        filled = [sequence for sequence in sequences if len(sequence.tokens)]
        if not filled:
            return self._document(self._given(np.zeros((0,), np.int32)))
        if len(filled) == 1:
            return filled[0]
        fields = {
            field.name: [getattr(sequence, field.name) for sequence in filled] for field in dataclasses.fields(Sequence)
        }
        # Each sequence counts its payloads from 0. New arrays instead of additions in place: sequences may be shared.
        for modality, payload in PAYLOADS.items():
            before = 0
            for number, sequence in enumerate(filled):
                count = len(getattr(sequence, payload)) * positions_per_row(modality, self.frame_tokens)
                if before and count:
                    index = fields["payload_index"][number]
                    fields["payload_index"][number] = np.where(
                        sequence.modality == modality, index + np.int32(before), index
                    )
                before += count
        begins = np.cumsum([0] + [len(sequence) for sequence in filled])
        fields["action_from"] = [
            place + np.int32(begin) for place, begin in zip(fields["action_from"], begins[:-1], strict=True)
        ]
        # What follows an image attends to it, unless it has its own (Flamingo, section 2.4).
        held = np.cumsum([0] + [int((sequence.modality == Modality.IMAGE).sum()) for sequence in filled])
        fields["image"] = [
            image + np.int32(before) if before else image
            for image, before in zip(fields["image"], held[:-1], strict=True)
        ]
        blocks = np.cumsum([0] + [int(sequence.block.max()) for sequence in filled])
        fields["block"] = [
            np.where(block > 0, block + np.int32(before), 0).astype(np.int32) if before else block
            for block, before in zip(fields["block"], blocks[:-1], strict=True)
        ]
        return Sequence(**{name: joined(arrays) for name, arrays in fields.items()})

    def _steps(
        self, layout: TaskLayout, observations: Values, actions: Values | None, *, hide: bool, weight: float = 1.0
    ) -> Sequence:
        """Steps of one layout; targets and loss weights are set if `actions` are given."""
        pieces = self._observed(layout, observations)
        steps = len(pieces[0].lengths)
        if hide:
            pieces.append(self._repeated(self.vocabulary.hidden, np.full((steps,), _hidden(layout), np.int32)))
        if actions is None:
            return self._in_blocks(self._sequence(place(pieces, last_is_action=hide), self._payloads(pieces)))
        acted, modality, counts = interleave(layout.action.encode(actions))
        if len(counts) != steps:
            raise ValueError(
                f"{layout.name} has {steps} observed steps but {len(counts)} actions: give one action per step"
            )
        if not hide:
            pieces.append(Piece(Modality.SPECIAL, acted, counts))
        placed = place(pieces, last_is_action=True)
        begin = placed.starts[:, -1]
        # Action tokens of several kinds share one piece, so their modalities are filled in afterwards.
        if not hide:
            placed.modality[positions(begin, counts)] = modality
        sequence = self._in_blocks(self._sequence(placed, self._payloads(pieces)))
        if layout.acting.parallel:
            return self._predicted(sequence, acted.reshape(steps, -1), begin - 1, weight) if weight else sequence
        # The first dimension is predicted from the position before it, each later one from the next position, in both layouts.
        read_from = positions(begin - 1, counts)
        sequence.targets[read_from] = acted
        sequence.loss_weight[read_from] = weight
        return sequence

    def _predicted(
        self, sequence: Sequence, acted: Int32[np.ndarray, "T n"], read_from: Int[np.ndarray, "T"], weight: float
    ) -> Sequence:
        """The sequence with parallel actions to predict.

        Args:
            acted: n ids per action.
            read_from: the position that each action is predicted from.
            weight: of the predictions.

        Raises:
            ValueError: an action has more dimensions than this assembler's.
        """
        steps, dimensions = acted.shape
        more = self.action_dimensions - dimensions
        if more < 0:
            raise ValueError(
                f"an action has {dimensions} dimensions, more than action_dimensions = {self.action_dimensions}: pass the "
                "assembler the largest number of any layout"
            )
        return dataclasses.replace(
            sequence,
            actions=np.pad(acted, ((0, 0), (0, more)), constant_values=self.vocabulary.pad),
            action_weight=np.pad(np.full((steps, dimensions), weight, np.float32), ((0, 0), (0, more))),
            action_from=read_from.astype(np.int32),
        )

    def _observed(self, layout: TaskLayout, observations: Values) -> list[Piece]:
        """The observation's pieces with the separator, checked against this assembler's limits."""
        pieces = layout.observation.encode(observations)
        steps = len(pieces[0].lengths)
        if steps == 0 or any(len(piece.lengths) != steps for piece in pieces):
            raise ValueError(f"the observation parts of {layout.name} have different numbers of steps, or none")
        if self.separator:
            pieces.append(self._repeated(self.vocabulary.separator, np.ones((steps,), np.int32)))
        # The last local position belongs to actions, so observations must stay below it.
        longest = int(np.sum([piece.lengths for piece in pieces], axis=0).max())
        if longest > ACTION_POSITION:
            raise ValueError(
                f"a step of {layout.name} has {longest} observation positions, more than the {ACTION_POSITION} local positions: "
                'use tensors="projected" or images="frame", shorten its text, or project images into fewer positions '
                "(model.vision.positions)"
            )
        for piece in pieces:
            if piece.modality == Modality.FRAME and piece.payload is not None:
                self._check_frame(layout, piece.payload.shape[1], int(piece.lengths[0]))
            if piece.modality == Modality.PROJECTED and piece.lengths[0] != self.image_positions - 1:
                raise ValueError(
                    f"an image of {layout.name} has {piece.lengths[0] + 1} positions, but the assembler has image_positions "
                    f"{self.image_positions}: use one setting for both"
                )
        return pieces

    def _check_frame(self, layout: TaskLayout, size: int, each: int) -> None:
        if size != self.frame_size or each != self.frame_tokens:
            raise ValueError(
                f"a frame of {layout.name} has {size} pixels per side and {each} positions, but the assembler has frame_size "
                f"{self.frame_size} and frame_tokens {self.frame_tokens}: use one setting for both"
            )

    def _sequence(self, placed: Placed, found: Mapping[str, Shaped[np.ndarray, "_R ..."]]) -> Sequence:
        """A sequence without targets. Absent payloads are empty, in their usual trailing shape, so that they concatenate."""
        empty = np.zeros((0, self.frame_size, self.frame_size, 3), np.uint8)
        return Sequence(
            tokens=placed.tokens,
            targets=np.full_like(placed.tokens, self.vocabulary.pad),
            loss_weight=np.zeros(placed.tokens.shape, np.float32),
            modality=placed.modality,
            local_position=placed.local_position,
            payload_index=placed.payload_index,
            # Each position attends to the last image marker at or before it.
            image=np.cumsum(placed.modality == Modality.IMAGE, dtype=np.int32),
            block=np.zeros_like(placed.tokens),
            tensors=found.get("tensors", np.zeros((0, self.projection_width), np.float32)),
            frames=found.get("frames", empty),
            patches=found.get("patches", np.zeros((0, PATCH_SIZE, PATCH_SIZE, 3), np.uint8)),
            intervals=found.get("intervals", np.zeros((0, 4), np.int32)),
            images=found.get("images", self._no_images),
            actions=np.zeros((0, self.action_dimensions), np.int32),
            action_weight=np.zeros((0, self.action_dimensions), np.float32),
            action_from=np.zeros((0,), np.int32),
        )

    @cached_property
    def _no_images(self) -> Shaped[np.ndarray, "0 ..."]:
        return np.zeros((0, 0, 0, 3), np.uint8) if self.visual is None else self.visual.empty

    def _payloads(self, pieces: list[Piece]) -> dict[str, Shaped[np.ndarray, "_R ..."]]:
        return payloads(pieces, self.projection_width, self.visual)

    def _document(self, piece: Piece) -> Sequence:
        """A piece of a document or an instruction: all its local positions are 0."""
        # A document's order is given by its positions in the sequence; local positions are for the parts of a step.
        placed = place([piece])
        placed.local_position[:] = 0
        return self._sequence(placed, self._payloads([piece]))

    def _shifted(self, sequence: Sequence, pieces: list[Piece], weights: list[int]) -> Sequence:
        """The document, each predicted token as the target of the position before it."""
        weight = np.repeat(np.array(weights, np.float32), [len(piece.tokens) for piece in pieces])
        next_weight = np.append(weight[1:], np.float32(0))
        following = np.append(sequence.tokens[1:], np.int32(self.vocabulary.pad))
        targets = np.where(next_weight > 0, following, np.int32(self.vocabulary.pad))
        # The closing end marker is a target only: nothing is read from its position.
        stop = len(sequence) - 1 if weights and weights[-1] else len(sequence)
        shifted = dataclasses.replace(sequence, targets=targets, loss_weight=next_weight)
        return dataclasses.replace(shifted, **{name: getattr(shifted, name)[:stop] for name in POSITIONAL})

    def _given(self, ids: Int32[np.ndarray, "n"]) -> Piece:
        return Piece(Modality.TEXT, ids, np.array([len(ids)], np.int32))

    def _repeated(self, token: int, lengths: Int32[np.ndarray, "T"]) -> Piece:
        return Piece(Modality.SPECIAL, np.full((int(lengths.sum()),), token, np.int32), lengths)

    def _written(self, marks: ImageMarks, parts: Sequences[Part], *, is_open: bool) -> Sequence:
        """A document of a published model, with the features of its images at their positions."""
        assert self.visual is not None
        images = [np.asarray(part) for part in parts if is_image(part)]
        shown = [marks.shown(to_rgb(image if image.ndim == 3 else image[..., None])) for image in images]
        ids = written_document(self.text_tokenizer, self.marks, parts, shown, is_open=is_open)
        modality, index = image_positions(ids, marks, shown)
        placed = dataclasses.replace(place([self._given(ids)]), modality=modality, payload_index=index)
        placed.local_position[:] = 0
        pixels = [self.visual(image[None]) for one in shown for image in one.images]
        sequence = self._sequence(placed, {"images": np.concatenate(pixels)} if pixels else {})
        if marks.blocks == "prompt":
            return dataclasses.replace(sequence, block=np.ones_like(sequence.block))
        return self._in_blocks(sequence)

    def _in_blocks(self, sequence: Sequence) -> Sequence:
        """The sequence with each projected image a block, if images are blocks."""
        if not self.both_ways:
            return sequence
        number = np.cumsum(sequence.modality == Modality.IMAGE, dtype=np.int32)
        is_image = np.isin(sequence.modality, (Modality.IMAGE, Modality.PROJECTED))
        return dataclasses.replace(sequence, block=np.where(is_image, number, np.int32(0)))

    def _part(self, one: Arranged) -> list[Piece]:
        """The pieces of a document's part."""
        part = one.part
        if isinstance(part, ChunkEnd):
            return [self._repeated(self.marks.chunk_end, np.ones((1,), np.int32))]
        if is_image(part):
            return self._image(np.asarray(part))
        text = part.text if isinstance(part, Predicted) else part
        return [self._given(text if isinstance(text, np.ndarray) else self.encode(str(text)))]

    def _image(self, image: UInt8[np.ndarray, "H W *C"]) -> list[Piece]:
        """An image of a document in each way that it enters, the marker first."""
        if self.marks.cross is not None:
            image = image[..., None] if image.ndim == 2 else image
            return [image_piece(image[None], marker=self.marks.cross.image)]
        if self.published is not None and self.visual is None:
            raise ValueError("these weights are a language model, which sees no images: leave them out")
        # First, so that the image's own patches or frame attend to it through cross-attention as well.
        pieces, ways, pad = [], self.images.split("+"), self.vocabulary.pad
        if image.ndim == 2:
            image = image[..., None]
        if "encoder" in ways or "projected" in ways:
            pieces.append(image_piece(image[None], marker=self.vocabulary.image))
        if "projected" in ways and self.image_positions > 1:
            more = np.array([self.image_positions - 1], np.int32)
            pieces.append(Piece(Modality.PROJECTED, np.full(more, pad, np.int32), more))
        if "projected" in ways:
            before, after = ([self._given(np.array(ids, np.int32))] if ids else [] for ids in self.around_images)
            pieces = [*before, *pieces, *after]
        if "patches" in ways:
            pieces.append(patch_piece(image[None], pad=pad))
        if "frame" in ways:
            # Documents have images of all sizes; a frame has one size, that of control's observations.
            frame = to_frame(image, self.frame_size)
            pieces.append(frame_piece(frame[None], pad=pad, frame_size=self.frame_size, frame_tokens=self.frame_tokens))
        return pieces

    def _modality_of(self, tokens: Int32[np.ndarray, "n"]) -> Int32[np.ndarray, "n"]:
        """Modality of action tokens. A special token is the end marker of a text."""
        # From the right: a kind without ids begins where the next one does.
        kinds = np.searchsorted(self.vocabulary.boundaries, tokens, side="right") - 1
        return _MODALITY_OF_KIND[kinds]


def _hidden(layout: TaskLayout) -> int:
    """Positions of a hidden action."""
    count = layout.action_positions(hidden=True)
    if count is None:
        raise ValueError(f"{layout.name} has text in its actions, whose length varies: use hide_actions=False")
    return count
