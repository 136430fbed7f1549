"""A websocket without a thread between the socket and whoever waits for a message.

The client of the package websockets hands every message from a thread that reads the socket to the one that waits for it. A robot
waits for each of its actions, so that is a change of threads per step, and a third of what a step costs the client. Here whoever
waits reads; a thread that looks from time to time keeps the connection alive while nobody does.
"""

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from urllib.request import getproxies, proxy_bypass

PATIENCE = 10.0
"""Seconds that opening a connection, or sending a message, may wait for the other side."""
CLOSED = 1.0
"""Seconds that the other side has to confirm the end."""
LOOKS = 5.0
"""Seconds between two looks at the socket while nobody waits for a message: pings are to be answered within 20 s."""
BLOCK = 1 << 16


class Wire(Protocol):
    """A connection: messages as bytes or texts."""

    def send(self, content: bytes) -> None:
        """Sends a message."""

    def recv(self, timeout: float) -> bytes | str:
        """The next message.

        Raises:
            TimeoutError: none came within `timeout` seconds.
            websockets.ConnectionClosed: the connection has ended.
        """

    def close(self) -> None:
        """Ends the connection."""


@contextlib.contextmanager
def opened(address: str, headers: Mapping[str, str], largest: int) -> Iterator[Wire]:
    """A connection to a websocket.

    Args:
        address: `ws://` or `wss://`.
        headers: of the request, besides those that every one has.
        largest: bytes of a message.

    Raises:
        OSError: there is no such server.
        websockets.InvalidHandshake: it refuses the connection.
    """
    from websockets.sync.client import connect
    from websockets.uri import parse_uri

    host = parse_uri(address).host
    if getproxies() and not proxy_bypass(host):
        # Proxies are what the package knows about. Nothing is compressed: a robot waits for each answer.
        with connect(address, compression=None, additional_headers=headers, max_size=largest) as through:
            yield through
        return
    wire = Direct(address, headers, largest)
    try:
        yield wire
    finally:
        wire.close()


class Direct:
    """A connection without a proxy; see `Wire`."""

    def __init__(self, address: str, headers: Mapping[str, str], largest: int):
        from websockets.client import ClientProtocol
        from websockets.protocol import State
        from websockets.uri import parse_uri

        uri, self._states = parse_uri(address), State
        self._protocol = ClientProtocol(uri, max_size=largest)
        self._parts: list[bytes] = []  # of a message that is not complete yet
        self._messages: list[bytes | str] = []
        self._is_text = False
        self._lock = threading.Lock()  # held by whoever reads or writes
        self._ended = threading.Event()
        self._socket = socket.create_connection((uri.host, uri.port), PATIENCE)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if uri.secure:
                self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=uri.host)
            request = self._protocol.connect()
            request.headers.update(headers)
            self._protocol.send_request(request)
            self._flush()
            while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
                self._read()
            if self._protocol.handshake_exc is not None:
                raise self._protocol.handshake_exc
        except BaseException:
            self._socket.close()
            raise
        threading.Thread(target=self._look, name="wire", daemon=True).start()

    def send(self, content: bytes) -> None:
        """See `Wire`."""
        with self._lock:
            self._check_open()
            self._socket.settimeout(PATIENCE)
            self._protocol.send_binary(content)
            self._flush()

    def recv(self, timeout: float) -> bytes | str:
        """See `Wire`."""
        until = time.monotonic() + timeout
        with self._lock:
            while not self._messages:
                self._check_open()
                self._socket.settimeout(max(until - time.monotonic(), 1e-3))
                self._read()
            return self._messages.pop(0)

    def close(self) -> None:
        """See `Wire`."""
        self._ended.set()
        with self._lock, contextlib.suppress(OSError):
            self._socket.settimeout(CLOSED)
            if self._protocol.state is self._states.OPEN:
                self._protocol.send_close(1000)
                self._flush()
            while self._protocol.state is not self._states.CLOSED:
                self._read()
        self._socket.close()

    def _check_open(self) -> None:
        # What closes is closed once the other side has closed the socket.
        while self._protocol.state is self._states.CLOSING:
            self._read()
        if self._protocol.state is self._states.CLOSED:
            raise self._protocol.close_exc

    def _read(self) -> None:
        """Waits for bytes, and takes and answers what they say.

        Raises:
            TimeoutError: none came.
        """
        from websockets.frames import Frame, Opcode

        try:
            content = self._socket.recv(BLOCK)
        except TimeoutError:
            raise
        except OSError:  # such as a reset
            content = b""
        self._protocol.receive_data(content) if content else self._protocol.receive_eof()
        self._flush()
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._took(event)

    def _took(self, frame: Any) -> None:
        """Keeps a frame of the package's, and the message that it completes."""
        from websockets.frames import Opcode

        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._parts.append(bytes(frame.data))
        if frame.fin:
            content, self._parts = b"".join(self._parts), []
            self._messages.append(content.decode() if self._is_text else content)

    def _flush(self) -> None:
        """Sends what is to be sent; an empty block is the end of it.

        Raises:
            TimeoutError: the other side takes nothing.
        """
        for block in self._protocol.data_to_send():
            try:
                self._socket.sendall(block) if block else self._socket.shutdown(socket.SHUT_WR)
            except TimeoutError:
                raise
            except OSError:
                return  # a side that is gone is found out by reading

    def _look(self) -> None:
        """Reads what has come while nobody waits for it, such as pings."""
        while not self._ended.wait(LOOKS):
            if not self._lock.acquire(blocking=False):
                continue  # somebody reads
            try:
                self._socket.settimeout(CLOSED)
                with contextlib.suppress(OSError):  # told to whoever reads next
                    while (
                        self._protocol.state is not self._states.CLOSED and select.select([self._socket], [], [], 0)[0]
                    ):
                        self._read()
            finally:
                self._lock.release()
