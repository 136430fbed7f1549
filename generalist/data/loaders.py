"""Batches made by several processes: each packs some of a batch's shards, and they are the same batches for any number of
processes.

A process packs ahead into two places of memory that it shares with the training process, which joins what has come and gives the
place back: arrays are copied twice and never pickled.
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

PLACES = 2  # shards that are ready or in the making, of each
ALIGNMENT = 64  # bytes, which the start of every array is a multiple of
REMEDY = "-9 is often want of memory: take fewer data.loaders; the same command goes on from the last checkpoint"

OpenStreams = Callable[[Sequence[int]], Mapping[int, Draw]]
"""Opens the streams of some shards; picklable, since the processes call it."""


def check_loaders(loaders: int, shards: int) -> None:
    """Raises `ValueError` if there are more processes than shards of a batch that they could make."""
    if loaders > shards:
        raise ValueError(
            f"data.loaders = {loaders} processes would share the {shards} shards of a batch that this process makes: "
            "each needs one at least; raise data.shards (and data.rows with it), or take fewer loaders"
        )


class LoadedBatches(BatchIterator):
    """Endless batches that processes of their own make.

    Args:
        open_streams: opens the streams of some shards.
        shards: this process's.
        spec: sizes of a whole batch, of all processes.
        pad: id of padding.
        loaders: processes.
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
        super().__init__({}, spec, pad, fixed=fixed)
        self._positions = dict.fromkeys(sorted(shards), Position())
        self._open_streams, self._loaders = open_streams, loaders

    def batches(self, positions: Mapping[int, Position]) -> Generator[tuple[Batch, dict[int, Position]]]:
        """Endlessly: a batch, and the position after it.

        Raises:
            WorkerError: a process died.
            Exception: what was raised in one.
        """
        places = Places(self.spec.shard, self._pad)
        loaders: list[Loader] = []
        try:
            for number in range(self._loaders):
                own = self.shards[number :: self._loaders]
                loaders.append(Loader(own, places, self._open_streams, {shard: positions[shard] for shard in own}))
            for place in itertools.cycle(range(PLACES)):
                packed = {shard: one for loader in loaders for shard, one in loader.receive(place)}
                several = [packed[shard] for shard in self.shards]
                batch = joined([one.batch for one in several], [one.counts for one in several], fixed=self._fixed)
                after = {shard: one.position for shard, one in zip(self.shards, several, strict=True)}
                for loader in loaders:
                    loader.give_back(place)
                yield batch, after
        finally:
            for loader in loaders:
                loader.stop()


@dataclasses.dataclass(frozen=True)
class Packed:
    """A shard of a batch as a process has packed it; its arrays lie in shared memory and change once the place is given back."""

    batch: Batch
    counts: dict[str, int]
    position: Position
    """Of its stream, after it."""


class Places:
    """Where the arrays of a shard lie in a piece of memory."""

    def __init__(self, spec: BatchSpec, pad: int):
        self.spec, self.pad = spec, pad
        self._fields: list[tuple[str, tuple[int, ...], np.dtype, int]] = []
        end, empty = 0, spec.zeros(pad)
        for field in dataclasses.fields(Batch):
            if field.name != "shards":
                array = getattr(empty, field.name)
                self._fields.append((field.name, array.shape, array.dtype, end))
                end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self.nbytes = end

    def view(self, memory: Any, index: int) -> Batch:
        """The shard in the `index`-th place of the memory."""
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
    """One process and its end of the connection."""

    def __init__(
        self, shards: Sequence[int], places: Places, open_streams: OpenStreams, positions: Mapping[int, Position]
    ):
        self.shards, self._places = shards, places
        self._memory = shared_bytes(places.nbytes * PLACES * len(shards))
        arguments = (open_streams, dict(positions), places.spec, places.pad, self._memory)
        self._process: BaseProcess
        self._connection: Connection
        self._process, self._connection = start(pack, *arguments)

    def receive(self, place: int) -> Iterator[tuple[int, Packed]]:
        """The process's shards in a place, once they are packed."""
        answer = receive(self._connection, self._process, "makes batches", REMEDY)
        for row, (shard, (counts, position)) in enumerate(zip(self.shards, answer, strict=True)):
            view = self._places.view(self._memory, place * len(self.shards) + row)
            yield shard, Packed(view, counts, position)

    def give_back(self, place: int) -> None:
        """Lets the process use the place again. That it has died is told when its next shards are wanted."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(place)

    def stop(self) -> None:
        """Ends the process."""
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
    """A process's work: packs its shards into one place of the memory after the other, as they come free."""
    jax.config.update("jax_platforms", "cpu")  # the accelerators belong to the training process
    try:
        packers = {shard: Packer(draw, spec, pad) for shard, draw in open_streams(sorted(positions)).items()}
        places = Places(spec, pad)
        for round_, place in enumerate(itertools.cycle(range(PLACES))):
            answer = []
            if round_ >= PLACES:
                connection.recv()
            for row, (shard, packer) in enumerate(sorted(packers.items())):
                opened, positions[shard] = packer.pack(positions[shard])
                places.write(opened.batch, memory, place * len(positions) + row)
                answer.append((opened.counts, positions[shard]))
            connection.send((False, answer))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        connection.send((True, error))
