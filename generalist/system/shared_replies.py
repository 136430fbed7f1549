"""What a worker process answers, with large arrays in shared memory: a pipe passes them on in pieces of 64 KiB, each of which
wakes both sides, which takes milliseconds for a camera's picture.

    worker   Outbox.pack(answer) → Parcel, which is sent through the pipe
    parent   Inbox.open(parcel) → answer, a copy of its own

An answer is read before the next one is packed: both use the same memory.
"""

import dataclasses
import os
import pickle
import shutil
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

LEAST = 2**16
"""Bytes of arrays from which on they go through shared memory."""
_PLACE = Path("/dev/shm")  # where Linux has it; a container may allow little, and writing beyond that ends the process


@dataclasses.dataclass(frozen=True)
class Parcel:
    """An answer as it goes through the pipe."""

    pickled: bytes
    memory: str = ""
    """Name of the shared memory with its arrays; empty: they are in `pickled`."""
    sizes: tuple[int, ...] = ()
    """Bytes of each array, which follow one another."""


class Outbox:
    """The worker's side."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None

    def pack(self, answer: Any) -> Parcel:
        """An answer to send; its arrays are copied."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
        arrays = [buffer.raw() for buffer in buffers]
        sizes = tuple(array.nbytes for array in arrays)
        memory = self._with_room(sum(sizes))
        if memory is None:
            return Parcel(pickle.dumps(answer, protocol=5))
        at = 0
        for array, size in zip(arrays, sizes, strict=True):
            _bytes(memory)[at : at + size] = array
            at += size
        return Parcel(pickled, memory.name, sizes)

    def _with_room(self, size: int) -> SharedMemory | None:
        """The shared memory, renewed if it is too small; None if the pipe has to do."""
        if size < LEAST:
            return None
        if self._memory is None or self._memory.size < size:
            if (larger := _reserved(size)) is None:
                return None
            if self._memory is not None:
                self._memory.close()  # the parent, which may still have it open, removes it
            self._memory = larger
        return self._memory


class Inbox:
    """The parent's side, for one worker. It removes the shared memory, since a worker may end at any moment."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None

    def open(self, parcel: Parcel) -> Any:
        """The answer that was packed; its arrays stay as they are when further parcels come."""
        if not parcel.memory:
            return pickle.loads(parcel.pickled)
        if self._memory is None or self._memory.name != parcel.memory:
            self.close()
            self._memory = SharedMemory(parcel.memory)
        arrays, at = [], 0
        for size in parcel.sizes:
            # A bytearray, so that arrays over it can be written like any others.
            arrays.append(bytearray(_bytes(self._memory)[at : at + size]))
            at += size
        return pickle.loads(parcel.pickled, buffers=arrays)

    def close(self) -> None:
        """Removes the shared memory."""
        if self._memory is not None:
            self._memory.close()
            self._memory.unlink()
            self._memory = None


def _reserved(size: int) -> SharedMemory | None:
    """New shared memory; None if there is no room for it."""
    if _PLACE.is_dir() and shutil.disk_usage(_PLACE).free < 2 * size:
        return None
    memory = SharedMemory(create=True, size=size)
    if _PLACE.is_dir() and hasattr(os, "posix_fallocate"):
        # Its pages now: another worker may take the room that was free until this one writes.
        try:
            with open(_PLACE / memory.name, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            memory.close()
            memory.unlink()
            return None
    return memory


def _bytes(memory: SharedMemory) -> memoryview:
    buffer = memory.buf
    assert buffer is not None, "shared memory is open while it is used"
    return buffer
