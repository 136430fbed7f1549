"""What each position of a sequence means, for people: the way back from the arrays that the model is given.

Nothing but the arrays is used, and each position is checked against the layout: what is shown is what the model reads.

Dimension key: L positions, H height, W width, C channels.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from generalist.tokenizers.parts import ContinuousPart, DiscretePart, OneHotPart, Part, TensorPart, TextPart
from generalist.tokenizers.pieces import ACTION_POSITION, Modality
from generalist.tokenizers.pieces import Sequence as TokenSequence
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.vocabulary import SPECIALS

SHOWN = 24
"""Numbers of a tensor that are written out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a position holds, or what is predicted from it."""

    part: str
    """Where it is from: `instruction`, `observation state`, `action[2]`, `separator`, ..."""
    value: str
    """Decoded: a piece of text, a number."""
    image: np.ndarray | None = None
    """What an image position shows, uint8 (H, W, C); None where there is none, or only features of it."""


def meanings(sequence: TokenSequence, assembler: Assembler, layout: TaskLayout | None) -> list[Meaning]:
    """What each of L positions holds.

    Args:
        layout: of a control window; None for documents and texts.

    Raises:
        ValueError: a position is not what the layout has there.
    """
    reader = _Reader(sequence, assembler)
    if layout is None:
        return [reader.document(at) for at in range(len(sequence))]
    begin = instruction_length(sequence, layout)
    found = [reader.document(at, "instruction") for at in range(begin)]
    while len(found) < len(sequence):
        found += reader.step(len(found), layout)
    return found


def targets(sequence: TokenSequence, assembler: Assembler, layout: TaskLayout | None) -> list[list[Meaning]]:
    """What is predicted from each of L positions: nothing, a token, or all dimensions of a parallel action."""
    vocabulary = assembler.vocabulary
    found: list[list[Meaning]] = [[] for _ in range(len(sequence))]
    places = np.flatnonzero((sequence.targets != vocabulary.pad) | (sequence.loss_weight > 0))
    ids = sequence.targets[places]
    reader = _Reader(sequence, assembler)
    if layout is None:
        told = [reader.token(int(token)) for token in ids]
    else:
        told = []
        while len(told) < len(ids):
            told += reader.action(ids[len(told) :], layout)
    for place, meaning in zip(places.tolist(), told, strict=True):
        found[place] = [meaning]
    if layout is not None:
        for place, several in zip(sequence.action_from.tolist(), sequence.actions, strict=True):
            found[place] = reader.action(several[several != vocabulary.pad], layout)
    return found


def instruction_length(sequence: TokenSequence, layout: TaskLayout) -> int:
    """Positions before the first step: texts whose local position is 0, as that of a step's first position is."""
    is_text = (sequence.modality == Modality.TEXT) & (sequence.local_position == 0)
    leading = len(is_text) if is_text.all() else int(is_text.argmin())
    return leading - 1 if isinstance(layout.observation.parts[0], TextPart) else leading


def part_name(role: str, part: Part) -> str:
    """`observation state`, or the role alone where the space is a single value."""
    return f"{role} {part.key}" if part.key else role


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the positions of a sequence."""

    sequence: TokenSequence
    assembler: Assembler

    def token(self, token: int, part: str = "text") -> Meaning:
        """A special token or a piece of text."""
        vocabulary = self.assembler.vocabulary
        kind = vocabulary.kind_of(token)
        if kind == "special":
            return Meaning(part=SPECIALS[token - vocabulary.range("special").start], value="")
        if kind != "text":
            return Meaning(part=kind, value=str(token - vocabulary.range(kind).start))
        return Meaning(part=part, value=self._piece(token))

    def document(self, at: int, part: str = "text") -> Meaning:
        """A position of a document or an instruction."""
        modality = int(self.sequence.modality[at])
        if modality in (Modality.FRAME, Modality.PATCH, Modality.IMAGE, Modality.PROJECTED):
            return self._image(at, "image")
        return self.token(int(self.sequence.tokens[at]), part)

    def step(self, begin: int, layout: TaskLayout) -> list[Meaning]:
        """The positions of a step, which begins at one of them."""
        found: list[Meaning] = []
        for part, tensors in _in_order(layout.observation.parts):
            found += self._observed(begin + len(found), part, tensors)
        local = self.sequence.local_position[begin : begin + len(found)]
        if (local != np.arange(len(found))).any():
            raise ValueError(
                f"position {begin} begins no step of {layout.name}: its local positions are {local.tolist()}"
            )
        at, vocabulary = begin + len(found), self.assembler.vocabulary
        if at < len(self.sequence) and self.sequence.tokens[at] == vocabulary.separator:
            found.append(Meaning(part="separator", value=""))
            at += 1
        acted = self.sequence.local_position[at:] == ACTION_POSITION
        end = at + (len(acted) if acted.all() else int(acted.argmin()))
        ids = self.sequence.tokens[at:end]
        if (ids == vocabulary.hidden).all():
            return found + [Meaning(part="hidden", value="") for _ in ids]
        return found + self.action(ids, layout)

    def action(self, ids: np.ndarray, layout: TaskLayout) -> list[Meaning]:
        """The tokens of one action, at the beginning of `ids`."""
        found: list[Meaning] = []
        for part in layout.action.parts:
            left = ids[len(found) :]
            if isinstance(part, TextPart):
                found += self._text(left, part_name("action", part))
            else:
                found += _numbers(part, left[: part.size], part_name("action", part))
        return found

    def _observed(self, at: int, part: Part, tensors: Sequence[Part]) -> list[Meaning]:
        """The positions of an observed part, or the one that all tensors share."""
        if tensors:
            self._check(at, Modality.TENSOR, part)
            row = self.sequence.tensors[self.sequence.payload_index[at]]
            names = ", ".join(part_name("observation", one) for one in tensors)
            return [Meaning(part=names, value="; ".join(_tensor(one, row) for one in tensors))]
        name = part_name("observation", part)
        if isinstance(part, TextPart):
            self._check(at, Modality.TEXT, part)
            return self._text(self.sequence.tokens[at:], name)
        count = part.tokens_per_step or 0
        if isinstance(part, ContinuousPart | DiscretePart):
            self._check(at, Modality.CONTINUOUS if isinstance(part, ContinuousPart) else Modality.DISCRETE, part)
            return _numbers(part, self.sequence.tokens[at : at + count], name)
        return [self._image(place, name) for place in range(at, at + count)]

    def _check(self, at: int, modality: Modality, part: Part) -> None:
        found = Modality(int(self.sequence.modality[at]))
        if found != modality:
            raise ValueError(f"position {at} is {found.name}, where {part.key!r} should be {modality.name}")

    def _text(self, ids: np.ndarray, name: str) -> list[Meaning]:
        """A text with its end marker."""
        ends = np.flatnonzero(ids == self.assembler.vocabulary.eos)
        if not len(ends):
            raise ValueError(f"the text of {name} has no end marker")
        pieces = [Meaning(part=name, value=self._piece(int(token))) for token in ids[: ends[0]]]
        return [*pieces, Meaning(part=name, value="end")]

    def _piece(self, token: int) -> str:
        """A piece of text; bytes of a character that has no piece are not readable one by one."""
        text = self.assembler.text_tokenizer
        return text.decode(np.array([token], np.int32)) if token < text.size else f"text id {token}"

    def _image(self, at: int, name: str) -> Meaning:
        modality, index = Modality(int(self.sequence.modality[at])), int(self.sequence.payload_index[at])
        if modality == Modality.FRAME:
            each = self.assembler.frame_tokens
            value = f"position {index % each + 1} of {each} of a frame" if each > 1 else "frame"
            return Meaning(part=name, value=value, image=self.sequence.frames[index // each])
        if modality == Modality.PATCH:
            low, high, left, right = self.sequence.intervals[index].tolist()
            value = f"patch, rows {low} to {high}, columns {left} to {right} of 128"
            return Meaning(part=name, value=value, image=self.sequence.patches[index])
        if modality == Modality.PROJECTED:
            return Meaning(part=name, value="further position of the image")
        if modality != Modality.IMAGE:
            raise ValueError(f"position {at} is {modality.name}, where {name} should be an image")
        image = self.sequence.images[index]
        if image.ndim == 3 and image.dtype == np.uint8:
            return Meaning(part=name, value="image for the encoder", image=image)
        return Meaning(part=name, value=f"features of an image, {' × '.join(map(str, image.shape))}")


def _in_order(parts: Sequence[Part]) -> Iterator[tuple[Part, list[Part]]]:
    """Parts in the order of their positions; the first tensor stands for all of them, which are given beside it."""
    tensors = [part for part in parts if part.projection_size]
    for part in parts:
        if not part.projection_size:
            yield part, []
        elif part is tensors[0]:
            yield part, tensors


def _numbers(part: Part, ids: np.ndarray, name: str) -> list[Meaning]:
    """A part's numbers, a token each."""
    values = part.decode(np.asarray(ids)[None]).reshape(-1)
    names = [name] if part.size == 1 else [f"{name}[{place}]" for place in range(part.size)]
    return [Meaning(part=one, value=_written(value)) for one, value in zip(names, values, strict=True)]


def _tensor(part: Part, row: np.ndarray) -> str:
    """The numbers of a projected part, as they were before they were standardised."""
    assert isinstance(part, TensorPart | OneHotPart)
    columns = row[part.offset : part.offset + part.projection_size].astype(np.float64)
    if isinstance(part, TensorPart):
        values = columns * np.array(part.std) + np.array(part.mean, np.float64)
    else:
        ends = np.cumsum(part.codec.sizes)
        each = np.split(columns, ends[:-1])
        values = np.array([one.argmax() + start for one, start in zip(each, part.codec.starts, strict=True)])
    more = f", ... ({len(values)} numbers)" if len(values) > SHOWN else ""
    return f"{part.key or 'value'}: {', '.join(map(_written, values[:SHOWN]))}{more}"


def _written(value: object) -> str:
    number = np.asarray(value)
    return str(number.item()) if number.dtype.kind in "iub" else f"{number.item():.4g}"
