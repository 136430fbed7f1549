"""A robot's side of the server: observations go there, actions come back. Neither JAX nor the model is loaded."""

import contextlib
import time
from collections.abc import Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from generalist.client.codec import pack, unpack

PATH = "/v1/realtime/robot/openpi"


class ServerError(RuntimeError):
    """The server refused a message; the text says why."""


class RobotClient:
    """A session with a server: one agent that plays one episode after the other.

        with RobotClient("ws://127.0.0.1:8000", layout="metaworld/reach") as robot:
            robot.reset(prompt="reach the goal")
            action = robot.act(observation)

    Args:
        server: its address, `ws://host:port` or `wss://host:port`.
        layout: the name of the observations and actions that the weights know.
        token: what the server demands, if it does.
        patience: seconds that an answer may take.

    Raises:
        ImportError: the package websockets or msgpack is missing.
        OSError: there is no such server, or it refuses the connection.
    """

    def __init__(self, server: str, *, layout: str | None = None, token: str | None = None, patience: float = 60.0):
        for package in ("websockets", "msgpack"):
            if find_spec(package) is None:
                raise ImportError(f"a client needs {package}: pip install 'generalist[serve]'", name=package)
        from generalist.client.wire import opened

        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        query = f"?{urlencode({'layout': layout})}" if layout is not None else ""
        self._patience = patience
        address = server.rstrip("/") + PATH + query
        self._ends = contextlib.ExitStack()
        self._wire = self._ends.enter_context(opened(address, headers, 1 << 24))
        try:
            self.metadata: dict[str, Any] = self._received()
        except BaseException:
            self.close()
            raise
        """What the server says of itself: the model, and the layout's spaces as JSON values."""
        self._begin: dict[str, Any] = {}
        self.timing: dict[str, float] = {}
        """Milliseconds of the last step: those of the server, and `round_trip_ms`."""
        self._sent = 0.0

    def reset(self, *, prompt: str = "", seed: int = 0, demonstration: Any = None) -> None:
        """The next observation begins an episode.

        Args:
            prompt: the instruction.
            seed: of what is sampled.
            demonstration: what is shown before the episode: `{"observations": ..., "actions": ...}`, the name of a task that its
                expert then plays on the server, or a list of such; None: nothing.
        """
        self._begin = {"reset": True, "prompt": prompt, "seed": seed}
        if demonstration is not None:
            self._begin["demonstration"] = demonstration

    def act(self, observation: Any) -> Any:
        """The action for an observation.

        Raises:
            ServerError: the server refused the observation.
        """
        self.send(observation)
        return self.receive()

    def send(self, observation: Any) -> None:
        """Sends an observation; `receive` waits for its action. So one program can play many sessions at once."""
        self._sent = time.perf_counter()
        self._wire.send(pack({"observation": observation} | self._begin))
        self._begin = {}

    def receive(self) -> Any:
        """The action for the observation that was sent.

        Raises:
            ServerError: the server refused the observation.
        """
        answer = self._received()
        elapsed = 1000 * (time.perf_counter() - self._sent)
        self.timing = answer.get("server_timing", {}) | {"round_trip_ms": elapsed}
        return _first(answer["actions"])

    def close(self) -> None:
        """Ends the session."""
        self._ends.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _received(self) -> dict[str, Any]:
        content = self._wire.recv(timeout=self._patience)
        if isinstance(content, str):
            raise ServerError(content)
        return unpack(content)


def _first(chunk: Any) -> Any:
    """The first action of a chunk."""
    return {name: _first(part) for name, part in chunk.items()} if isinstance(chunk, Mapping) else chunk[0]
