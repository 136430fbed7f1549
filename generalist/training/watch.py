"""Looks at every step's loss, one step behind the devices."""

from collections.abc import Callable

from generalist.training.objective import Readout
from generalist.training.step import StepMetrics

SETTLED = 50  # steps before a loss can be called unusual
SPIKE = 6.0  # standard deviations above the usual


class Watch:
    """Reports and counts skipped steps, and reports a loss far above the usual with its parts.

    Args:
        readout: names where a batch came from.
        limit: skipped steps in a row that are borne.
        say: shows a line.
    """

    def __init__(self, readout: Readout, limit: int, say: Callable[[str], None]):
        self.readout, self.limit, self.say = readout, limit, say
        self.in_a_row = self.seen = 0
        self.mean = self.variance = 0.0

    def look(self, entry: StepMetrics, step: int) -> None:
        """Waits for a step and looks at it.

        Raises:
            FloatingPointError: more than `limit` steps in a row had to be skipped; names the step and its sources.
        """
        loss, skipped = float(entry.loss), bool(entry.skipped)
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if skipped:
            origin = self.readout.origin(entry.parts)
            if self.in_a_row > self.limit:
                raise FloatingPointError(
                    f"the loss or its gradient is not finite at step {step}, number {self.in_a_row} in a row{origin}. The last "
                    "checkpoint is whole: lower training.learning_rate, or look at the data"
                )
            self.say(f"step {step} skipped: its loss or gradient is not finite{origin}")
            return
        usual, spread = self.mean, self.variance**0.5
        if self.seen >= SETTLED and loss > usual + SPIKE * spread + 0.1 * abs(usual):
            self.say(f"step {step}: the loss is {loss:.2f}, usually {usual:.2f}{self.readout.breakdown(entry.parts)}")
        self.seen += 1
        share = max(0.02, 1 / self.seen)  # a mean over about fifty steps
        self.variance = (1 - share) * (self.variance + share * (loss - self.mean) ** 2)
        self.mean += share * (loss - self.mean)
