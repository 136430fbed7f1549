"""Real training rows for people: drawn, assembled and packed by the code that training uses, each position with its meaning and
with what the model's own masks let it attend to.

Dimension key: L positions, I images of a row.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from generalist.data.batch import Batch, BatchSpec
from generalist.data.examples import ControlExamples
from generalist.data.packing import OpenBatch, Packer, Position
from generalist.eval.report.rows_page import Cell, Row, Target
from generalist.experiment.subject import Subject
from generalist.experiment.tokens_seen import Drawn, Labelled, Stream, naming, open_parts, shard_spec
from generalist.model.config import ModelConfig
from generalist.model.cross_attention import first_image, image_mask
from generalist.model.masks import Blocks, attention_mask
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.described import Meaning, meanings, targets
from generalist.tokenizers.pieces import POSITIONAL, Modality
from generalist.tokenizers.pieces import Sequence as TokenSequence
from generalist.tokenizers.spaces import TaskLayout


def training_rows(about: Subject, count: int, *, packed: bool) -> list[Row]:
    """Rows of the source, as a run's first batch has them.

    Args:
        count: rows at most.
        packed: several examples per row, as batches have them; else one per row.

    Raises:
        ValueError: an example does not fit into a batch, or the source has none.
        FileNotFoundError: a recording is not there.
    """
    data = about.stored()
    tokenizers = about.tokenizers(data)
    parts, spec = open_parts(about, tokenizers, data), shard_spec(about, tokenizers)
    stream, pad = Stream(about, parts), tokenizers.assembler.vocabulary.pad
    with naming(about):
        if packed:
            # As training packs it: what is on the page is what the model gets.
            batches = [Packer(stream, spec, pad).pack(Position())[0].batch]
        else:
            batches = [_alone(stream, number, dataclasses.replace(spec, rows=1), pad) for number in range(count)]
    reader = _Reader(about.config.model, tokenizers, parts, stream)
    # A packed batch has more rows than were asked for.
    return [reader.row(batch, row) for batch in batches for row in range(len(batch.tokens))][:count]


def _alone(stream: Stream, number: int, spec: BatchSpec, pad: int) -> Batch:
    """A batch of one row with one example."""
    opened = OpenBatch(spec, pad)
    serial, sequence = stream(number)
    # The same message as in training, should the example be too large.
    opened.check(sequence, serial)
    opened.add(sequence, serial)
    return opened.batch


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the rows of batches whose `source` says which example of the stream a position is of."""

    model: ModelConfig
    tokenizers: Tokenizers
    parts: list[Labelled]
    stream: Stream

    def row(self, batch: Batch, row: int) -> Row:
        """One row of a batch."""
        segment = np.asarray(batch.segment[row])  # (L,)
        cells: list[Cell] = []
        titles = []
        count = int((np.asarray(batch.modality[row]) == Modality.IMAGE).sum())
        visible, near, images = seen(batch, row, partial(masks, self.model, count))
        # 0 is padding.
        for number in range(1, int(segment.max(initial=0)) + 1):
            at = np.flatnonzero(segment == number)
            # `source` holds the number of an example in the stream (see `Stream`).
            drawn = self.stream.drawn[int(batch.source[row, at[0]])]
            titles.append(self._title(drawn))
            sequence, layout = _sequence(batch, row, at), self._layout(drawn)
            held = meanings(sequence, self.tokenizers.assembler, layout)
            wanted = targets(sequence, self.tokenizers.assembler, layout)
            # A position's targets are what the model is to predict after it, with their own meanings.
            cells += [
                self._cell(
                    batch, row, place, meaning, several, ranges(visible[place]), ranges(near[place]), images[place]
                )
                for place, meaning, several in zip(at.tolist(), held, wanted, strict=True)
            ]
        return Row(segments=titles, cells=cells, length=len(segment), window=self.model.window)

    def _cell(
        self,
        batch: Batch,
        row: int,
        place: int,
        meaning: Meaning,
        wanted: list[Meaning],
        sees: list[tuple[int, int]],
        near: list[tuple[int, int]],
        images: list[int],
    ) -> Cell:
        ids, weights = _targets(batch, row, place)
        return Cell(
            modality=Modality(int(batch.modality[row, place])).name.lower(),
            token=int(batch.tokens[row, place]),
            part=meaning.part,
            value=meaning.value,
            image=meaning.image,
            targets=[
                Target(token=token, part=one.part, value=one.value) for token, one in zip(ids, wanted, strict=False)
            ],
            weight=max(weights),
            segment=int(batch.segment[row, place]),
            position=int(batch.position[row, place]),
            local=int(batch.local_position[row, place]),
            image_index=int(batch.image[row, place]),
            sees=sees,
            near=near,
            images=images,
        )

    def _layout(self, drawn: Drawn) -> TaskLayout | None:
        examples = self.parts[drawn.part].examples
        return examples.layout if isinstance(examples, ControlExamples) else None

    def _title(self, drawn: Drawn) -> str:
        """Which example it is."""
        examples = self.parts[drawn.part].examples
        if not isinstance(examples, ControlExamples):
            return f"example {drawn.index + 1:,} of {len(examples):,}"
        # `first` has the number of each episode's first window.
        episode = int(np.searchsorted(examples.first, drawn.index, side="right")) - 1
        where = examples.reader[episode].where
        step = (drawn.index - int(examples.first[episode])) * examples.steps
        told = (
            f"{examples.layout.name}, episode {episode + 1:,} of {len(examples.reader):,}, a window near step {step:,}"
        )
        return f"{told} ({where})" if where else told


Masks = tuple[Bool[Array, "1 L L"], Bool[Array, "1 L L"], Bool[Array, "1 L I"]]
"""What each position attends to in layers without a window, and with one; and the images that it attends to."""


def masks(
    model: ModelConfig,
    images: int,
    segment: Int[Array, "1 L"],
    position: Int[Array, "1 L"],
    block: Int[Array, "1 L"],
    image: Int[Array, "1 L"],
    is_image: Bool[Array, "1 L"],
) -> Masks:
    """The model's own masks of a row; one that is drawn anew here could be wrong and look right.

    Args:
        images: I, at least those of the row.
    """
    blocks = None if model.blocks == "none" else Blocks(block, block, model.blocks == "whole")
    whole = near = attention_mask(segment, position, segment, position, blocks=blocks)
    if any(kind.startswith("window") for kind in model.kind_of_layers):
        near = attention_mask(segment, position, segment, position, reach=model.window, blocks=blocks)
    number = jnp.arange(1, images + 1)[None]  # (1, I): images are numbered from 1 within a row; 0 is none
    return whole, near, image_mask(image, first_image(is_image, position), number, model.vision.attend_to)


def seen(
    batch: Batch, row: int, of_row: Callable[..., Masks]
) -> tuple[Bool[np.ndarray, "L L"], Bool[np.ndarray, "L L"], list[list[int]]]:
    """The positions that each position attends to in layers without a window, and with one; and the positions of the images
    that it attends to.

    Args:
        of_row: `masks` of the model.
    """
    one = slice(row, row + 1)
    is_image = np.asarray(batch.modality[one]) == Modality.IMAGE
    arrays = (batch.segment[one], batch.position[one], batch.block[one], batch.image[one], is_image)
    whole, near, shown = (np.asarray(mask)[0] for mask in of_row(*map(jnp.asarray, arrays)))
    places = np.flatnonzero(is_image[0])
    return whole, near, [places[np.flatnonzero(own[: len(places)])].tolist() for own in shown]


def _sequence(batch: Batch, row: int, at: np.ndarray) -> TokenSequence:
    """Some positions of a row with the payloads of their batch."""
    payloads = ("tensors", "frames", "patches", "intervals", "images")
    # Positions of a segment follow one another, so their actions are those between its first and last.
    read_from = np.asarray(batch.action_from) - row * batch.tokens.shape[1] - int(at[0])
    own = (read_from >= 0) & (read_from < len(at)) & (np.asarray(batch.action_weight) > 0).any(axis=1)
    return TokenSequence(
        **{name: np.asarray(getattr(batch, name)[row, at]) for name in POSITIONAL},
        **{name: np.asarray(getattr(batch, name)) for name in payloads},
        **{name: np.asarray(getattr(batch, name))[own] for name in ("actions", "action_weight")},
        action_from=read_from[own],
    )


def _targets(batch: Batch, row: int, place: int) -> tuple[list[int], list[float]]:
    """Ids that are predicted from a position, and the weights of their losses."""
    read = np.flatnonzero(
        (np.asarray(batch.action_from) == row * batch.tokens.shape[1] + place)
        & (np.asarray(batch.action_weight) > 0).any(axis=1)
    )
    if len(read):
        return batch.actions[read[0]].tolist(), batch.action_weight[read[0]].tolist()
    return [int(batch.targets[row, place])], [float(batch.loss_weight[row, place])]


def ranges(flags: Bool[np.ndarray, "L"]) -> list[tuple[int, int]]:
    """Runs of true flags (L,), each from its first to behind its last."""
    # False on both sides, so that every run has an edge at its beginning and one behind its end.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(low), int(high)) for low, high in edges.reshape(-1, 2)]
