"""A small server in a thread, and the requests of its tests."""

import base64
import contextlib
import http.client
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from generalist.serve.server import Server
from generalist.serve.settings import Settings

TOKEN = "0123456789abcdef"


@contextlib.contextmanager
def running(model: Any, **settings: Any) -> Iterator[tuple[Server, int]]:
    """A server with few, small lanes, and its port; it ends with the block."""
    usual = {"lanes": 3, "sessions": 2, "pieces": (8, 32), "prefix": 32, "grace": 60.0, "port": 0}
    server = Server(model, Settings(**(usual | settings)), lambda line: None)
    port: list[int] = []
    listens, ended = threading.Event(), []

    def ready(number: int) -> None:
        port.append(number)
        listens.set()

    thread = threading.Thread(target=lambda: ended.append(server.run(ready)))
    thread.start()
    assert listens.wait(60)
    try:
        yield server, port[0]
    finally:
        server.shut_down()
        thread.join(90)
        assert ended == [True], "the server ended, and with it every answer"


def asked(
    port: int, path: str, body: Any = None, *, headers: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, Any]:
    """The status and the JSON (or text) of a response.

    Args:
        body: JSON values, or bytes.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, content, headers or {})
        response = connection.getresponse()
        text = response.read().decode()
        kind = response.headers.get("content-type", "")
        return response.status, json.loads(text) if kind.startswith("application/json") else text
    finally:
        connection.close()


def chat(messages: Any, **settings: Any) -> dict[str, Any]:
    """A request whose text is the likeliest one."""
    return {"model": "debug", "messages": messages, "temperature": 0} | settings


def user(*content: Any) -> dict[str, Any]:
    """A user's message of texts and images."""
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": uri(part)}}
        for part in content
    ]
    return {"role": "user", "content": parts}


def uri(image: np.ndarray) -> str:
    """An image as a data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def picture(seed: int) -> np.ndarray:
    """Pixels, uint8 (48, 40, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (48, 40, 3)).astype(np.uint8)


def events(text: str) -> list[Any]:
    """The JSON of a stream's events, without the mark of its end."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
