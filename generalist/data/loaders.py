"""Batches made by several processes: each packs some of a batch's shards, and any number of processes makes the same batches.

A process packs ahead into two places of memory that it shares with the training process, which joins the shards of one place and
gives the place back: arrays are copied twice and never pickled.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import jax
import numpy as np

from generalist.data.batch import Batch, BatchSpec
from generalist.data.packing import BatchIterator, Draw, Packer, Position, joined
from generalist.system.processes import receive, shared_bytes, start

PLACES = 2  # per shard: one that is ready while the next is being made
ALIGNMENT = 64  # bytes of a cache line: every array starts at a multiple of it
REMEDY = "-9 often means out of memory: take fewer data.loaders; the same command resumes from the last checkpoint"

OpenStreams = Callable[[Sequence[int]], Mapping[int, Draw]]
"""Opens the streams of some shards; picklable, since the processes call it."""


def check_loaders(loaders: int, shards: int) -> None:
    """Checks that every process has a shard to make.

    Raises:
        ValueError: there are more processes than shards.
    """
    if loaders > shards:
        raise ValueError(
            f"data.loaders = {loaders} processes would share the {shards} shards of a batch that this process makes: "
            "each needs at least one; raise data.shards (and data.rows with it), or take fewer loaders"
        )


class LoadedBatches(BatchIterator):
    """Endless batches made by separate processes.

    Args:
        open_streams: opens the streams of some shards.
        shards: those that this process's devices need.
        spec: sizes of a whole batch, of all processes.
        pad: id of padding.
        loaders: number of processes.
        fixed: whether every batch has the same shapes.

    Raises:
        ValueError: there are more processes than shards.
    """

    def __init__(
        self,
        open_streams: OpenStreams,
        shards: Sequence[int],
        spec: BatchSpec,
        pad: int,
        *,
        loaders: int,
        fixed: bool = False,
    ):
        check_loaders(loaders, len(shards))
        # No streams here: only the loaders open them, and this process keeps their positions.
        super().__init__({}, spec, pad, fixed=fixed)
        self._positions = dict.fromkeys(sorted(shards), Position())
        self._open_streams, self._loaders = open_streams, loaders

    def batches(self, positions: Mapping[int, Position]) -> Generator[tuple[Batch, dict[int, Position]]]:
        """Endless pairs of a batch and the position after it.

        Raises:
            WorkerError: a loader died.
            Exception: what a loader raised.
        """
        places = Places(self.spec.shard, self._pad)
        loaders: list[Loader] = []
        try:
            for number in range(self._loaders):
                # Dealt out in turn, so that no loader has more than one shard more than another.
                own = self.shards[number :: self._loaders]
                loaders.append(Loader(own, places, self._open_streams, {shard: positions[shard] for shard in own}))
            # Both sides use the places in the same order, so that a message need not say which one it is about.
            for place in itertools.cycle(range(PLACES)):
                packed = {shard: one for loader in loaders for shard, one in loader.receive(place)}
                # In the shards' order, which is that of a batch's rows, not in the loaders'.
                several = [packed[shard] for shard in self.shards]
                batch = joined([one.batch for one in several], [one.counts for one in several], fixed=self._fixed)
                after = {shard: one.position for shard, one in zip(self.shards, several, strict=True)}
                # Only now: `joined` has copied the arrays out of the place.
                for loader in loaders:
                    loader.give_back(place)
                yield batch, after
        finally:
            # Reached when the iterator is closed, too: no loader outlives it.
            for loader in loaders:
                loader.stop()


@dataclasses.dataclass(frozen=True)
class Packed:
    """A shard that a loader has packed; its arrays lie in shared memory and change once the place is given back."""

    batch: Batch
    counts: dict[str, int]
    """Payloads that it contains, by field."""
    position: Position
    """Position of its stream after it."""


class Places:
    """The layout of a shard's arrays in a place, and the places of a buffer.

    Args:
        spec: sizes of a shard.
        pad: id of padding.
    """

    def __init__(self, spec: BatchSpec, pad: int):
        self.spec, self.pad = spec, pad
        # Name, shape, dtype and offset in bytes: the same on both sides, since both derive them from the sizes.
        self._fields: list[tuple[str, tuple[int, ...], np.dtype, int]] = []
        end, empty = 0, spec.zeros(pad)
        for field in dataclasses.fields(Batch):
            if field.name != "shards":  # a number, not an array
                array = getattr(empty, field.name)
                self._fields.append((field.name, array.shape, array.dtype, end))
                end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT  # rounded up
        self.nbytes = end

    def view(self, memory: Any, index: int) -> Batch:
        """The shard in place `index` of the memory, without a copy."""
        begin = index * self.nbytes
        arrays: dict[str, Any] = {
            name: np.ndarray(shape, dtype, buffer=memory, offset=begin + offset)
            for name, shape, dtype, offset in self._fields
        }
        return Batch(**arrays)

    def write(self, batch: Batch, memory: Any, index: int) -> None:
        """Copies a shard into that place."""
        view = self.view(memory, index)
        for name, *_ in self._fields:
            getattr(view, name)[...] = getattr(batch, name)


class Loader:
    """A loader process, seen from the training process.

    Args:
        shards: those that it packs.
        places: the layout of its shared memory.
        open_streams: opens their streams; called in the loader.
        positions: where each of its streams begins.
    """

    def __init__(
        self, shards: Sequence[int], places: Places, open_streams: OpenStreams, positions: Mapping[int, Position]
    ):
        self.shards, self._places = shards, places
        # Place by place, and within a place shard by shard.
        self._memory = shared_bytes(places.nbytes * PLACES * len(shards))
        arguments = (open_streams, dict(positions), places.spec, places.pad, self._memory)
        self._process: BaseProcess
        self._connection: Connection
        self._process, self._connection = start(pack, *arguments)

    def receive(self, place: int) -> Iterator[tuple[int, Packed]]:
        """The process's shards in a place, as soon as they are packed."""
        answer = receive(self._connection, self._process, "makes batches", REMEDY)
        for row, (shard, (counts, position)) in enumerate(zip(self.shards, answer, strict=True)):
            view = self._places.view(self._memory, place * len(self.shards) + row)
            yield shard, Packed(view, counts, position)

    def give_back(self, place: int) -> None:
        """Lets the process use the place again. A dead process is reported by the next `receive`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(place)

    def stop(self) -> None:
        """Ends the process."""
        # Not by a message: it may be packing, or waiting for a place.
        self._process.terminate()
        self._process.join()
        self._connection.close()


def pack(
    connection: Connection,
    open_streams: OpenStreams,
    positions: dict[int, Position],
    spec: BatchSpec,
    pad: int,
    memory: Any,
) -> None:
    """The loop of a loader process: packs its shards into one place of the memory after the other, as places become free.

    Args:
        connection: to the training process; carries (failed, answer or exception).
        open_streams: opens the streams of some shards.
        positions: where each of its shards' streams begins.
        spec: sizes of a shard.
        pad: id of padding.
        memory: shared, with `PLACES` places for each shard.
    """
    jax.config.update("jax_platforms", "cpu")  # the accelerators belong to the training process
    try:
        packers = {shard: Packer(draw, spec, pad) for shard, draw in open_streams(sorted(positions)).items()}
        places = Places(spec, pad)
        for round_, place in enumerate(itertools.cycle(range(PLACES))):
            answer = []
            # All places are free at first; from then on, each must be given back before it is written again.
            if round_ >= PLACES:
                connection.recv()
            for row, (shard, packer) in enumerate(sorted(packers.items())):
                opened, positions[shard] = packer.pack(positions[shard])
                places.write(opened.batch, memory, place * len(positions) + row)
                answer.append((opened.counts, positions[shard]))
            connection.send((False, answer))
    # The training process is gone, so nobody could receive the error: the process ends quietly.
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        connection.send((True, error))
