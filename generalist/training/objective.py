"""What the loop needs from each kind of training: its batches, and names for what its loss measured."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

# Protocols, so that both kinds of training can use the loop without knowing each other. They can be checked at run time, since
# the tests check the type of every argument.


@runtime_checkable
class Batches(Protocol):
    """Endless batches that can be continued from a stored position."""

    def __next__(self) -> Any:
        """The next batch, in host memory."""

    @property
    def position(self) -> dict[str, Any]:
        """The position in the data after the batches handed out so far, of all processes together, as JSON values."""

    def go_to(self, position: Mapping[str, Any], /) -> None:
        """Continues from a `position`."""

    def close(self) -> None:
        """Stops the threads and processes that make batches."""


@runtime_checkable
class Readout(Protocol):
    """Turns what the loss measured (`StepMetrics.parts`) into named metrics and texts."""

    def values(self, sums: Any, *, steps: int, sound: int, seconds: float, params: Any) -> dict[str, float]:
        """Named metrics of an interval.

        Args:
            sums: `parts` summed over the steps that were not skipped, as numpy arrays.
            steps: number of steps in the interval, skipped ones included.
            sound: number of steps that were not skipped.
            seconds: duration of the interval.
            params: the trained parameters after the interval.
        """

    def describe(self, values: Mapping[str, float]) -> str:
        """A short text for the progress bar from one line of metrics."""

    def origin(self, parts: Any) -> str:
        """The sources of a step's batch, as the end of a sentence; empty if there is only one source."""

    def breakdown(self, parts: Any) -> str:
        """A step's loss by source, as the end of a sentence; empty if there is only one source."""
