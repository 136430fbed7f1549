"""Many environments at once, spread over worker processes."""

from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from generalist.envs.task import Task
from generalist.envs.workers import WorkerError, start

Step = tuple[Any, float, bool, dict[str, Any]]
"""Observation, reward, whether the episode is over, info."""


class EnvPool:
    """One environment a *lane*, each with its task and seed; a worker owns every n-th lane and steps them in turn.

    Args:
        lanes: (task, seed) each.
        workers: processes at most.
    """

    def __init__(self, lanes: Sequence[tuple[Task, int]], workers: int):
        if not lanes:
            raise ValueError("an EnvPool needs at least one lane")
        self._lanes = list(lanes)
        count = max(1, min(workers, len(lanes)))
        # A worker's lanes, and with them its tasks, are neighbours in no order: work is even when long tasks stand together.
        self._owned = [list(range(index, len(lanes), count)) for index in range(count)]
        self._workers = [start(_serve, [self._lanes[lane] for lane in owned]) for owned in self._owned]

    def reset(self) -> tuple[list[Any], list[str]]:
        """Starts every lane's episode: observations and instructions."""
        self._send([("reset", None)] * len(self._workers))
        results = self._receive()
        return [observation for observation, _ in results], [instruction for _, instruction in results]

    def step(self, actions: Sequence[Any]) -> list[Step | None]:
        """Takes an action in every lane; None for a lane whose episode is over, and its result is None.

        Raises:
            WorkerError: a worker died or an environment failed; the message names the task.
        """
        if len(actions) != len(self._lanes):
            raise ValueError(f"{len(self._lanes)} lanes take as many actions, got {len(actions)}")
        self._send([("step", [actions[lane] for lane in owned]) for owned in self._owned])
        return self._receive()

    def close(self) -> None:
        """Ends the workers."""
        for process, connection in self._workers:
            connection.close()
            process.terminate()
            process.join()
        self._workers = []

    def _send(self, messages: Sequence[tuple[str, Any]]) -> None:
        for index, message in enumerate(messages):
            try:
                self._workers[index][1].send(message)
            except (BrokenPipeError, OSError) as error:
                raise self._died(index) from error

    def _receive(self) -> list[Any]:
        """Results in the order of the lanes."""
        results: list[Any] = [None] * len(self._lanes)
        for index, (_, connection) in enumerate(self._workers):
            try:
                failed, values = connection.recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._died(index) from error
            if failed:
                raise values
            for lane, value in zip(self._owned[index], values, strict=True):
                results[lane] = value
        return results

    def _died(self, index: int) -> WorkerError:
        process, _ = self._workers[index]
        process.join(timeout=5)
        names = sorted({self._lanes[lane][0].name for lane in self._owned[index]})
        return WorkerError(
            f"the process that played {', '.join(names)} died (exit code {process.exitcode}); run the same command again"
        )


def _serve(connection: Connection, lanes: Sequence[tuple[Task, int]]) -> None:
    """A worker's loop: (command, actions) in, (failed, results or exception) out."""
    envs: list[Any] = [None] * len(lanes)
    while True:
        command, actions = connection.recv()
        results: list[Any] = []
        lane = 0
        try:
            for lane, (task, seed) in enumerate(lanes):
                if command == "reset":
                    if envs[lane] is None:
                        envs[lane] = task.make()
                    observation, info = envs[lane].reset(seed=seed)
                    results.append((observation, info["instruction"]))
                else:
                    results.append(None if actions[lane] is None else _step(envs[lane], actions[lane]))
            connection.send((False, results))
        except Exception as error:
            connection.send((True, WorkerError(f"{lanes[lane][0].name} failed ({type(error).__name__}: {error})")))


def _step(env: Any, action: Any) -> Step:
    """One step; of the info only plain values cross to the other process."""
    observation, reward, terminated, truncated, info = env.step(action)
    plain = {key: value for key, value in info.items() if isinstance(value, bool | int | float | str | np.generic)}
    return observation, float(reward), bool(terminated or truncated), plain
