"""Looks at the loss of every step, one step behind the devices, and reports what is unusual."""

from collections.abc import Callable

from generalist.training.objective import Readout
from generalist.training.step import StepMetrics

SETTLED = 50  # steps before any loss is called unusual
SPIKE = 6.0  # standard deviations above the usual loss, from which on a loss is reported


class Watch:
    """Reports skipped steps, and losses far above the usual with their parts.

    Args:
        readout: names the sources of a batch and the parts of its loss.
        limit: skipped steps in a row that do not end the run.
        say: prints a line.
    """

    def __init__(self, readout: Readout, limit: int, say: Callable[[str], None]):
        self.readout, self.limit, self.say = readout, limit, say
        self.in_a_row = self.seen = 0
        self.mean = self.variance = 0.0

    def look(self, entry: StepMetrics, step: int) -> None:
        """Waits until a step is finished, and looks at its loss.

        Raises:
            FloatingPointError: more than `limit` steps in a row were skipped; the message names the step and its sources.
        """
        loss, skipped = float(entry.loss), bool(entry.skipped)
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if skipped:
            origin = self.readout.origin(entry.parts)
            if self.in_a_row > self.limit:
                raise FloatingPointError(
                    f"the loss or its gradient is not finite at step {step}, number {self.in_a_row} in a row{origin}. The last "
                    "checkpoint is complete: lower training.learning_rate, or look at the data"
                )
            self.say(f"step {step} skipped: its loss or gradient is not finite{origin}")
            return
        # A tenth of the usual loss is always allowed for: a loss that has settled has hardly any spread.
        usual, spread = self.mean, self.variance**0.5
        if self.seen >= SETTLED and loss > usual + SPIKE * spread + 0.1 * abs(usual):
            self.say(f"step {step}: the loss is {loss:.2f}, usually {usual:.2f}{self.readout.breakdown(entry.parts)}")
        self.seen += 1
        # Exponentially weighted mean and variance, updated in one pass (Finch, 2009, section 9), over about fifty steps. At first
        # the plain mean of all steps, since an average that began at 0 would be far too low.
        share = max(0.02, 1 / self.seen)
        self.variance = (1 - share) * (self.variance + share * (loss - self.mean) ** 2)
        self.mean += share * (loss - self.mean)
