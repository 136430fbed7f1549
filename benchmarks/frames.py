"""Random websocket frames for a server's robots, in both protocols: each must be answered, or close its socket, at once.

    python benchmarks/frames.py PORT [--count 5000] [--layout fetch/reach]

Prints what became of them, and fails if a frame had neither an answer nor an end within five seconds.
"""

import argparse
import base64
import json
import os
import socket
import statistics
import struct
import sys
import time
from collections import Counter
from urllib.parse import quote

import numpy as np

ROUTES = ("/v1/realtime/robot/openpi", "/v1/realtime/robot/json")
CONTINUED, TEXT, BYTES, CLOSE, PING = 0, 1, 2, 8, 9
PATIENCE = 5.0  # seconds


class Connection:
    """A websocket that checks nothing of what it sends (RFC 6455)."""

    def __init__(self, port: int, path: str):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.send(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._file = self._socket.makefile("rb")
        while self._file.readline() not in (b"\r\n", b""):
            pass

    def send(self, content: bytes) -> None:
        """Sends bytes as they are."""
        self._socket.sendall(content)

    def receive(self) -> int | None:
        """The opcode of the next frame; None: the socket was closed.

        Raises:
            TimeoutError: nothing came.
        """
        try:
            head = self._file.read(2)
            if len(head) < 2 or head[0] & 15 == CLOSE:
                return None
            size = head[1] & 127
            if size > 125:
                size = struct.unpack("!H" if size == 126 else "!Q", self._file.read(2 if size == 126 else 8))[0]
            self._file.read(size)
            return head[0] & 15
        except (ConnectionError, ValueError):
            return None

    def close(self) -> None:
        """Ends the connection without a word."""
        self._file.close()
        self._socket.close()


def frame(
    opcode: int, payload: bytes, *, last: bool = True, reserved: int = 0, masked: bool = True, said: int | None = None
) -> bytes:
    """A frame.

    Args:
        said: the length that it declares; None: the true one.
    """
    size = len(payload) if said is None else said
    first = bytes([128 * last | reserved << 4 | opcode])
    mask = 128 * masked
    if size < 126:
        head = first + bytes([mask | size])
    elif size < 1 << 16:
        head = first + bytes([mask | 126]) + struct.pack("!H", size)
    else:
        head = first + bytes([mask | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + payload
    key = np.frombuffer(os.urandom(4), np.uint8)
    body = np.frombuffer(payload, np.uint8) ^ np.resize(key, len(payload))
    return head + key.tobytes() + body.astype(np.uint8).tobytes()


def payload(rng: np.random.Generator, number: int) -> bytes:
    """What is wrong with a message: nested, torn, of other types, of no types."""
    good = json.dumps({"observation": [0.0, 1.0], "prompt": "go", "seed": 1}).encode()
    packed = b"\x83\xabobservation\x92\xca\x00\x00\x00\x00\x01\xa6prompt\xa2go\xa4seed\x01"
    nested = int(rng.integers(1, 20_000))
    several = (
        b"\x91" * nested,  # lists in lists in lists, in msgpack
        b"\x81\xa1a" * nested,
        b"[" * nested,
        b'{"a":' * nested,
        b"\xdf\xff\xff\xff\xff",  # a map of four billion
        b"\xdd\xff\xff\xff\xff" + b"\x01" * 100,
        b"\xc6\xff\xff\xff\xff",  # four gigabytes
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xff\xfe\xfd",  # no UTF-8
        b'{"observation": "' + b"\xc3" * 9,
        b"\x80\x04\x95cposix\nsystem\n",  # a pickle
        b'{"__ndarray__": true, "data": "AAAA", "dtype": "|O", "shape": [1000000000000]}',
        b"",
        rng.integers(0, 256, int(rng.integers(1, 400)), np.uint8).tobytes(),
    )
    if number % 3:
        return several[int(rng.integers(len(several)))]
    changed = bytearray(good if number % 2 else packed)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(changed)))
        changed[at : at + int(rng.integers(0, 3))] = rng.integers(0, 256, int(rng.integers(0, 3)), np.uint8).tobytes()
    return bytes(changed)


def trial(rng: np.random.Generator, number: int) -> tuple[bytes, bool]:
    """Frames to send, and whether a whole message is among them, which must be answered."""
    content, kind = payload(rng, number), int(rng.choice([TEXT, BYTES]))
    wrong = number % 8
    if wrong == 0:  # an opcode that there is not
        return frame(int(rng.choice([3, 4, 5, 6, 7, 11, 12, 13, 14, 15])), content), False
    if wrong == 1:  # a bit that means nothing
        return frame(kind, content, reserved=int(rng.integers(1, 8))), False
    if wrong == 2:  # not masked, as only servers may
        return frame(kind, content, masked=False), False
    if wrong == 3:  # far more than it may have
        return frame(kind, content[:100], said=int(rng.choice([9 << 20, 1 << 40, (1 << 63) - 1]))), False
    if wrong == 4:  # of a control frame: too long, or in parts
        return frame(int(rng.choice([CLOSE, PING, 10])), content[:60] * 3, last=bool(rng.integers(2))), False
    if wrong == 5:  # the end of nothing, or a message within another
        begun = frame(kind, content, last=False) if rng.integers(2) else b""
        return begun + frame(kind if begun else CONTINUED, content), False
    if wrong == 6:  # a whole message in parts
        middle = len(content) // 2
        return frame(kind, content[:middle], last=False) + frame(CONTINUED, content[middle:]), True
    return frame(kind, content), True


def fuzz(port: int, count: int, layout: str | None = None, seed: int = 0) -> tuple[Counter[str], list[float]]:
    """Sends frames; returns what became of them, and the milliseconds until then.

    Raises:
        TimeoutError: a frame had no consequence.
    """
    rng, ends, times = np.random.default_rng(seed), Counter[str](), list[float]()
    query, connections = f"?layout={quote(layout)}" if layout else "", dict[str, Connection]()
    for number in range(count):
        route = ROUTES[number // 8 % 2]
        if route not in connections:
            connections[route] = Connection(port, route + query)
            if connections[route].receive() != (BYTES if route == ROUTES[0] else TEXT):
                connections.pop(route).close()  # the agent before it is just leaving
                time.sleep(0.01)
                continue
        connection = connections[route]
        content, answered = trial(rng, number)
        started = time.perf_counter()
        try:
            # Behind a frame that needs no answer a ping, whose answer shows that it was read.
            connection.send(content + (b"" if answered else frame(PING, b"?")))
            found = connection.receive()
        except ConnectionError:
            found = None
        times.append(1000 * (time.perf_counter() - started))
        ends["closed" if found is None else "answered" if answered else "went on"] += 1
        if found is None or not answered:
            connections.pop(route).close()
    for connection in connections.values():
        connection.close()
    return ends, times


def main() -> int:
    """Runs the trials and prints what became of them; exit status 1 if one had no consequence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=5000, help="frames (default 5000)")
    parser.add_argument("--layout", help="layout of the agents (default: none is asked for)")
    given = parser.parse_args()
    try:
        ends, times = fuzz(given.port, given.count, given.layout)
    except TimeoutError:
        print("a frame had neither an answer nor an end")
        return 1
    times.sort()
    told = ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))
    slow = f"p50 {statistics.median(times):.1f}, p99 {times[len(times) * 99 // 100]:.1f}, max {times[-1]:.0f} ms"
    print(f"{sum(ends.values())} fuzzed frames: {told}; {slow}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
