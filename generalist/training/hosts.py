"""Several processes (generalist/training/cluster.py): agreeing with the others, and telling which of them is behind."""

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
CHECKS = 4  # looks at the clock within the time that a step may take


def is_first() -> bool:
    """Whether this process writes what is written once: recordings, tokenizers, metrics."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


class Vote:
    """Whether any process wants to stop: all get the same answer in the same step. Votes are counted by the devices, behind the
    step that they are working on, and read one step later, so that nobody waits for them."""

    def __init__(self) -> None:
        mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
        self._each, self._pending = NamedSharding(mesh, P("all")), None
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))

    def __call__(self, flag: bool) -> bool:
        """Gives this process's vote; returns the outcome of the last one, or, of a process alone, the vote itself."""
        if jax.process_count() == 1:
            return flag
        votes = jax.make_array_from_callback((jax.device_count(),), self._each, lambda _: np.asarray([flag]))
        before, self._pending = self._pending, self._any(votes)
        return before is not None and bool(before)


def all_positions(own: Mapping[int, Position], shards: int) -> list[list[int]]:
    """The positions of all processes' shards as JSON values: for each, the number of its next example and of those waiting."""
    table = np.full((shards, 1 + LOOK_AHEAD), -1, np.int64)
    for shard, position in own.items():
        table[shard, : 1 + len(position.waiting)] = [position.next, *position.waiting]
    if jax.process_count() > 1:
        # 32-bit halves: JAX would cut 64-bit integers short.
        halves = multihost_utils.process_allgather(table.view(np.int32))
        table = np.ascontiguousarray(halves).view(np.int64).max(axis=0)
    return [[int(number) for number in row if number >= 0] for row in table]


def positions_from(stored: list[list[int]]) -> dict[int, Position]:
    """What `all_positions` gave."""
    return {shard: Position(row[0], tuple(row[1:])) for shard, row in enumerate(stored)}


class Watchdog:
    """A thread that tells when a step takes unusually long, what this process waits for, and which processes are behind.

    Every process leaves a sign of life in a folder that all of them share:

        <folder>/<process>.json   its step, what it is doing, when it said so

    Args:
        folder: where the signs are; used only if there are several processes.
        seconds: that a step may take.
        say: shows a line.
    """

    def __init__(self, folder: Path, seconds: float, say: Callable[[str], None]):
        self.folder, self.seconds, self.say = folder, seconds, say
        self._step, self._phase, self._since = 0, "starting", time.monotonic()
        self._told, self._stop = seconds, threading.Event()
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
        """What this process does now, in which step; a new step starts the clock anew."""
        if step != self._step:
            self._since, self._told = time.monotonic(), self.seconds
        self._step, self._phase = step, phase

    def _watch(self) -> None:
        while not self._stop.wait(min(30.0, self.seconds / CHECKS)):
            if jax.process_count() > 1:
                self._sign()
            took = time.monotonic() - self._since
            if took > self._told:
                self._told *= 2
                self.say(self._report(took))

    def _sign(self) -> None:
        sign = {"step": self._step, "phase": self._phase, "time": time.time()}
        try:
            write_json(self.folder / f"{jax.process_index()}.json", sign)
        except OSError as error:  # a full disk must not end the watch
            self.say(f"process {jax.process_index()} can't leave its sign of life: {error}")

    def _report(self, took: float) -> str:
        line = f"step {self._step} has taken {took:.0f} s so far: {self._phase}"
        if jax.process_count() == 1:
            return line
        late = behind(self.folder, jax.process_count(), self._step, time.time(), self.seconds)
        return f"process {jax.process_index()}: {line}; " + ("behind: " + "; ".join(late) if late else "none is behind")


def behind(folder: Path, processes: int, step: int, now: float, seconds: float) -> list[str]:
    """The processes that are silent, at an earlier step, or waiting for their data, in words."""
    late = []
    for process in range(processes):
        try:
            sign: dict[str, Any] = json.loads((folder / f"{process}.json").read_text())
        except (OSError, json.JSONDecodeError):
            late.append(f"process {process}, never heard of")
            continue
        silent = now - sign["time"]
        if silent > max(60.0, 2 * seconds / CHECKS):
            late.append(f"process {process}, silent for {silent:.0f} s since step {sign['step']}")
        elif sign["step"] < step or sign["phase"] == WAITING_FOR_DATA:
            late.append(f"process {process}, at step {sign['step']}, {sign['phase']}")
    return late
