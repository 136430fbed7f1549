"""Processes that play environments or make batches: started light, ended with their parent, and named when they fail."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

CONTEXT = multiprocessing.get_context("spawn")
"""A fork would copy jax's and the simulators' threads in an unknown state."""


class WorkerError(RuntimeError):
    """A worker process died or a job failed in it; the message is one line."""


def start(target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Starts `target(connection, *arguments)` in a new process; returns it and the other end of the connection."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_shielded, args=(target, theirs, *arguments), daemon=True)
    with _without_main():
        process.start()
    theirs.close()
    return process, ours


def shared_bytes(count: int) -> Any:
    """Zeroed memory that a process started with it as an argument shares; a buffer of so many bytes."""
    return CONTEXT.RawArray("B", count)


def _shielded(target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    """Runs in the worker: Ctrl-C is the parent's business, and a parent that is gone ends the worker quietly."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        target(connection, *arguments)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keeps a starting worker from importing the main script, which would bring the whole of jax into each."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    main.__spec__ = None
    vars(main).pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update(hidden)


def is_running(process: str) -> bool:
    """Whether there is a process of that number on this machine."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(function: Callable[[Any], Any], jobs: Sequence[Any], *, workers: int) -> Iterator[tuple[Any, Any]]:
    """Runs `function(job)` for every job in worker processes; yields (job, result) as they are done.

    Args:
        function: a function of a module, with a picklable result.
        jobs: picklable; `str(job)` names one in errors.
        workers: processes at most.

    Raises:
        WorkerError: a worker died.
        Exception: what `function` raised.
    """
    waiting = list(reversed(jobs))
    connections: dict[Connection, tuple[BaseProcess, Any]] = {}
    try:
        for _ in range(min(workers, len(jobs))):
            process, connection = start(_serve, function)
            job = waiting.pop()
            connections[connection] = (process, job)
            connection.send(job)
        while connections:
            for ready in wait(list(connections)):
                connection = cast(Connection, ready)
                process, job = connections[connection]
                yield job, receive(connection, process, f"played {job}")
                if waiting:
                    connections[connection] = (process, waiting.pop())
                    connection.send(connections[connection][1])
                else:
                    connection.close()
                    process.join()
                    del connections[connection]
    finally:
        for process, _ in connections.values():
            process.terminate()
            process.join()


def receive(
    connection: Connection, process: BaseProcess, doing: str, remedy: str = "run the same command again"
) -> Any:
    """One result of a process that answers (failed, result or exception).

    Raises:
        WorkerError: the process died; the message names what it was `doing` and the remedy.
        Exception: what was raised in it.
    """
    try:
        failed, value = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join()
        raise WorkerError(f"the process that {doing} died (exit code {process.exitcode}); {remedy}") from error
    if failed:
        raise value
    return value


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's loop: jobs in, (failed, result or exception) out."""
    while True:
        job = connection.recv()
        try:
            answer = (False, function(job))
        except Exception as error:
            answer = (True, error)
        connection.send(answer)
