"""What hostile clients send: each is refused at once, for little memory, and others are served meanwhile."""

import base64
import contextlib
import http.server
import itertools
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import asked, chat, picture, running, uri, user

from generalist.serve.errors import ApiError
from generalist.serve.remote_images import fetch, is_public

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "push"}]


@pytest.fixture(scope="module")
def port(make_model: Callable[..., Any]) -> Iterator[int]:
    with running(make_model("frame"), sessions=1, lanes=2) as (_, number):
        yield number


def png(width: int, height: int) -> bytes:
    """A PNG of one colour: few bytes, whatever its size."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = b"\0" * (width // 8 + 2)
    pixels = b"".join(packer.compress(row) for _ in range(min(height, 60_000))) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", pixels) + part(b"IEND", b"")


def image_url(content: bytes, kind: str = "png") -> list[Any]:
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def linked(url: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


BOMB = png(50_000, 50_000)
CASES: dict[str, tuple[int, Any]] = {
    "no JSON": (400, b"{"),
    "not UTF-8": (400, b'{"model": "\xff"}'),
    "a list": (400, b"[]"),
    "nested": (400, b"[" * 5_000_000),
    "nested in a field": (400, chat([{"role": "user", "content": json.loads("[" * 30 + "]" * 30)}])),
    "many values": (400, b"[" + b"[]," * 2_000_000 + b"[]]"),
    "a long number": (400, b'{"model": ' + b"9" * 100_000 + b"}"),
    "NaN": (400, b'{"temperature": NaN}'),
    "a large body": (413, b" " * (9 << 20)),
    "an unknown field": (400, chat(HELLO, template="{{ 1 }}")),
    "a path as the model": (404, chat(HELLO, model="/etc/passwd")),
    "no model": (400, {"messages": HELLO}),
    "tools": (400, chat(HELLO, tools=[{"type": "function", "function": {"name": "f"}}])),
    "a tool's message": (400, chat([{"role": "tool", "content": "x"}])),
    "no messages": (400, chat([])),
    "many messages": (400, chat(HELLO * 1000)),
    "many letters": (400, chat([{"role": "user", "content": "a" * 200_000}])),
    "a long prompt": (400, chat([{"role": "user", "content": "push " * 20_000}])),
    "the assistant's last word": (400, chat([*HELLO, {"role": "assistant", "content": "x"}])),
    "a surrogate": (400, b'{"model": "debug", "messages": [{"role": "user", "content": "\\ud800"}]}'),
    "a surrogate as a field": (400, b'{"\\ud800": 1}'),
    "a surrogate as a field of a message": (400, b'{"model": "debug", "messages": [{"role": "user", "\\ud800": 1}]}'),
    "many choices": (400, chat(HELLO, n=10**9)),
    "half a choice": (400, chat(HELLO, n=1.5)),
    "true choices": (400, chat(HELLO, n=True)),
    "many stops": (400, chat(HELLO, stop=["a"] * 5)),
    "long stops": (400, chat(HELLO, stop=["a" * 10_000])),
    "an empty stop": (400, chat(HELLO, stop="")),
    "temperature": (400, chat(HELLO, temperature=1e9)),
    "top_p": (400, chat(HELLO, top_p=-1)),
    "seed": (400, chat(HELLO, seed=10**400)),
    "tokens": (400, chat(HELLO, max_tokens=0)),
    "logprobs": (400, chat(HELLO, top_logprobs=21, logprobs=True)),
    "a bomb": (400, chat(image_url(BOMB))),
    "a bomb of many": (400, chat([user(*[picture(1)] * 9)])),
    "a large image": (400, chat(image_url(b"\x89PNG" + b"\0" * (5 << 20)))),
    "no image": (400, chat(image_url(b"hello"))),
    "a broken image": (400, chat(image_url(b"\x89PNG\r\n\x1a\n" + b"\0" * 99))),
    "another kind": (400, chat(image_url(b"%!PS-Adobe", "eps"))),
    "no Base64": (400, chat(linked("data:image/png;base64,%%%%"))),
    "a file": (400, chat(linked("file:///etc/passwd"))),
    "an address": (400, chat(linked("http://169.254.169.254/latest/meta-data"))),
    "no address": (400, chat(linked(3))),
    "an image of the system": (
        400,
        chat([{"role": "system", "content": linked(uri(picture(1)))[0]["content"]}, *HELLO]),
    ),
}


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused(port: int, case: str) -> None:
    status, body = CASES[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    before, started = resident(), time.monotonic()
    found, answer = asked(port, CHAT, content)
    elapsed = time.monotonic() - started
    assert found == status, answer
    assert (
        answer["error"]["message"]
        and "Traceback" not in json.dumps(answer)
        and "site-packages" not in json.dumps(answer)
    )
    assert elapsed < 2, "a machine that is busy with other tests may take longer than the 100 ms of an idle one"
    # The test's own copies of a large body are in this process too.
    assert resident() - before < (64 << 20) + 4 * len(content)


def test_others_are_served(port: int) -> None:
    assert asked(port, CHAT, chat(HELLO, max_tokens=3))[0] == 200
    assert (
        asked(port, CHAT, chat([{"role": "user", "content": [{"type": "text", "text": "push"}]}], max_tokens=3))[0]
        == 200
    )


def test_headers_and_routes(port: int) -> None:
    assert asked(port, CHAT)[0] == 405
    assert asked(port, "/../../etc/passwd")[0] == 404
    assert asked(port, CHAT, chat(HELLO), headers={"Content-Encoding": "gzip"})[0] == 415
    assert asked(port, CHAT, b"{}", headers={"Content-Length": "99999999999"})[0] == 413
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n")
        assert plain.recv(100).split()[1] in (b"400", b"431")
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "a" * 300):
        assert asked(port, "/healthz", headers={"Host": host})[0] in (400, 403)


@pytest.mark.slow
def test_random_changes_are_refused_or_answered(port: int) -> None:
    good = json.dumps(chat([user("push")], max_tokens=1, stop=["x"], n=1)).encode()
    rng = np.random.default_rng(0)
    statuses = set()
    for _ in range(150):
        body = bytearray(good)
        for _ in range(int(rng.integers(1, 6))):
            at = int(rng.integers(len(body)))
            body[at : at + int(rng.integers(0, 4))] = bytes(
                rng.integers(0, 256, int(rng.integers(0, 4))).astype(np.uint8)
            )
        statuses.add(asked(port, CHAT, bytes(body))[0])
    assert statuses <= {200, 400, 404} and 400 in statuses


class Pages(http.server.BaseHTTPRequestHandler):
    """An image, redirects, and something endless."""

    def do_GET(self) -> None:
        path = self.path
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * (100 if path == "/small" else 1_000_000))

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Listener(http.server.ThreadingHTTPServer):
    """Counts who connects."""

    connections = 0

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()


@contextlib.contextmanager
def listening(address: str, port: int = 0) -> Iterator[Listener]:
    server = Listener((address, port), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def pages() -> Iterator[int]:
    with listening("127.0.0.1") as server:
        yield server.server_port


def test_images_come_from_listed_hosts_alone(pages: int) -> None:
    here = f"127.0.0.1:{pages}"
    hosts, local = (here,), lambda address: address == "127.0.0.1"
    assert fetch(f"http://{here}/small", "image", hosts, 1000, local) == b"x" * 100
    assert fetch(f"http://{here}/to//to//small", "image", hosts, 1000, local) == b"x" * 100
    for url, message in (
        (f"http://localhost:{pages}/small", "not fetched from there"),
        (f"http://user@{here}/small", "not fetched from there"),
        (f"ftp://{here}/small", "not fetched from there"),
        ("file:///etc/passwd", "not fetched from there"),
        (f"http://{here}/to/http://localhost:{pages}/small", "not fetched from there"),
        (f"http://{here}/to/http://169.254.169.254/", "not fetched from there"),
        (f"http://{here}/to/file:///etc/passwd", "not fetched from there"),
        (f"http://{here}/to//to//to//to//small", "redirects"),
        (f"http://{here}/large", "bytes"),
        (f"http://{here}:x/small", "cannot be fetched"),
    ):
        with pytest.raises(ApiError, match=message):
            fetch(url, "image", hosts, 1000, local)


def test_nobody_connects_to_an_address_in_here(monkeypatch: pytest.MonkeyPatch) -> None:
    # 127.0.0.2 stands for the public internet, and 127.0.0.1 for what is in here and must not be connected to.
    turns: dict[str, Iterator[str]] = {}

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        known = {
            "good.example": itertools.repeat("127.0.0.2"),
            "bad.example": itertools.repeat("127.0.0.1"),
            "first.example": itertools.chain(["127.0.0.2"], itertools.repeat("127.0.0.1")),
            "later.example": itertools.cycle(["127.0.0.1", "127.0.0.2"]),
        }
        address = next(turns.setdefault(host, known.get(host, itertools.repeat(host))))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    with listening("127.0.0.1") as inside, listening("127.0.0.2", inside.server_port) as outside:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        port = inside.server_port
        hosts = tuple(f"{name}.example" for name in ("good", "bad", "first", "later"))

        def tried(url: str) -> bytes | None:
            try:
                return fetch(
                    url, "image", tuple(f"{one}:{port}" for one in hosts), 1000, lambda one: one == "127.0.0.2"
                )
            except ApiError:
                return None

        assert tried(f"http://good.example:{port}/small") == b"x" * 100
        assert tried(f"http://first.example:{port}/small") == b"x" * 100, "it resolved to a public address"
        refused = [f"http://{name}.example:{port}/small" for name in ("bad", "first", "later", "other")]
        refused += [f"http://{address}:{port}/small" for address in ("127.0.0.1", "localhost", "2130706433", "[::1]")]
        refused += [f"http://good.example:{port}/to/{url}" for url in refused if "later" not in url]
        assert [tried(url) for url in refused] == [None] * len(refused)
        assert tried(f"http://later.example:{port}/to/http://later.example:{port}/small") is None
        assert inside.connections == 0 and outside.connections > 8


def test_a_listed_name_must_not_be_an_address_in_here(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A listed host whose name resolves to this machine, at once or only the second time (DNS rebinding).
    answers = iter(["93.184.216.34", "127.0.0.1"])

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    connected = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        connected.append(address[0])
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ApiError, match="cannot be fetched"):
        fetch("http://images.example/a.png", "image", ("images.example",), 1000)
    assert connected == ["93.184.216.34"], "the address that was checked, not another one"
    with pytest.raises(ApiError, match="not a public one"):
        fetch("http://images.example/a.png", "image", ("images.example",), 1000)
    assert len(connected) == 1


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "::ffff:127.0.0.1",
        "fe80::1%eth0",
        "fd00::1",
        "224.0.0.1",
    ],
)
def test_addresses_in_here_are_not_public(address: str) -> None:
    assert not is_public(address) and is_public("93.184.216.34") and is_public("2606:2800:220:1::1")


def test_an_image_of_any_declared_size_is_refused_by_its_pixels(port: int) -> None:
    for image in (png(3000, 3000), png(9000, 9000), BOMB):
        status, found = asked(port, "/v1/chat/completions", chat(image_url(image)))
        assert status == 400 and "pixels" in found["error"]["message"] and "4,000,000" in found["error"]["message"], (
            found
        )
