"""Packing: sequences of any lengths into batches of one shape.

Rows are filled by first fit. A sequence that does not fit anywhere waits for the next batch, which it then opens; when
`LOOK_AHEAD` of them wait, the batch is closed. Which sequences those were is part of the state, so that a restored
iterator gives the very batches that an uninterrupted one would have given.
"""

import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from generalist.data.batch import Batch, BatchSpec
from generalist.tokenizers.pieces import PAYLOADS, POSITIONAL, Modality, Sequence

LOOK_AHEAD = 8
PREFETCH = 4  # batches made ahead of the step

Draw = Callable[[int], tuple[int, Sequence]]
"""Number of an example in the endless stream → its source's id and the sequence."""


class OpenBatch:
    """A batch that is being filled."""

    def __init__(self, spec: BatchSpec, pad: int):
        self.spec, self.batch = spec, spec.zeros(pad)
        self.used = np.zeros((spec.rows,), np.int64)
        self.segments = np.zeros((spec.rows,), np.int32)
        self.counts = dict.fromkeys(PAYLOADS.values(), 0)
        self.images = np.zeros((spec.rows,), np.int64)

    def check(self, sequence: Sequence, source: int) -> None:
        """Raises ValueError if the sequence would not fit into an empty batch."""
        sizes = {"length": len(sequence.tokens)} | {name: len(getattr(sequence, name)) for name in self.counts}
        sizes["row_images"] = len(sequence.images)
        for name, size in sizes.items():
            if size > getattr(self.spec, name):
                raise ValueError(
                    f"an example of source {source} has {name} {size}, more than data.{name} = {getattr(self.spec, name)}: "
                    f"raise data.{name} or take fewer steps a window"
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

    def close(self) -> Batch:
        """The batch; without any frames (or patches, or images) it has no rows for them, and the step pays nothing for them."""
        empty: dict[str, np.ndarray] = {}
        if not self.counts["frames"]:
            empty["frames"] = self.batch.frames[:0]
        if not self.counts["patches"]:
            empty |= {"patches": self.batch.patches[:0], "intervals": self.batch.intervals[:0]}
        if not self.counts["images"]:
            empty |= {"images": self.batch.images[:0], "row_images": self.batch.row_images[:, :0]}
        return dataclasses.replace(self.batch, **empty)


class BatchIterator(grain.DatasetIterator):
    """Endless batches; a thread makes a few ahead. The state is that of the batches already handed out.

    Args:
        draw: the stream of examples, by number.
        spec: sizes of a batch.
        pad: id of padding.
    """

    def __init__(self, draw: Draw, spec: BatchSpec, pad: int):
        super().__init__()
        self._draw, self._spec, self._pad = draw, spec, pad
        self._next, self._waiting = 0, []  # number of the next example; numbers of those that did not fit
        self._queue: queue.Queue | None = None

    def __next__(self) -> Batch:
        if self._queue is None:
            self._start()
        assert self._queue is not None
        batch, following, waiting = self._queue.get()
        if isinstance(batch, BaseException):
            raise batch
        self._next, self._waiting = following, waiting
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch handed out."""
        return {"next": self._next, "waiting": list(self._waiting)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position; batches made ahead are dropped."""
        self.close()
        self._next, self._waiting = int(state["next"]), [int(number) for number in state["waiting"]]

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

    def make(self, following: int, waiting: list[int]) -> tuple[Batch, int, list[int]]:
        """One batch from a position, and the position after it."""
        open_batch, left = OpenBatch(self._spec, self._pad), []
        for number in waiting:
            source, sequence = self._draw(number)
            if not open_batch.add(sequence, source):
                left.append(number)
        while len(left) < LOOK_AHEAD:
            source, sequence = self._draw(following)
            open_batch.check(sequence, source)
            if not open_batch.add(sequence, source):
                left.append(following)
            following += 1
        return open_batch.close(), following, left

    def _start(self) -> None:
        self._queue, self._stop = queue.Queue(maxsize=PREFETCH), threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(self._next, list(self._waiting)), daemon=True)
        self._thread.start()

    def _produce(self, following: int, waiting: list[int]) -> None:
        assert self._queue is not None
        try:
            while not self._stop.is_set():
                item = self.make(following, waiting)
                _, following, waiting = item
                self._queue.put(item)
        except BaseException as error:  # handed over: the reader raises it where the user sees it
            self._queue.put((error, following, waiting))
