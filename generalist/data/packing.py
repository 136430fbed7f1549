"""Packing: sequences of any lengths into batches of one shape.

Each shard of a batch is packed from its own stream of examples, whichever process makes it, so that batches do not depend on the
number of processes. Rows are filled by first fit. A sequence that fits nowhere waits for the next batch, where it is placed
first; when `LOOK_AHEAD` sequences wait, the shard is closed. The waiting sequences are part of the position, so that a restored
iterator gives the same batches as an uninterrupted one.
"""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Mapping
from collections.abc import Sequence as Sequences

import numpy as np

from generalist.data.batch import BUDGETS, Batch, BatchSpec
from generalist.tokenizers.pieces import PAYLOADS, POSITIONAL, Sequence, positions_per_row

LOOK_AHEAD = 8  # sequences that may wait; another number packs other batches, also in runs that are resumed
PREFETCH = 4  # batches made ahead of the step

# Fields of a batch whose rows a budget counts → the budget.
BUDGET_OF = {name: name for name in BUDGETS} | {
    "intervals": "patches",
    "action_weight": "actions",
    "action_from": "actions",
}

Draw = Callable[[int], tuple[int, Sequence]]
"""Number of an example in the endless stream → its source's id and the sequence."""


class OpenBatch:
    """A shard of a batch that is being filled."""

    def __init__(self, spec: BatchSpec, pad: int):
        self.spec, self.batch = spec, spec.zeros(pad)
        # What each row holds so far: (rows,) each.
        self.used = np.zeros((spec.rows,), np.int64)
        self.segments = np.zeros((spec.rows,), np.int32)
        self.images = np.zeros((spec.rows,), np.int64)
        # Payloads are shared by all rows, so there is one count of each for the whole shard.
        self.counts = dict.fromkeys(BUDGETS, 0)

    def check(self, sequence: Sequence, source: int) -> None:
        """Checks that the sequence fits into an empty shard: one that never fits would wait for ever.

        Raises:
            ValueError: it does not; the message names the setting to raise.
        """
        sizes = {"length": len(sequence.tokens)} | {name: len(getattr(sequence, name)) for name in self.counts}
        sizes["row_images"] = len(sequence.images) if self.spec.row_images else 0
        for name, size in sizes.items():
            if size > getattr(self.spec, name):
                raise ValueError(
                    f"an example of source {source} has {name} {size}, more than the {getattr(self.spec, name)} that fit into a "
                    f"shard of a batch: raise data.{name}, or take fewer steps per window"
                )

    def add(self, sequence: Sequence, source: int) -> bool:
        """Puts the sequence into the first row with room; False if there is none, or a budget would be exceeded."""
        size = len(sequence.tokens)
        sizes = {name: len(getattr(sequence, name)) for name in self.counts}
        if any(self.counts[name] + count > getattr(self.spec, name) for name, count in sizes.items()):
            return False
        images = len(sequence.images) if self.spec.row_images else 0
        room = self.used + size <= self.spec.length  # (rows,)
        # A row has room for few images: cross-attention computes over all places for images in a row.
        rows = np.flatnonzero(room & (self.images + images <= self.spec.row_images) if images else room)
        if not len(rows):
            return False
        # Before the counts grow: the sequence's payloads begin where those before it end.
        self._place(sequence, int(rows[0]), source)
        for name, count in sizes.items():
            start = self.counts[name]
            getattr(self.batch, name)[start : start + count] = getattr(sequence, name)
            if name == "patches":  # one interval per patch, so they share its budget
                self.batch.intervals[start : start + count] = sequence.intervals
            if name == "actions":
                self.batch.action_weight[start : start + count] = sequence.action_weight
            self.counts[name] += count
        return True

    def _place(self, sequence: Sequence, row: int, source: int) -> None:
        start, size = int(self.used[row]), len(sequence.tokens)
        at = slice(start, start + size)
        for name in POSITIONAL:
            getattr(self.batch, name)[row, at] = getattr(sequence, name)
        # A sequence counts its images and payloads from 0; in the batch they come after those of earlier sequences.
        if count := len(sequence.images):
            held = int(self.images[row])
            # Per image marker, in the order of positions, which is that of `sequence.image`.
            shown = self.counts["images"] + np.arange(count)
            self.batch.image[row, at][sequence.image > 0] += held
            if self.spec.row_images:
                self.batch.row_images[row, held : held + count] = shown
            self.images[row] += count
        for modality, name in PAYLOADS.items():
            if self.counts[name]:
                offset = self.counts[name] * positions_per_row(modality, self.spec.frame_tokens)
                self.batch.payload_index[row, at][sequence.modality == modality] += offset
        first = self.counts["actions"]
        read_from = row * self.spec.length + start + sequence.action_from
        self.batch.action_from[first : first + len(read_from)] = read_from
        # Counted before use: segment 0 is padding.
        self.segments[row] += 1
        self.batch.segment[row, at] = self.segments[row]
        self.batch.position[row, at] = np.arange(size)
        self.batch.source[row, at] = source
        self.used[row] += size


def joined(shards: Sequences[Batch], counts: Sequences[Mapping[str, int]], *, fixed: bool) -> Batch:
    """Shards as one batch, joined along the first axis.

    A payload that no shard contains gets no rows, so that the step skips its embedder.

    Args:
        shards: all of one shape.
        counts: payloads that each shard contains, by field.
        fixed: keeps the rows of absent payloads, as is necessary where other processes' shards belong to the same batch: all
            processes must run the same program.
    """

    def absent(payload: str) -> bool:
        # All or nothing: rows for just what there is would give each batch other shapes, and compile the step each time.
        return not fixed and not any(one[payload] for one in counts)

    parts: dict[str, np.ndarray] = {}
    for field in dataclasses.fields(Batch):
        if field.name == "shards":
            continue
        arrays = [getattr(shard, field.name) for shard in shards]
        if field.name == "row_images" and absent("images"):
            arrays = [array[:, :0] for array in arrays]  # (rows, 0)
        elif (budget := BUDGET_OF.get(field.name)) and absent(budget):
            arrays = [array[:0] for array in arrays]
        # A copy even of one shard: a loader's arrays lie in memory that is overwritten.
        parts[field.name] = np.concatenate(arrays)
    return Batch(**parts, shards=len(shards))


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a shard's stream has been consumed."""

    next: int = 0
    """Number of its next example."""
    waiting: tuple[int, ...] = ()
    """Numbers of the examples before it that did not fit yet; at most `LOOK_AHEAD`."""


class Packer:
    """Packs one stream into shards of successive batches. Waiting examples are kept, not drawn again.

    Args:
        draw: the stream.
        spec: sizes of a shard.
        pad: id of padding.
    """

    def __init__(self, draw: Draw, spec: BatchSpec, pad: int):
        self._draw, self._spec, self._pad = draw, spec, pad
        self._waiting: dict[int, tuple[int, Sequence]] = {}

    def pack(self, position: Position) -> tuple[OpenBatch, Position]:
        """The shard that begins at a position of the stream, and the position after it.

        Raises:
            ValueError: an example does not fit even into an empty shard.
        """
        shard, following = OpenBatch(self._spec, self._pad), position.next
        left: dict[int, tuple[int, Sequence]] = {}
        # First what waited, oldest first, so that no example waits for ever.
        for number in position.waiting:
            # After a jump to another position the numbers are not those at hand: an example is determined by its number.
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
    """Endless batches; a thread makes a few ahead. The position is that after the last batch handed out, not after those made.

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
        # Each batch carries the position after it: what the thread has made beyond it is not counted.
        batch, positions = self._queue.get()
        if isinstance(batch, BaseException):
            raise batch
        self._positions = positions
        return batch

    @property
    def positions(self) -> dict[int, Position]:
        """The position of each shard's stream after the last batch handed out."""
        return dict(self._positions)

    def go_to(self, positions: Mapping[int, Position]) -> None:
        """Moves to a position. Positions of other processes' shards are ignored, and batches made ahead are dropped."""
        self.close()
        self._positions = {shard: positions[shard] for shard in self.shards}

    def close(self) -> None:
        """Stops the thread and drops what it has made; the next batch starts another one."""
        if self._queue is not None:
            self._stop.set()
            # The thread may be blocked by a full queue, where it does not see the event until a place is freed.
            while self._thread.is_alive():
                try:
                    self._queue.get(timeout=0.05)
                except queue.Empty:
                    continue
            self._queue = None

    def batches(self, positions: Mapping[int, Position]) -> Generator[tuple[Batch, dict[int, Position]]]:
        """Endless pairs of a batch and the position after it, made by the caller's thread."""
        while True:
            packed = {shard: packer.pack(positions[shard]) for shard, packer in self._packers.items()}
            opened = [one for one, _ in packed.values()]
            batch = joined([one.batch for one in opened], [one.counts for one in opened], fixed=self._fixed)
            positions = {shard: after for shard, (_, after) in packed.items()}
            yield batch, positions

    def _start(self) -> None:
        # A daemon: an iterator that nobody closed must not keep the process alive.
        self._queue, self._stop = queue.Queue(maxsize=PREFETCH), threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(self._positions,), daemon=True)
        self._thread.start()

    def _produce(self, positions: dict[int, Position]) -> None:
        assert self._queue is not None
        try:
            # Closed here and now, not by the garbage collector: the generator may own processes.
            with contextlib.closing(self.batches(positions)) as made:
                for item in made:
                    self._queue.put(item)
                    if self._stop.is_set():
                        return
        except BaseException as error:
            # `__next__` raises it in the reader's thread, which would otherwise wait for a dead one.
            self._queue.put((error, positions))
