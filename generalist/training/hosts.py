"""Several processes (generalist/training/cluster.py): common decisions, and reports of which process lags behind."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from generalist.data.packing import LOOK_AHEAD, Position
from generalist.system.files import write_json

WAITING_FOR_DATA = "waiting for data"
WAITING_FOR_DEVICES = "waiting for the devices"
CHECKS = 4  # how often the watchdog looks at the clock within `training.stall_seconds`


def is_first() -> bool:
    """Whether this process writes what only one process may write: recordings, tokenizers, metrics."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Blocks until every process has reached this call.

    Args:
        what: name of the barrier, the same in every process.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


class Vote:
    """Whether any process wants to stop. Every process gets the same answer in the same step.

    If one process left the loop on its own, the others would wait for it in the next step's collectives for ever.
    """

    def __init__(self) -> None:
        mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
        self._each, self._pending = NamedSharding(mesh, P("all")), None
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))

    def __call__(self, flag: bool) -> bool:
        """Casts this process's vote. Returns the outcome of the previous vote; with a single process, its own vote."""
        if jax.process_count() == 1:
            return flag
        # The devices count the votes after the step that they are working on. Reading them one step later, the loop waits for
        # no result that is not there already.
        votes = jax.make_array_from_callback((jax.device_count(),), self._each, lambda _: np.asarray([flag]))
        before, self._pending = self._pending, self._any(votes)
        return before is not None and bool(before)


def all_positions(own: Mapping[int, Position], shards: int) -> list[list[int]]:
    """The positions of all processes' shards as JSON values. A shard's list begins with the number of its next example; the
    numbers of its waiting examples follow.

    Args:
        own: positions of this process's shards.
        shards: how many there are in all processes.
    """
    # -1 stands for a shard of another process, and for a place where no example waits.
    table = np.full((shards, 1 + LOOK_AHEAD), -1, np.int64)
    for shard, position in own.items():
        table[shard, : 1 + len(position.waiting)] = [position.next, *position.waiting]
    if jax.process_count() > 1:
        # As 32-bit halves, since JAX truncates 64-bit integers. A shard's own process has the largest numbers for it.
        halves = multihost_utils.process_allgather(table.view(np.int32))  # (processes, shards, 2 * (1 + LOOK_AHEAD))
        table = np.ascontiguousarray(halves).view(np.int64).max(axis=0)
    return [[int(number) for number in row if number >= 0] for row in table]


def positions_from(stored: list[list[int]]) -> dict[int, Position]:
    """The positions that `all_positions` stored, by shard."""
    return {shard: Position(row[0], tuple(row[1:])) for shard, row in enumerate(stored)}


class Watchdog:
    """A thread that reports when a step takes unusually long: what this process waits for, and which processes lag behind.

    Every process writes a sign of life into a folder that all of them share:

        <folder>/<process>.json   its step, its phase, and the time of writing

    Args:
        folder: of the signs; used only if there are several processes.
        seconds: duration of a step above which it is reported.
        say: prints a line.
    """

    def __init__(self, folder: Path, seconds: float, say: Callable[[str], None]):
        self.folder, self.seconds, self.say = folder, seconds, say
        self._step, self._phase, self._since = 0, "starting", time.monotonic()
        self._report_after, self._stop = seconds, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if jax.process_count() > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def phase(self, step: int, phase: str) -> None:
        """Notes what this process does now, and in which step. A new step restarts the clock."""
        if step != self._step:
            self._since, self._report_after = time.monotonic(), self.seconds
        self._step, self._phase = step, phase

    def _watch(self) -> None:
        # At least every 30 s, however long a step may take: `behind` calls a process silent after a minute.
        while not self._stop.wait(min(30.0, self.seconds / CHECKS)):
            if jax.process_count() > 1:
                self._sign()
            took = time.monotonic() - self._since
            if took > self._report_after:
                self._report_after *= 2  # a step that hangs for hours is reported a few times, not hundreds
                self.say(self._report(took))

    def _sign(self) -> None:
        # Wall-clock time, unlike the rest of this class: other machines compare it with theirs.
        sign = {"step": self._step, "phase": self._phase, "time": time.time()}
        try:
            write_json(self.folder / f"{jax.process_index()}.json", sign)
        except OSError as error:  # a full disk must not end the watch
            self.say(f"process {jax.process_index()} can't write its sign of life: {error}")

    def _report(self, took: float) -> str:
        line = f"step {self._step} has taken {took:.0f} s so far: {self._phase}"
        if jax.process_count() == 1:
            return line
        late = behind(self.folder, jax.process_count(), self._step, time.time(), self.seconds)
        return f"process {jax.process_index()}: {line}; " + ("behind: " + "; ".join(late) if late else "none is behind")


def behind(folder: Path, processes: int, step: int, now: float, seconds: float) -> list[str]:
    """The processes that are silent, at an earlier step, or waiting for their data, one description each.

    Args:
        folder: of the signs of life.
        step: the step that this process is in.
        now: wall-clock time in seconds.
        seconds: as in `Watchdog`.
    """
    late = []
    for process in range(processes):
        try:
            sign: dict[str, Any] = json.loads((folder / f"{process}.json").read_text())
        except (OSError, json.JSONDecodeError):
            late.append(f"process {process}, without a sign of life")
            continue
        # A minute of slack, since the clocks of different machines differ a little.
        silent = now - sign["time"]
        if silent > max(60.0, 2 * seconds / CHECKS):
            late.append(f"process {process}, silent for {silent:.0f} s since step {sign['step']}")
        # All processes wait for the devices together, so the one that still waits for its data holds up the others.
        elif sign["step"] < step or sign["phase"] == WAITING_FOR_DATA:
            late.append(f"process {process}, at step {sign['step']}, {sign['phase']}")
    return late
