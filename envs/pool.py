"""Many environments at once, spread over worker processes."""

import dataclasses
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from generalist.envs.task import Task
from generalist.system.processes import WorkerError, start


@dataclasses.dataclass(frozen=True)
class Start:
    """Begin an episode, in whatever environment it takes."""

    task: Task
    seed: int


@dataclasses.dataclass(frozen=True)
class Started:
    """An episode has begun."""

    observation: Any
    instruction: str


@dataclasses.dataclass(frozen=True)
class Act:
    """Take an action."""

    action: Any


@dataclasses.dataclass(frozen=True)
class Acted:
    """What an action brought."""

    observation: Any
    reward: float
    done: bool
    """The episode is over, by itself or by a limit."""
    info: dict[str, Any]
    """Plain values only."""


class EnvPool:
    """`lanes` environments at most, each playing one episode after the other; a worker owns every n-th lane and steps them in
    turn.

    Args:
        lanes: how many.
        workers: processes at most.
    """

    def __init__(self, lanes: int, workers: int):
        if lanes < 1:
            raise ValueError("an EnvPool needs at least one lane")
        self._count = max(1, min(workers, lanes))
        self._workers = [start(_serve) for _ in range(self._count)]
        self._playing = [""] * lanes

    def run(self, commands: Mapping[int, Start | Act]) -> dict[int, Started | Acted]:
        """Carries out at most one command a lane, all workers at once; what came of each.

        Raises:
            WorkerError: a worker died or an environment failed; the message names the task.
        """
        for lane, command in commands.items():
            if isinstance(command, Start):
                self._playing[lane] = command.task.name
        shares = [
            {lane: commands[lane] for lane in commands if lane % self._count == own} for own in range(self._count)
        ]
        busy = [index for index, share in enumerate(shares) if share]
        for index in busy:
            try:
                self._workers[index][1].send(shares[index])
            except (BrokenPipeError, OSError) as error:
                raise self._died(index) from error
        results: dict[int, Started | Acted] = {}
        for index in busy:
            try:
                failed, values = self._workers[index][1].recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._died(index) from error
            if failed:
                raise values
            results |= values
        return results

    def close(self) -> None:
        """Ends the workers."""
        for process, connection in self._workers:
            connection.close()
            process.terminate()
            process.join()
        self._workers = []

    def _died(self, index: int) -> WorkerError:
        process, _ = self._workers[index]
        process.join(timeout=5)
        names = sorted({name for name in self._playing[index :: self._count] if name})
        return WorkerError(
            f"the process that played {', '.join(names)} died (exit code {process.exitcode}); run the same command again"
        )


def _serve(connection: Connection) -> None:
    """A worker's loop: commands of its lanes in, (failed, results or exception) out."""
    playing: dict[int, tuple[Task, Any]] = {}
    while True:
        commands: dict[int, Start | Act] = connection.recv()
        results: dict[int, Started | Acted] = {}
        name = ""
        try:
            for lane, command in commands.items():
                name = command.task.name if isinstance(command, Start) else playing[lane][0].name
                results[lane] = _carry_out(playing, lane, command)
            connection.send((False, results))
        except Exception as error:
            connection.send((True, WorkerError(f"{name} failed ({type(error).__name__}: {error})")))


def _carry_out(playing: dict[int, tuple[Task, Any]], lane: int, command: Start | Act) -> Started | Acted:
    if isinstance(command, Act):
        observation, reward, terminated, truncated, info = playing[lane][1].step(command.action)
        plain = {key: value for key, value in info.items() if isinstance(value, bool | int | float | str | np.generic)}
        return Acted(observation, float(reward), bool(terminated or truncated), plain)
    if lane not in playing or playing[lane][0] != command.task:
        if lane in playing:
            playing.pop(lane)[1].close()
        playing[lane] = (command.task, command.task.make())
    observation, info = playing[lane][1].reset(seed=command.seed)
    return Started(observation, info["instruction"])
