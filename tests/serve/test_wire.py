"""The client's connection: what the package's own server sends to it, with pings, in several frames, and at the end."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.server import ServerConnection, serve

from generalist.client import wire


@contextmanager
def server(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    """The address of a server in a thread."""
    with serve(handler, "127.0.0.1", 0, max_size=100, ping_interval=None) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}/path?layout=a"
        finally:
            running.shutdown()
            thread.join()


def test_messages_go_there_and_back_and_texts_stay_texts() -> None:
    def echo(socket: ServerConnection) -> None:
        assert socket.request is not None
        socket.send(f"{socket.request.path} {socket.request.headers['Authorization']}")
        socket.send([b"in ", b"three ", b"frames"])
        for message in socket:
            socket.send(message)

    with server(echo) as address, wire.opened(address, {"Authorization": "Bearer a"}, 1 << 20) as one:
        assert one.recv(10) == "/path?layout=a Bearer a"
        assert one.recv(10) == b"in three frames"
        one.send(b"\0\1")
        assert one.recv(10) == b"\0\1"
        with pytest.raises(TimeoutError):
            one.recv(0.01)
        one.send(b"later")
        assert one.recv(10) == b"later"


def test_pings_are_answered_while_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LOOKS", 0.01)
    answered = threading.Event()

    def pinging(socket: ServerConnection) -> None:
        if socket.ping().wait(10):
            answered.set()
        socket.send("after the ping")
        socket.recv()

    with server(pinging) as address, wire.opened(address, {}, 1 << 20) as one:
        assert answered.wait(10)
        time.sleep(0.05)  # what comes meanwhile is kept
        assert one.recv(10) == "after the ping"


def test_an_end_is_told_with_its_reason() -> None:
    late = server(lambda socket: socket.close(1013, "try again later"))
    with late as address, wire.opened(address, {}, 1 << 20) as one:
        for _ in range(2):
            with pytest.raises(ConnectionClosedError, match="try again later"):
                one.recv(10)
        with pytest.raises(ConnectionClosedError):
            one.send(b"more")
    done = server(lambda socket: socket.close())
    with done as address, wire.opened(address, {}, 1 << 20) as one, pytest.raises(ConnectionClosedOK):
        one.recv(10)


def test_what_is_too_large_and_who_refuses_are_told() -> None:
    large = server(lambda socket: socket.send(b"\0" * 100))
    with large as address, wire.opened(address, {}, 99) as one, pytest.raises(ConnectionClosedError, match="1009"):
        one.recv(10)
    twice = {"Sec-WebSocket-Version": "1"}  # a header that is there already, which no server takes
    with server(lambda socket: None) as address, pytest.raises(InvalidStatus, match="400"):
        wire.Direct(address, twice, 99)
    with pytest.raises(OSError):
        wire.Direct(address, {}, 99)
