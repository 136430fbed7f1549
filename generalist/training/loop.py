"""The training loop, the same for every loss: batches in, checkpoints and metrics out. It can stop after any step, and resume."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console

from generalist.config.run import RunSettings
from generalist.training.checkpoint import Checkpoints
from generalist.training.hosts import WAITING_FOR_DATA, WAITING_FOR_DEVICES, Vote, Watchdog, is_first
from generalist.training.interrupt import Interrupt, Interrupted
from generalist.training.interval import Interval
from generalist.training.metrics import Metrics
from generalist.training.objective import Batches, Readout
from generalist.training.optimizer import schedule
from generalist.training.state import TrainState
from generalist.training.step import Trainer
from generalist.training.trace import Trace
from generalist.training.watch import Watch


def train(
    settings: RunSettings,
    trainer: Trainer,
    batches: Batches,
    place: Callable[[Any], Any],
    readout: Readout,
    console: Console,
    begin: Callable[[], Any] = dict,
) -> TrainState:
    """Trains to `training.steps`, from the run's newest checkpoint if it has one. If there are several processes, all call it.

    Args:
        trainer: the compiled step of a loss.
        batches: gives this process's part of the batches; closed at the end, whatever happens.
        place: moves a batch to the devices, in the form that the step takes.
        readout: names what the loss measures.
        begin: gives nested parameters to begin with, for a run without a checkpoint; by default none, so all are drawn.

    Returns:
        The state after the last step.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; state and position are saved.
        FloatingPointError: the loss was not finite for too many steps in a row.
        OSError: a checkpoint could not be written.
    """
    training = settings.training
    with contextlib.closing(batches):
        checkpoints = Checkpoints(settings.checkpoints, training)
        if checkpoints.latest is None:
            state = trainer.initialize(begin())
        else:
            console.print(f"continuing from the checkpoint of step {checkpoints.latest}", highlight=False)
            state, position = checkpoints.restore(trainer.abstract_state)
            # The position covers the shards of all processes, however many there were; the batches pick this process's.
            batches.go_to(position)
        with Metrics(settings.folder, training.steps, int(state.step), console) as metrics, Interrupt() as interrupt:
            watch = Watch(readout, training.skip_limit, metrics.say)
            # All processes report a stall, but only the first has a console that prints.
            say = metrics.say if is_first() else lambda line: print(line, file=sys.stderr, flush=True)
            with Watchdog(settings.folder / "processes", training.stall_seconds, say) as watchdog:
                run = Run(settings, trainer, batches, place, readout, checkpoints, metrics, interrupt, watch, watchdog)
                state = run.steps(state)
                metrics.advance(int(state.step), "saving")
                run.save(state)
                checkpoints.wait()
        # Not in a `finally`: closing raises a save's error again, which would hide the error that ended the run.
        checkpoints.close()
    if run.stopped:
        raise Interrupted(f"stopped at step {int(state.step)} and saved; the same command continues from there")
    return state


@dataclasses.dataclass
class Run:
    """Everything that the steps of one run need, and where the run stands."""

    settings: RunSettings
    trainer: Trainer
    batches: Batches
    place: Callable[[Any], Any]
    readout: Readout
    checkpoints: Checkpoints
    metrics: Metrics
    interrupt: Interrupt
    watch: Watch
    watchdog: Watchdog
    stopped: bool = False
    """Whether the run ended because a process was asked to stop."""
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    """The last line of metrics."""

    def save(self, state: TrainState) -> None:
        """Saves the state and the position in the data."""
        # The position of the batches handed out, not of those made ahead: the batch of the next step is not among them yet.
        self.checkpoints.save(state, self.batches.position, self.last)

    def steps(self, state: TrainState) -> TrainState:
        """Runs the steps up to `training.steps`, or until a process is asked to stop; returns the state after the last one."""
        # One key for the whole run: each step derives its own from it and from its number.
        training, key = self.settings.training, jax.random.key(self.settings.training.seed)
        interval, vote, unseen = Interval(), Vote(), None
        first = int(state.step) + 1
        trace = Trace(self.settings.folder / "profile", first) if self.settings.profile and is_first() else None
        with jax.set_mesh(self.trainer.mesh):
            for step in range(first, training.steps + 1):
                batch = self._next(step, interval)
                state, entry = self.trainer.step(state, batch, key)
                interval.entries.append(entry)
                self.watchdog.phase(step, WAITING_FOR_DEVICES)
                # The devices already have this step when the loop waits for the result of the one before: they are never idle.
                if unseen is not None:
                    self.watch.look(unseen, step - 1)
                unseen = entry
                if trace is not None:
                    trace.after(step)
                # In every step, although nobody asks in most of them: a vote is a collective, in which all must take part.
                self.stopped = vote(self.interrupt.asked)
                if step % training.log_every == 0 or step == training.steps:
                    self._log(interval, state, step)
                    interval = Interval()
                else:
                    self.metrics.advance(step)
                if step % training.checkpoint_every == 0 and step < training.steps:
                    self.watchdog.phase(step, "saving")
                    self.save(state)
                if self.stopped:
                    break
            # The last step has not been looked at yet. Without any step (the run was complete) there is none.
            if unseen is not None:
                self.watch.look(unseen, step)
        if trace is not None:
            trace.close()
        return state

    def _next(self, step: int, interval: Interval) -> Any:
        """The next batch, on its way to the devices while they work on the step before."""
        self.watchdog.phase(step, WAITING_FOR_DATA)
        begun = time.perf_counter()
        batch = next(self.batches)
        interval.waited += time.perf_counter() - begun
        return self.place(batch)

    def _log(self, interval: Interval, state: TrainState, step: int) -> None:
        """Writes a line of metrics for the interval that ends with `step`."""
        # Fetching the metrics waits for the devices, which the loop otherwise does one step late.
        values = interval.summarize(self.readout, schedule(self.settings.training), state.params, step)
        self.metrics.write(step, values)
        self.metrics.advance(step, self.readout.describe(values))
        self.last = values
