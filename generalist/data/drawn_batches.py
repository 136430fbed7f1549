"""Batches of items that are drawn one by one, such as images that are augmented anew in each epoch.

Dimension key: N items of a batch.
"""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from jaxtyping import Shaped

PREFETCH = 4  # batches made ahead of the step

Arrays = tuple[Shaped[np.ndarray, "N ..."], ...]
"""A batch: each array of an item, stacked."""


class DrawnBatches:
    """Endless batches, shuffled anew in each epoch. Threads make a few batches ahead.

    Args:
        draw: from the number of an item to its arrays, a tuple.
        count: number of items.
        batch: items per batch, at most `count`.
        seed: of the order and of what `draw` draws.
    """

    def __init__(self, draw: grain.transforms.RandomMap, count: int, *, batch: int, seed: int):
        # The last items of an epoch that do not fill a batch are left out. With items of the next epoch in their batch, one item
        # could be there twice, and would be its own negative in a contrastive loss.
        epoch = grain.MapDataset.range(count).seed(seed).shuffle()
        self._batch, self._whole, self._count = batch, count // batch, count
        self._draw, self.step = epoch.repeat().random_map(draw), 0
        self._pool = ThreadPoolExecutor(2)  # decoding and resizing release Python's lock
        self._ahead: deque[Future] = deque()

    def make(self, step: int) -> Arrays:
        """The batch of a step, counted from 0."""
        # Every batch follows from its number alone, so that any position can be resumed, by whichever thread.
        epoch, number = divmod(step, self._whole)
        first = epoch * self._count + number * self._batch
        items = [self._draw[index] for index in range(first, first + self._batch)]
        return tuple(np.stack(arrays) for arrays in zip(*items, strict=True))

    def __iter__(self) -> "DrawnBatches":
        return self

    def __next__(self) -> Arrays:
        # Refilled before the wait, so that the threads are busy meanwhile.
        while len(self._ahead) <= PREFETCH:
            self._ahead.append(self._pool.submit(self.make, self.step + len(self._ahead)))
        batch = self._ahead.popleft().result()
        self.step += 1
        return batch

    @property
    def position(self) -> dict[str, Any]:
        """The number of batches handed out, for a checkpoint."""
        return {"step": self.step}

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Continues from a `position`; batches made ahead are dropped."""
        self._drop()
        self.step = int(position["step"])

    def close(self) -> None:
        """Stops the threads."""
        self._drop()
        self._pool.shutdown()

    def _drop(self) -> None:
        for future in self._ahead:
            future.cancel()  # one that is running already finishes, and its batch is dropped
        self._ahead.clear()
