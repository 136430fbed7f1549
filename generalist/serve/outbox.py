"""What the engine has for clients, who wait in event loops: all of a step is handed over at once.

Each call into a loop of another thread wakes that thread, which then wants the interpreter: one by one, the answers of sixteen
agents took longer to hand over than to compute.
"""

import asyncio
from collections.abc import Callable
from typing import Any


class Outbox:
    """Calls that are to be made in event loops. Used by the engine's thread alone."""

    def __init__(self) -> None:
        self._calls: dict[asyncio.AbstractEventLoop, list[Callable[[], Any]]] = {}

    def put(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
        """Keeps a call for a loop."""
        self._calls.setdefault(loop, []).append(call)

    def flush(self) -> None:
        """Hands over what was put, in its order."""
        for loop, calls in self._calls.items():
            # Of a server that is ending at once, nobody waits any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_all, calls)
        self._calls = {}


def _all(calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        call()
