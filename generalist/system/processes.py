"""Worker processes that run environments or make batches: light to start, ended with their parent, named when they fail."""

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


def start(target: Callable[..., None], *arguments: Any, daemon: bool = True) -> tuple[BaseProcess, Connection]:
    """Starts `target(connection, *arguments)` in a new process. Returns the process and the other end of the connection.

    Args:
        daemon: the process is ended at the exit of this one, and cannot have children; otherwise the exit waits for it.
    """
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_shielded, args=(target, theirs, *arguments), daemon=daemon)
    with _without_main():
        process.start()
    # Only the worker must hold its end: when it dies, our `recv` then raises EOFError instead of waiting for ever.
    theirs.close()
    return process, ours


def shared_bytes(count: int) -> Any:
    """A zeroed buffer of `count` bytes, shared with a process that is started with it as an argument."""
    return CONTEXT.RawArray("B", count)


def _shielded(target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    """Runs in the worker: Ctrl-C is left to the parent, and a parent that is gone ends the worker quietly."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        target(connection, *arguments)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keeps a starting worker from importing the main script, which would load all of JAX into each of them."""
    main = sys.modules["__main__"]
    # "spawn" reads these two to find the main module; without them it imports none.
    hidden: dict[str, Any] = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    main.__spec__ = None
    vars(main).pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update(hidden)


def is_running(process: str) -> bool:
    """Whether there is a process of that number on this machine."""
    # Signal 0 is not sent: it only checks that the process exists.
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def cores() -> int:
    """CPU cores that this process may use: fewer than the machine's in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(function: Callable[[Any], Any], jobs: Sequence[Any], *, workers: int) -> Iterator[tuple[Any, Any]]:
    """Runs `function(job)` for every job in worker processes; yields (job, result) in the order of completion.

    Args:
        function: a function of a module, with a picklable result.
        jobs: picklable; `str(job)` names one in errors.
        workers: maximum number of processes.

    Raises:
        WorkerError: a worker died.
        Exception: what `function` raised.
    """
    # Taken from the end, so that jobs start in their order.
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
        # Reached after an error or when the caller stops iterating: no worker may outlive the call.
        for process, _ in connections.values():
            process.terminate()
            process.join()


def receive(
    connection: Connection, process: BaseProcess, doing: str, remedy: str = "run the same command again"
) -> Any:
    """One result of a process that answers (failed, result or exception).

    Raises:
        WorkerError: the process died; the message names what it was `doing`, its exit code and the remedy.
        Exception: what the worker raised.
    """
    # EOFError means that the other end closed: the process is dead, and its exit code says how.
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
        except Exception as error:  # sent to the parent, which raises it
            answer = (True, error)
        connection.send(answer)
