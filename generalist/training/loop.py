"""The training loop: batches in, checkpoints and metrics out; stops and goes on anywhere."""

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from generalist.config.run import Config
from generalist.data.batch import Batch, BatchSpec
from generalist.data.packing import BatchIterator
from generalist.model.config import ModelSpec
from generalist.model.params import flat, nested, united
from generalist.model.transformer import count_parameters
from generalist.training.checkpoint import Checkpoints
from generalist.training.hosts import (
    WAITING_FOR_DATA,
    WAITING_FOR_DEVICES,
    Vote,
    Watchdog,
    all_positions,
    is_first,
    positions_from,
)
from generalist.training.loss import KINDS
from generalist.training.metrics import Metrics, model_flops, peak_flops
from generalist.training.optimizer import schedule
from generalist.training.step import StepMetrics, Trainer, TrainState, make_trainer
from generalist.vision.encoder import VisionEncoder
from generalist.weights.language import LanguageModel

TRACED = 5  # steps in a profiler's trace
SETTLED = 50  # steps before a loss can be called unusual
SPIKE = 6.0  # standard deviations above the usual


class Interrupted(Exception):
    """The user asked to stop; everything up to the last finished step is saved."""


STOPS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what a cluster sends before it takes a machine away."""


@dataclasses.dataclass
class Interrupt:
    """Turns the first signal to stop into a flag, so that a step is never cut in half; the second one ends at once."""

    asked: bool = False

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.signal(number, self._ask) for number in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Window:
    """Sums of the metrics since the last line; read from the devices only when a line is due."""

    def __init__(self) -> None:
        self.entries: list[StepMetrics] = []
        self.waited = 0.0
        self.started = time.perf_counter()

    def summarize(self, config: Config, names: list[str], flops: float, peak: float, step: int) -> dict[str, float]:
        """Means over the window. `waiting` is the share of the time spent waiting for data, `padding` of the positions."""
        seconds = time.perf_counter() - self.started
        entries = jax.device_get(self.entries)
        total = jax.tree.map(lambda *leaves: np.asarray(np.sum(leaves, axis=0)), *entries)
        count, positions = len(entries), config.data.rows * config.data.length * len(entries)
        sound = max(1, count - total.skipped)
        values = {
            "loss": total.loss / sound,
            "gradient_norm": total.gradient_norm / sound,
            "skipped": total.skipped,
            "learning_rate": float(schedule(config.training)(step - 1)),
            "tokens_per_second": total.tokens / seconds,
            "mfu": flops * count / seconds / peak,
            "padding": 1 - total.tokens / positions,
            "waiting": self.waited / seconds,
            "step_seconds": seconds / count,
        }
        for kind, nll, weight in zip(KINDS, total.kind_nll, total.kind_weight, strict=True):
            if weight > 0:
                values[f"loss/{kind}"] = nll / weight
        for index, name in enumerate(names):
            if total.source_weight[index] > 0:
                values[f"loss/{name}"] = total.source_nll[index] / total.source_weight[index]
                values[f"accuracy/{name}"] = total.source_correct[index] / total.source_weight[index]
        return {name: float(value) for name, value in values.items()}


def describe(values: dict[str, float]) -> str:
    """The short text beside the progress bar."""
    kinds = " ".join(f"{kind} {values[f'loss/{kind}']:.2f}" for kind in KINDS if f"loss/{kind}" in values)
    gates = f" gates {values['gate/attention']:.2f}" if "gate/attention" in values else ""
    return (
        f"loss {values['loss']:.3f} ({kinds}){gates} {values['tokens_per_second'] / 1e3:.1f}k tok/s "
        f"mfu {values['mfu']:.0%} pad {values['padding']:.0%} wait {values['waiting']:.0%}"
    )


def gate_openings(params: Any) -> dict[str, float]:
    """How far the gates of the cross-attention are open, 0 to 1, averaged over the layers; nothing without an encoder."""
    if "visual" not in params:
        return {}
    gated = params["visual"]["gated"]
    return {
        f"gate/{name}": float(jnp.abs(jnp.tanh(gated[f"{name}_gate"])).mean()) for name in ("attention", "feed_forward")
    }


class Watch:
    """Looks at every step's loss: skipped steps are told and counted, and a loss far above the usual is told with its sources.

    Args:
        names: the sources' names.
        limit: skipped steps in a row that are borne.
        say: shows a line.
    """

    def __init__(self, names: list[str], limit: int, say: Callable[[str], None]):
        self.names, self.limit, self.say = names, limit, say
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
            sources = ", ".join(self._involved(entry.skipped_sources)) or "no source"
            if self.in_a_row > self.limit:
                raise FloatingPointError(
                    f"the loss or its gradient is not finite at step {step}, the {self.in_a_row}th in a row; its batch came from "
                    f"{sources}. The last checkpoint is whole: lower training.learning_rate, or look at those sources' data"
                )
            self.say(f"step {step} skipped: its loss or gradient is not finite; its batch came from {sources}")
            return
        usual, spread = self.mean, self.variance**0.5
        if self.seen >= SETTLED and loss > usual + SPIKE * spread + 0.1 * abs(usual):
            weights = np.asarray(entry.source_weight)
            each = np.asarray(entry.source_nll) / np.maximum(weights, 1e-9)
            told = [
                f"{name} {nll:.2f}" for name, nll, weight in zip(self.names, each, weights, strict=True) if weight > 0
            ]
            self.say(f"step {step}: the loss is {loss:.2f}, usually {usual:.2f}; nats a token: {', '.join(told)}")
        self.seen += 1
        share = max(0.02, 1 / self.seen)  # a mean over about fifty steps
        self.variance = (1 - share) * (self.variance + share * (loss - self.mean) ** 2)
        self.mean += share * (loss - self.mean)

    def _involved(self, weights: Any) -> list[str]:
        return [name for name, weight in zip(self.names, np.asarray(weights), strict=True) if weight > 0]


def load_trunk(config: Config, spec: ModelSpec, trainer: Trainer, console: Console) -> dict[str, Any]:
    """The parameters that the pretrained language model brings, nested, each on the devices as soon as it is read, in the type
    and parts that the trainer keeps; empty without one."""
    if config.model.trunk == "none":
        return {}
    console.print(f"reading the weights of {config.model.trunk} ...", highlight=False)
    kept = flat(united(trainer.abstract_state.params, trainer.abstract_state.frozen))

    def place(path: str, array: np.ndarray) -> jax.Array:
        return jax.device_put(array.astype(kept[path].dtype), kept[path].sharding)

    return LanguageModel(config.model.trunk).load(spec.vocabulary, place)


def train(
    config: Config,
    spec: ModelSpec,
    batch_spec: BatchSpec,
    iterator: BatchIterator,
    sources: Mapping[str, float],
    console: Console,
    encoder: VisionEncoder | None = None,
    start: Mapping[str, Any] | None = None,
) -> None:
    """Trains to `config.training.steps`, from the run's newest checkpoint if it has one. Of several processes, all call it.

    Args:
        iterator: gives this process's shards of the batches.
        sources: the data's sources with their weights, in the order of the batches' `source` ids.
        encoder: the frozen encoder, where batches carry pixels.
        start: parameters to begin with, by their paths.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the position is saved.
        FloatingPointError: the loss was not finite for too many steps in a row.
        OSError: a checkpoint could not be written.
    """
    training = config.training
    trainer = make_trainer(spec, training, weights=list(sources.values()), encoder=encoder)
    checkpoints = Checkpoints(config.checkpoints, training)
    if checkpoints.latest is None:
        state = trainer.initialize(nested(start) if start else load_trunk(config, spec, trainer, console))
    else:
        console.print(f"going on from the checkpoint of step {checkpoints.latest}", highlight=False)
        state, position = checkpoints.restore(trainer.abstract_state)
        iterator.go_to(positions_from(position["shards"]))
    trained, frozen = count_parameters(state.params), count_parameters(state.frozen)
    held = f" and {frozen / 1e6:.2f} M frozen ones" if frozen else ""
    flops, peak = model_flops(spec, batch_spec, united(state.params, state.frozen)), peak_flops()
    console.print(
        f"{trained / 1e6:.2f} M parameters{held}, {batch_spec.rows} × {batch_spec.length} positions a step, "
        f"{jax.device_count()} {jax.devices()[0].device_kind} device(s) of {jax.process_count()} process(es), "
        f"peak {peak / 1e9:.0f} GFLOP/s",
        highlight=False,
    )
    with Metrics(config.folder, training.steps, int(state.step), console) as metrics, Interrupt() as interrupt:
        watch = Watch(list(sources), training.skip_limit, metrics.say)
        say = metrics.say if is_first() else lambda line: print(line, file=sys.stderr, flush=True)
        with Watchdog(config.folder / "processes", training.stall_seconds, say) as watchdog:
            run = Run(config, trainer, iterator, checkpoints, metrics, interrupt, watch, watchdog, (flops, peak))
            state = run.steps(state)
            metrics.advance(int(state.step), "saving")
            run.save(state)
            checkpoints.wait()
    checkpoints.close()
    if run.stopped:
        raise Interrupted(f"stopped at step {int(state.step)} and saved; the same command goes on from there")


@dataclasses.dataclass
class Run:
    """All that the steps of one run work with."""

    config: Config
    trainer: Trainer
    iterator: BatchIterator
    checkpoints: Checkpoints
    metrics: Metrics
    interrupt: Interrupt
    watch: Watch
    watchdog: Watchdog
    speed: tuple[float, float]
    """FLOPs of a step, and the devices' peak in FLOP/s."""
    stopped: bool = False
    """Whether it ended because a process was asked to stop."""
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    """The last line of metrics."""

    def save(self, state: TrainState) -> None:
        """A checkpoint of the state and of the position in the data."""
        positions = all_positions(self.iterator.positions, self.config.data.shards)
        self.checkpoints.save(state, {"shards": positions}, self.last)

    def steps(self, state: TrainState) -> TrainState:
        """Steps until the end or until a process is asked to stop."""
        training, key = self.config.training, jax.random.key(self.config.training.seed)
        window, vote, unseen = Window(), Vote(), None
        first = int(state.step) + 1
        trace = Trace(self.config.folder / "profile", first) if self.config.profile and is_first() else None
        with jax.set_mesh(self.trainer.mesh):
            for step in range(first, training.steps + 1):
                batch = self._next(step, window)
                state, entry = self.trainer.step(state, batch, key)
                window.entries.append(entry)
                self.watchdog.phase(step, WAITING_FOR_DEVICES)
                # The devices have the next step before they are asked for the last one: they never wait for this loop.
                if unseen is not None:
                    self.watch.look(unseen, step - 1)
                unseen = entry
                if trace is not None:
                    trace.after(step)
                self.stopped = vote(self.interrupt.asked)
                if step % training.log_every == 0 or step == training.steps:
                    self._log(window, state, step)
                    window = Window()
                else:
                    self.metrics.advance(step)
                if step % training.checkpoint_every == 0 and step < training.steps:
                    self.watchdog.phase(step, "saving")
                    self.save(state)
                if self.stopped:
                    break
            if unseen is not None:
                self.watch.look(unseen, step)
        if trace is not None:
            trace.close()
        return state

    def _next(self, step: int, window: Window) -> Batch:
        self.watchdog.phase(step, WAITING_FOR_DATA)
        begun = time.perf_counter()
        batch = next(self.iterator)
        window.waited += time.perf_counter() - begun
        return self.trainer.place(batch, self.config.data.shards)

    def _log(self, window: Window, state: TrainState, step: int) -> None:
        values = window.summarize(self.config, self.watch.names, *self.speed, step) | gate_openings(state.params)
        self.metrics.write(step, values)
        self.metrics.advance(step, describe(values))
        self.last = values


class Trace:
    """A profiler's trace of a few steps, once everything is compiled.

    Args:
        folder: gets the trace.
        first: the run's first step, which compiles.
    """

    def __init__(self, folder: Path, first: int):
        self.folder, self.begin, self.end = folder, first + 2, first + 2 + TRACED
        self.running = False

    def after(self, step: int) -> None:
        """To be called when a step is done."""
        if step == self.begin:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif step == self.end:
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
