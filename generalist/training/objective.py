"""What the loop asks of the kind of training that it runs: batches, and names for what the loss measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from generalist.config.run import TrainingConfig


@runtime_checkable
class RunSettings(Protocol):
    """Of a run's settings, what the loop reads."""

    @property
    def folder(self) -> Path: ...

    @property
    def checkpoints(self) -> str: ...

    @property
    def training(self) -> TrainingConfig: ...

    @property
    def profile(self) -> bool: ...


@runtime_checkable
class Batches(Protocol):
    """Endless batches that can be gone on with from a stored position."""

    def __next__(self) -> Any:
        """The next batch, in host memory."""

    @property
    def position(self) -> dict[str, Any]:
        """JSON values: where the batches handed out so far have left the data, for all processes together."""

    def go_to(self, position: Mapping[str, Any], /) -> None:
        """Goes to a `position`."""

    def close(self) -> None:
        """Ends the threads and processes that make batches."""


@runtime_checkable
class Readout(Protocol):
    """Turns what the loss measured (`StepMetrics.parts`, as numpy arrays) into named metrics and texts."""

    def values(self, sums: Any, *, steps: int, sound: int, seconds: float, params: Any) -> dict[str, float]:
        """Named metrics of an interval.

        Args:
            sums: of `parts` over the steps that were not skipped.
            steps: in the interval, skipped ones included.
            sound: those of them that were not skipped.
            seconds: that the interval took.
            params: the trained parameters after it.
        """

    def describe(self, values: Mapping[str, float]) -> str:
        """The short text beside the progress bar, of a whole line of metrics."""

    def origin(self, parts: Any) -> str:
        """Where a step's batch came from, as the end of a sentence; empty where there is nothing to tell apart."""

    def breakdown(self, parts: Any) -> str:
        """A step's loss in its parts, as the end of a sentence; empty where it has none."""
