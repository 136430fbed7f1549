"""Packing: sequences of any lengths into batches of one shape.

Each shard of a batch is packed from its own stream of examples, whichever process makes it: the batches do not depend on how
many processes there are. Rows are filled by first fit. A sequence that does not fit anywhere waits for the next batch, which
it then opens; when `LOOK_AHEAD` of them wait, the shard is closed. Which sequences those were is part of the position, so that
a restored iterator gives the very batches that an uninterrupted one would have given.
"""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Mapping
from collections.abc import Sequence as Sequences

import numpy as np

from generalist.data.batch import Batch, BatchSpec
from generalist.tokenizers.pieces import PAYLOADS, POSITIONAL, Modality, Sequence

LOOK_AHEAD = 8
PREFETCH = 4  # batches made ahead of the step

Draw = Callable[[int], tuple[int, Sequence]]
"""Number of an example in the endless stream → its source's id and the sequence."""


class OpenBatch:
    """A shard of a batch that is being filled."""

    def __init__(self, spec: BatchSpec, pad: int):
        self.spec, self.batch = spec, spec.zeros(pad)
        self.used = np.zeros((spec.rows,), np.int64)
        self.segments = np.zeros((spec.rows,), np.int32)
        self.counts = dict.fromkeys(PAYLOADS.values(), 0)
        self.images = np.zeros((spec.rows,), np.int64)

    def check(self, sequence: Sequence, source: int) -> None:
        """Raises ValueError if the sequence would not fit into an empty shard."""
        sizes = {"length": len(sequence.tokens)} | {name: len(getattr(sequence, name)) for name in self.counts}
        sizes["row_images"] = len(sequence.images)
        for name, size in sizes.items():
            if size > getattr(self.spec, name):
                raise ValueError(
                    f"an example of source {source} has {name} {size}, more than the {getattr(self.spec, name)} that a batch's "
                    f"shard has room for: raise data.{name}, or take fewer steps a window"
                )

    def add(self, sequence: Sequence, source: int) -> bool:
        """Puts the sequence into the first row with room; False if there is none or a budget is spent."""
        size = len(sequence.tokens)
        sizes = {name: len(getattr(sequence, name)) for name in self.counts}
        if any(self.counts[name] + count > getattr(self.spec, name) for name, count in sizes.items()):
            return False
        images = len(sequence.images)
        room = self.used + size <= self.spec.length
        rows = np.flatnonzero(room & (self.images + images <= self.spec.row_images) if images else room)
        if not len(rows):
            return False
        self._place(sequence, int(rows[0]), source)
        for name, count in sizes.items():
            start = self.counts[name]
            getattr(self.batch, name)[start : start + count] = getattr(sequence, name)
            if name == "patches":
                self.batch.intervals[start : start + count] = sequence.intervals
            self.counts[name] += count
        return True

    def _place(self, sequence: Sequence, row: int, source: int) -> None:
        start, size = int(self.used[row]), len(sequence.tokens)
        at = slice(start, start + size)
        for name in POSITIONAL:
            getattr(self.batch, name)[row, at] = getattr(sequence, name)
        if count := len(sequence.images):
            held = int(self.images[row])
            shown = self.counts["images"] + sequence.payload_index[sequence.modality == Modality.IMAGE]
            self.batch.image[row, at][sequence.image > 0] += held
            self.batch.row_images[row, held : held + count] = shown
            self.images[row] += count
        for modality, name in PAYLOADS.items():
            if self.counts[name]:
                each = self.spec.frame_tokens if name == "frames" else 1
                self.batch.payload_index[row, at][sequence.modality == modality] += self.counts[name] * each
        self.segments[row] += 1
        self.batch.segment[row, at] = self.segments[row]
        self.batch.position[row, at] = np.arange(size)
        self.batch.source[row, at] = source
        self.used[row] += size


def joined(shards: Sequences[Batch], counts: Sequences[Mapping[str, int]], *, fixed: bool) -> Batch:
    """Shards as one batch. A payload of which none has any, by their `counts`, gets no rows, and the step pays nothing for it;
    unless shapes are `fixed`, as they must be where other processes' shards belong to the same batch."""

    def absent(payload: str) -> bool:
        return not fixed and not any(one[payload] for one in counts)

    parts: dict[str, np.ndarray] = {}
    for field in dataclasses.fields(Batch):
        if field.name == "shards":
            continue
        arrays = [getattr(shard, field.name) for shard in shards]
        if field.name == "row_images" and absent("images"):
            arrays = [array[:, :0] for array in arrays]
        elif (field.name in PAYLOADS.values() and absent(field.name)) or (
            field.name == "intervals" and absent("patches")
        ):
            arrays = [array[:0] for array in arrays]
        parts[field.name] = np.concatenate(arrays)
    return Batch(**parts, shards=len(shards))


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a shard's stream has been used."""

    next: int = 0
    """Number of its next example."""
    waiting: tuple[int, ...] = ()
    """Numbers of those that did not fit; at most `LOOK_AHEAD`."""


class Packer:
    """Packs the shards of one stream. Examples that wait are remembered, not drawn again.

    Args:
        draw: the stream.
        spec: sizes of a shard.
        pad: id of padding.
    """

    def __init__(self, draw: Draw, spec: BatchSpec, pad: int):
        self._draw, self._spec, self._pad = draw, spec, pad
        self._waiting: dict[int, tuple[int, Sequence]] = {}

    def pack(self, position: Position) -> tuple[OpenBatch, Position]:
        """A shard of a batch from a position of the stream, and the position after it.

        Raises:
            ValueError: an example would not fit into an empty shard.
        """
        shard, following = OpenBatch(self._spec, self._pad), position.next
        left: dict[int, tuple[int, Sequence]] = {}
        for number in position.waiting:
            source, sequence = self._waiting.get(number) or self._draw(number)
            if not shard.add(sequence, source):
                left[number] = source, sequence
        while len(left) < LOOK_AHEAD:
            source, sequence = self._draw(following)
            shard.check(sequence, source)
            if not shard.add(sequence, source):
                left[following] = source, sequence
            following += 1
        self._waiting = left
        return shard, Position(following, tuple(left))


class BatchIterator:
    """Endless batches; a thread makes a few ahead. The position is that of the batches already handed out.

    Args:
        streams: this process's shards, each with its stream of examples.
        spec: sizes of a whole batch, of all processes.
        pad: id of padding.
        fixed: whether every batch has the same shapes.
    """

    def __init__(self, streams: Mapping[int, Draw], spec: BatchSpec, pad: int, *, fixed: bool = False):
        self.spec = spec
        self._packers = {shard: Packer(draw, spec.shard, pad) for shard, draw in sorted(streams.items())}
        self._pad, self._fixed = pad, fixed
        self._positions = dict.fromkeys(self._packers, Position())
        self._queue: queue.Queue | None = None

    @property
    def shards(self) -> list[int]:
        """This process's shards, in the order in which their rows stand in a batch."""
        return list(self._positions)

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        if self._queue is None:
            self._start()
        assert self._queue is not None
        batch, positions = self._queue.get()
        if isinstance(batch, BaseException):
            raise batch
        self._positions = positions
        return batch

    @property
    def positions(self) -> dict[int, Position]:
        """Where each shard stands after the last batch handed out."""
        return dict(self._positions)

    def go_to(self, positions: Mapping[int, Position]) -> None:
        """Goes to a position; those of other processes' shards are passed over, and batches made ahead are dropped."""
        self.close()
        self._positions = {shard: positions[shard] for shard in self.shards}

    def close(self) -> None:
        """Stops the thread."""
        if self._queue is not None:
            self._stop.set()
            while self._thread.is_alive():  # it may stand at a full queue
                try:
                    self._queue.get(timeout=0.05)
                except queue.Empty:
                    continue
            self._queue = None

    def batches(self, positions: Mapping[int, Position]) -> Generator[tuple[Batch, dict[int, Position]]]:
        """Endlessly: a batch, and the position after it."""
        while True:
            packed = {shard: packer.pack(positions[shard]) for shard, packer in self._packers.items()}
            opened = [one for one, _ in packed.values()]
            batch = joined([one.batch for one in opened], [one.counts for one in opened], fixed=self._fixed)
            positions = {shard: after for shard, (_, after) in packed.items()}
            yield batch, positions

    def _start(self) -> None:
        self._queue, self._stop = queue.Queue(maxsize=PREFETCH), threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(self._positions,), daemon=True)
        self._thread.start()

    def _produce(self, positions: dict[int, Position]) -> None:
        assert self._queue is not None
        try:
            with contextlib.closing(self.batches(positions)) as made:
                for item in made:
                    self._queue.put(item)
                    if self._stop.is_set():
                        return
        except BaseException as error:  # handed over: the reader raises it where the user sees it
            self._queue.put((error, positions))
