"""A session keeps what it was when a message is refused; lanes, the queue and the address; how a server's episodes end."""

import argparse
import asyncio
import http.client
import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from serving import asked, chat, running, user
from watched import TASK, with_task
from websockets.sync.client import connect

from generalist.cli import serve
from generalist.inference.generalist import Generalist
from generalist.serve.demonstrations import Teacher
from generalist.serve.guard import log_as_json
from generalist.serve.robot import Playing
from generalist.serve.robot_messages import observation
from generalist.serve.server import Server
from generalist.serve.sessions import Taken
from generalist.serve.settings import check_free

OTHER = "classic/test"
SEEN: dict[str, Any] = {"observation": [0, 0, 0, 0]}
LONG, HALF = "push " * 99, "\ud800"


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Generalist:
    return with_task(make_model("frame"))


@pytest.fixture(scope="module")
def server(model: Generalist) -> Iterator[tuple[Server, int]]:
    with running(model, lanes=1, queue=1) as found:
        yield found


def said(socket: Any, message: dict[str, Any]) -> str:
    """The error that answers a message; empty if there is none."""
    socket.send(json.dumps(message))
    return json.loads(socket.recv()).get("error", {}).get("message", "")


def robots(port: int, query: str = "") -> Any:
    return connect(f"ws://127.0.0.1:{port}/v1/realtime/robot/json{query}")


@pytest.mark.parametrize("prompt, error", [(LONG, "shorten it"), (HALF, "a lone surrogate")])
def test_a_refused_prompt_changes_nothing(server: tuple[Server, int], prompt: str, error: str) -> None:
    with robots(server[1], f"?layout={TASK}") as socket:
        socket.recv()
        assert error in said(socket, SEEN | {"prompt": prompt})
        assert said(socket, SEEN) == ""
        assert error in said(socket, SEEN | {"prompt": prompt}), "also when an episode is being played"
        assert error in said(socket, {"reset": True, "prompt": prompt})
        assert said(socket, SEEN) == ""


@pytest.mark.parametrize(
    "message, error",
    [
        ({"observation/state": [0, 0, 0, 0], "observation/speed": [1]}, "a message has observation/speed"),
        ({"observation/speed": [0, 0, 0, 0]}, "send it as observation, or as observation/state"),
        ({"observation": [0, 0, 0, 0], "observation/state": [0]}, "send one or the other"),
        ({"observation": {"state": [0, 0, 0, 0]}}, "must be an array, but has the parts state"),
    ],
)
def test_parts_that_a_layout_has_not_are_refused_by_name(
    server: tuple[Server, int], message: dict[str, Any], error: str
) -> None:
    with robots(server[1], f"?layout={TASK}") as socket:
        socket.recv()
        assert error in said(socket, message)
        assert said(socket, {"observation/state": [0, 0, 0, 0]}) == ""


def test_parts_of_maps_too() -> None:
    box = gym.spaces.Box(-1, 1, (2,), np.float32)
    space = gym.spaces.Dict({"hand": box, "seen": gym.spaces.Dict({"goal": box})})
    good = {"observation/hand": [0, 1], "observation/seen/goal": [1, 0]}
    assert observation(space, good)["seen"]["goal"].tolist() == [1, 0]
    with pytest.raises(
        ValueError, match="observation/seen/gaol, which this layout has not: it has observation/seen/goal"
    ):
        observation(space, good | {"observation/seen/gaol": [1, 0]})


def test_a_file_with_a_token_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for content, error in ((None, "No such file"), (b"\xff\xfe", "it is no text"), (b" ", "is empty")):
        file = tmp_path / "token"
        if content is not None:
            file.write_bytes(content)
        parser = argparse.ArgumentParser()
        serve.add_arguments(parser)
        with pytest.raises(ValueError, match=error) as found:
            serve.settings_of(parser.parse_args(["--token-file", str(file)]))
        assert str(file) in str(found.value) and "\n" not in str(found.value)


def test_a_refused_layout_changes_nothing(server: tuple[Server, int]) -> None:
    with robots(server[1], f"?layout={TASK}") as socket:
        socket.recv()
        for layout in (OTHER, "none"):
            assert f"this session plays {TASK}" in said(socket, SEEN | {"layout": layout})
            assert said(socket, SEEN) == ""
        assert said(socket, SEEN | {"layout": TASK}) == ""
    with robots(server[1]) as socket:
        socket.recv()
        assert "no layout 'none'" in said(socket, SEEN | {"layout": "none"})
        assert "which layout?" in said(socket, SEEN)
        assert "the observation" in said(socket, SEEN | {"layout": OTHER}), "which takes three numbers"
        assert "which layout?" in said(socket, SEEN)
        assert said(socket, SEEN | {"layout": TASK}) == ""
        assert f"this session plays {TASK}" in said(socket, SEEN | {"layout": OTHER})
        assert said(socket, SEEN) == ""


def test_a_newcomer_waits_briefly_for_a_lane(server: tuple[Server, int]) -> None:
    engine = server[0].engine
    teacher = Teacher(engine, 32)

    async def come() -> None:
        held = [Playing(engine, teacher) for _ in range(2)]
        for one in held:
            await one.open(TASK)
        newcomer = Playing(engine, teacher)
        with pytest.raises(Taken, match="all 2 lanes"):
            await newcomer.open(TASK)
        coming = asyncio.create_task(newcomer.open(TASK))
        await asyncio.sleep(0)  # it has found all lanes taken
        held[0].close()
        await coming
        for one in (held[1], newcomer):
            one.close()

    asyncio.run(come())


def test_more_texts_than_can_ever_wait(server: tuple[Server, int]) -> None:
    messages = [user("push")]
    status, found = asked(server[1], "/v1/chat/completions", chat(messages, n=3, max_tokens=2))
    assert (status, found["error"]["param"]) == (400, "n") and "2 can be written or wait" in found["error"]["message"]
    assert asked(server[1], "/v1/chat/completions", chat(messages, n=2, max_tokens=2))[0] == 200


def test_a_server_that_stops_says_so_to_who_watches(model: Generalist) -> None:
    with running(model, lanes=1, queue=1) as (server, port):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        client.request("POST", "/v1/play", json.dumps({"task": TASK}))
        response = client.getresponse()
        assert "begin" in json.loads(response.readline().removeprefix(b"data: "))
        server.shut_down()
        *_, last, done, rest = response.read().decode().split("\n\n")
        assert json.loads(last.removeprefix("data: ")) == {"stopped": "the server is stopping"}
        assert (done, rest) == ("data: [DONE]", "")
        client.close()


def test_a_taken_port_is_told_before_anything_is_loaded() -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        given = parser.parse_args(["--port", str(port), "--weights", "nowhere"])
        with pytest.raises(OSError, match=f"port {port} at 127.0.0.1 is taken: name another with --port"):
            serve.run(given, [], Console())
    check_free("127.0.0.1", port)
    check_free("localhost", 0)


def test_unexpected_errors_are_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in ("generalist.serve", "uvicorn")]
    before = [(one, one.handlers[:], one.level, one.propagate) for one in loggers]
    try:
        log_as_json()
        try:
            raise RuntimeError("broken")
        except RuntimeError as error:  # as uvicorn tells what a route raised
            logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    finally:
        for one, handlers, level, propagate in before:
            one.handlers[:], one.propagate = handlers, propagate
            one.setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["level"] == "error" and "RuntimeError: broken" in found["trace"]
