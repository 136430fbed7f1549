"""Many environments at once, spread over worker processes."""

import atexit
import contextlib
import dataclasses
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from generalist.envs.task import Task
from generalist.system.processes import WorkerError, start
from generalist.system.shared_replies import Inbox, Outbox

CLOSING = 5.0
"""Seconds in which environments must close; an environment may hang in its own code."""
LOOKING = 1.0
"""Seconds after which a worker that does not answer is looked after."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Command: begin an episode of a task."""

    task: Task
    seed: int


@dataclasses.dataclass(frozen=True)
class Started:
    """Reply: an episode has begun."""

    observation: Any
    instruction: str


@dataclasses.dataclass(frozen=True)
class Act:
    """Command: take an action."""

    action: Any


@dataclasses.dataclass(frozen=True)
class Acted:
    """Reply: the result of an action."""

    observation: Any
    reward: float
    done: bool
    """The episode has ended, by itself or by a limit."""
    info: dict[str, Any]
    """Numbers, flags and strings only: other values may be large or not picklable."""


class EnvPool:
    """Up to `lanes` environments, each playing one episode after the other. Each of n workers owns every n-th lane and steps
    its lanes in turn.

    Args:
        lanes: number of lanes.
        workers: maximum number of processes.
    """

    def __init__(self, lanes: int, workers: int):
        if lanes < 1:
            raise ValueError(f"an EnvPool needs at least one lane, got {lanes}")
        # More workers than lanes would idle.
        self._count = max(1, min(workers, lanes))
        # Not daemons, which could have no children: an environment may have processes of its own.
        self._workers = [start(_serve, daemon=False) for _ in range(self._count)]
        atexit.register(self.close)  # the exit would wait for them
        self._inboxes = [Inbox() for _ in range(self._count)]
        self._playing = [""] * lanes  # each lane's task, for messages

    def run(self, commands: Mapping[int, Start | Act]) -> dict[int, Started | Acted]:
        """Carries out at most one command per lane, with all workers in parallel. Returns the reply of each lane.

        Raises:
            WorkerError: a worker died or an environment failed; the message names the task.
        """
        for lane, command in commands.items():
            if isinstance(command, Start):
                self._playing[lane] = command.task.name
        shares = [
            {lane: commands[lane] for lane in commands if lane % self._count == own} for own in range(self._count)
        ]
        # A worker without commands would send no reply.
        busy = [index for index, share in enumerate(shares) if share]
        for index in busy:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died, which its reply tells
                self._workers[index][1].send(shares[index])
        # All commands are sent before the first reply is awaited, so that the workers run at once.
        results: dict[int, Started | Acted] = {}
        errors: list[WorkerError] = []
        for index in busy:
            failed, values = self._reply(index)
            if failed:
                errors.append(values)
            else:
                results |= self._inboxes[index].open(values)
        # Raised only now: the shared memory of a reply that nobody opens would not be removed.
        if errors:
            raise errors[0]
        return results

    def kill(self) -> None:
        """Ends the workers at once, whatever they do. Can be called from any thread: `run` in another one then fails."""
        for process, _ in list(self._workers):
            process.kill()

    def close(self) -> None:
        """Closes the environments and ends the workers."""
        for _, connection in self._workers:
            connection.close()
        until = time.monotonic() + CLOSING
        for process, _ in self._workers:
            process.join(max(0.0, until - time.monotonic()))
        self.kill()
        for process, _ in self._workers:
            process.join()
        for inbox in self._inboxes:
            inbox.close()
        self._workers = []
        atexit.unregister(self.close)

    def _reply(self, index: int) -> tuple[bool, Any]:
        """Whether a worker failed, and its parcel of results or the error."""
        process, connection = self._workers[index]
        # A dead worker's end of the pipe may be open still: a process that its environment forked holds it as well.
        while not connection.poll(LOOKING):
            if not process.is_alive() and not connection.poll():
                return True, self._died(index)
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            return True, self._died(index)

    def _died(self, index: int) -> WorkerError:
        process, _ = self._workers[index]
        process.join(timeout=5)  # the exit code is known only then
        # A worker dies with all its lanes; any of their tasks may be the cause.
        names = sorted({name for name in self._playing[index :: self._count] if name})
        return WorkerError(
            f"the process that played {', '.join(names)} died (exit code {process.exitcode}); run the same command again"
        )


def _serve(connection: Connection) -> None:
    """A worker's loop: commands of its lanes in, (failed, parcel of results or exception) out."""
    outbox = Outbox()
    # An environment is kept while its lane plays the same task: making one costs up to a second.
    playing: dict[int, tuple[Task, Any]] = {}
    begun: dict[int, Start] = {}
    try:
        while True:
            commands: dict[int, Start | Act] = connection.recv()
            results: dict[int, Started | Acted] = {}
            begun |= {lane: command for lane, command in commands.items() if isinstance(command, Start)}
            lane = -1
            try:
                for lane, command in commands.items():
                    results[lane] = _carry_out(playing, lane, command)
                connection.send((False, outbox.pack(results)))
            except Exception as error:
                connection.send((True, _failure(begun[lane], error)))
    finally:  # the pipe has ended
        for _, env in playing.values():
            with contextlib.suppress(Exception):  # nobody is left to whom it could be told
                env.close()


def _failure(begun: Start, error: Exception) -> WorkerError:
    """What is told of an exception in an episode. As text: it may not be picklable, or need its package to be imported."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return WorkerError(
        f"{begun.task.name} failed in the episode with seed {begun.seed} "
        f"({type(error).__name__}: {error}; {Path(place.filename).name}, line {place.lineno})"
    )


def _carry_out(playing: dict[int, tuple[Task, Any]], lane: int, command: Start | Act) -> Started | Acted:
    if isinstance(command, Act):
        observation, reward, terminated, truncated, info = playing[lane][1].step(command.action)
        # Scores need numbers and flags; some simulators put whole state dictionaries into the info.
        plain = {key: value for key, value in info.items() if isinstance(value, bool | int | float | str | np.generic)}
        return Acted(observation, float(reward), bool(terminated or truncated), plain)
    # By value: the task is unpickled anew with every command.
    if lane not in playing or playing[lane][0] != command.task:
        if lane in playing:
            playing.pop(lane)[1].close()
        playing[lane] = (command.task, command.task.make())
    observation, info = playing[lane][1].reset(seed=command.seed)
    return Started(observation, info["instruction"])
