"""Episodes of experts, played in a process of their own: simulators keep no agent waiting, and an expert without an answer ends
with its process.

Dimension key: T steps.
"""

import dataclasses
import os
from multiprocessing.connection import Connection
from typing import Any

from generalist.envs.episodes import play_expert
from generalist.envs.registry import get
from generalist.system.processes import receive, start

SECONDS = 60.0
"""Seconds that an episode may take, with the environment's start."""
NICE = 10
"""Politeness of the process: steps of agents come first."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An expert's episode."""

    task: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Played:
    """T steps of an expert."""

    observations: list[Any]
    """Of the last steps."""
    actions: list[Any]
    """Of all steps."""


def played(wanted: Wanted, last: int) -> Played:
    """An expert's episode, as it is recorded without noise.

    Args:
        last: number of steps, from the end, whose observations are needed.

    Raises:
        ValueError: the expert gave up, or took too long.
        MissingExtra: the environment's package is not installed.
        WorkerError: the process died.
    """
    process, connection = start(_play, wanted, last)
    try:
        if not connection.poll(SECONDS):
            raise ValueError(f"the expert of {wanted.task} took more than {SECONDS:g} s in episode {wanted.seed}")
        found = receive(connection, process, f"played {wanted.task}", "try again")
    finally:
        process.terminate()
        process.join()
        connection.close()
    if found is None:
        raise ValueError(f"the expert of {wanted.task} gave up in episode {wanted.seed}: choose another seed")
    return found


def _play(connection: Connection, wanted: Wanted, last: int) -> None:
    """The process: one episode, as (failed, result or exception)."""
    os.nice(NICE)
    try:
        task = get(wanted.task)
        episode = play_expert(task, wanted.seed, noisy=False, max_steps=task.record_steps)
        found = None if episode is None else Played(episode.observations[-last:], episode.actions)
        connection.send((False, found))
    except Exception as error:  # sent to the server, which raises it
        connection.send((True, error))
