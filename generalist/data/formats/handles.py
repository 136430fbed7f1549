"""Files that stay open between two reads: opening a video or a large Parquet file takes longer than reading a window of it."""

import atexit
import collections
import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar, runtime_checkable

from upath import UPath

from generalist.data.formats.places import Place, stamp


@runtime_checkable
class Closable(Protocol):
    """An open file."""

    def close(self) -> None: ...


Handle = TypeVar("Handle", bound=Closable)


class Handles(Generic[Handle]):
    """The last few files of one kind that a process has read, open; at most one thread uses a handle at a time.

    Args:
        opener: opens a file.
        limit: how many stay open while nobody uses them.
    """

    def __init__(self, opener: Callable[[Place], Handle], limit: int):
        self._open, self.limit = opener, limit
        self._reset()
        # Files of C libraries are closed before the interpreter is taken down, while these libraries are still
        # whole.
        atexit.register(self.close)
        # A forked process would share the positions in the files with its parent.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        # A new lock too: a fork copies a lock that another thread holds, and nobody would ever release it.
        self._lock = threading.Lock()
        self._idle: collections.OrderedDict[Hashable, Handle] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._idle)

    @contextlib.contextmanager
    def use(self, file: Place) -> Iterator[Handle]:
        """A handle of a file, for this thread alone until the end of the block. It is closed if that ends in an error, after
        which its position is anywhere.

        Raises:
            OSError, and what opening raises.
        """
        # A local file that was written anew is opened anew; to ask a bucket each time would take longer than reading.
        key = str(file) if isinstance(file, UPath) else stamp(file)
        with self._lock:
            # Taken out while it is in use, so that no other thread can move its position.
            handle = self._idle.pop(key, None)
        if handle is None:
            # Outside of the lock: opening may take seconds, and other threads want other files.
            handle = self._open(file)
        try:
            yield handle
        # KeyboardInterrupt and GeneratorExit too: a handle that is neither closed nor put back would leak.
        except BaseException:
            handle.close()
            raise
        self._put(key, handle)

    def _put(self, key: Hashable, handle: Handle) -> None:
        with self._lock:
            surplus = [self._idle.pop(key)] if key in self._idle else []  # another thread was faster
            self._idle[key] = handle
            while len(self._idle) > self.limit:
                surplus.append(self._idle.popitem(last=False)[1])
        # Outside of the lock, as closing may wait for the disk.
        for one in surplus:
            one.close()

    def close(self) -> None:
        """Closes what nobody uses."""
        with self._lock:
            idle = list(self._idle.values())
            self._idle.clear()
        for handle in idle:
            handle.close()
