"""The server as its clients see it: chats as OpenAI's, agents as openpi's."""

import concurrent.futures
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from serving import TOKEN, asked, chat, events, picture, running, user
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from generalist.client import RobotClient, ServerError
from generalist.client.codec import from_json, pack, to_json, unpack
from generalist.inference.policy import ControlPolicy
from generalist.serve.server import Server, lanes_that_fit
from generalist.serve.settings import Settings
from generalist.tokenizers.sequence import CHUNK_END

LAYOUT = "classic/test"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "push the red"}]


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Any:
    return make_model("frame+encoder")


@pytest.fixture(scope="module")
def server(model: Any) -> Iterator[tuple[Server, int]]:
    with running(model) as found:
        yield found


@pytest.fixture(scope="module")
def port(server: tuple[Server, int]) -> int:
    return server[1]


def test_it_lists_its_model_and_its_health(port: int) -> None:
    status, found = asked(port, "/v1/models")
    assert status == 200 and [one["id"] for one in found["data"]] == ["debug"]
    assert asked(port, "/v1/models/debug")[1]["id"] == "debug"
    assert asked(port, "/v1/models/other")[0] == 404
    assert asked(port, "/healthz") == (200, {"status": "ok"})
    assert asked(port, "/readyz") == (200, {"status": "ready"})


@pytest.mark.slow
def test_earlier_turns_are_shots(port: int, model: Any) -> None:
    turns = [
        {"role": "system", "content": "lift"},
        user(picture(1)),
        {"role": "assistant", "content": "red"},
        user("push", picture(2), " the"),
        {"role": "assistant", "content": [{"type": "text", "text": " blue "}]},
        user(picture(3), "block"),
    ]
    shots = ["lift", CHUNK_END, picture(1), " red", CHUNK_END, "push", picture(2), " the", " blue", CHUNK_END]
    expected = model.prompt([*shots, picture(3), "block"], tokens=9)
    status, found = asked(port, CHAT, chat(turns, max_tokens=9))
    assert status == 200, found
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None} and expected
    usage = found["usage"]
    assert (
        usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and usage["completion_tokens"] <= 9
    )
    assert choice["finish_reason"] in ("stop", "length")


def test_a_stream_gives_the_same_text(port: int, model: Any) -> None:
    expected = model.prompt(["push the red"], tokens=12, temperature=1.0, top_p=0.9, seed=4)
    settings = {"temperature": 1, "top_p": 0.9, "seed": 4, "max_completion_tokens": 12}
    status, text = asked(port, CHAT, chat(HELLO, stream=True, stream_options={"include_usage": True}, **settings))
    found = events(text)
    assert status == 200 and found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in found[:-1]) == expected
    assert [one["choices"][0]["finish_reason"] for one in found[:-1]].count(None) == len(found) - 2
    assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] > 0
    assert len({one["id"] for one in found}) == 1


def test_several_texts_with_their_probabilities(port: int, model: Any) -> None:
    body = chat(HELLO, n=3, temperature=1.5, seed=5, max_tokens=6, logprobs=True, top_logprobs=2)
    found = asked(port, CHAT, body)[1]["choices"]
    assert [one["message"]["content"] for one in found] == model.prompt(
        [["push the red"]] * 3, tokens=6, temperature=1.5, seed=5
    )
    assert [one["index"] for one in found] == [0, 1, 2]
    for one in found:
        assert len(one["logprobs"]["content"]) <= 6
        for token in one["logprobs"]["content"]:
            values = [other["logprob"] for other in token["top_logprobs"]]
            assert len(values) == 2 and values == sorted(values, reverse=True) and token["logprob"] <= values[0] <= 0


def test_a_stop_text_ends_it(port: int, model: Any) -> None:
    whole = model.prompt(["push the red"], tokens=20)
    stop = whole[3:5]
    choice = asked(port, CHAT, chat(HELLO, stop=stop, max_tokens=20))[1]["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)] and choice["finish_reason"] == "stop"


def test_agents_in_both_forms_act_as_in_process(port: int, model: Any) -> None:
    seen = [one.astype(np.float32) for one in np.random.default_rng(4).normal(size=(9, 3))]
    alone = ControlPolicy(model, [LAYOUT])
    expected = []
    for prompt, seed in (("push", 7), ("lift", 8)):
        alone.reset([0], [prompt], [seed])
        expected += [alone.act([one])[0] for one in seen]
    with RobotClient(f"ws://127.0.0.1:{port}", layout=LAYOUT) as robot:
        assert robot.metadata["layout"] == LAYOUT and robot.metadata["observation"]["shape"] == [3]
        found = []
        for prompt, seed in (("push", 7), ("lift", 8)):
            robot.reset(prompt=prompt, seed=seed)
            found += [robot.act(one) for one in seen]
        assert found == expected
        assert robot.timing["round_trip_ms"] > robot.timing["infer_ms"] > 0 and "prev_total_ms" in robot.timing
    with connect(f"ws://127.0.0.1:{port}/v1/realtime/robot/json") as socket:
        assert json.loads(socket.recv())["layouts"] == [LAYOUT]
        found = []
        for prompt, seed in (("push", 7), ("lift", 8)):
            for one in seen:
                message = {"observation": one.astype(float).tolist(), "prompt": prompt, "seed": seed}
                socket.send(json.dumps(message))
                found.append(int(from_json(socket.recv())["actions"][0]))
        assert found == expected
        socket.send(to_json({"observation": seen[0], "reset": True}))
        assert "actions" in json.loads(socket.recv())


def test_openpis_messages_and_their_errors(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}/?layout={LAYOUT}") as socket:
        assert unpack(socket.recv())["model"] == "debug"
        good = pack({"observation/state": np.zeros(3), "prompt": "push"})
        for content, message in (
            (b"\xc1", "not msgpack"),
            (pack([1]), "must be a map"),
            (pack({"observation/state": np.zeros(4)}), "classic/test: the observation"),
            (pack({"observation/state": np.array([np.nan, 0, 0])}), "classic/test: the observation"),
            (pack({"observation/state": "text"}), "classic/test: the observation"),
            (pack({"observation/a": np.zeros(3), "observation/b": 1}), "one array"),
            (pack({"prompt": 3, "observation": np.zeros(3)}), "prompt must be"),
            (pack({"pickle": b"x"}), "'pickle'"),
            (pack({}), "no observation"),
            (pack({"observation": np.zeros(3), "deadline_ms": -1}), "deadline_ms"),
            (
                pack({"observation": np.zeros(3), "chunk": 4}),
                "chunk = 4: these weights choose one action per observation",
            ),
            (pack({"observation": np.zeros(3), "chunk": "4"}), "chunk must be of type int"),
            (pack({"observation": np.zeros(3), "prompt": "push " * 99}), "shorten it"),
            ("a text", "bytes"),
        ):
            socket.send(content)
            answer = socket.recv()
            assert isinstance(answer, str) and message in answer and "Traceback" not in answer, answer
        socket.send(good)
        assert unpack(socket.recv())["actions"].shape == (1,)
        socket.send(pack({"reset": True}))
        assert unpack(socket.recv()) == {"reset": True}
    with pytest.raises(ServerError, match="no layout 'none'"):
        RobotClient(f"ws://127.0.0.1:{port}", layout="none")


def test_more_agents_than_lanes_are_told(port: int) -> None:
    address = f"ws://127.0.0.1:{port}"
    robots: list[RobotClient] = []
    end = time.monotonic() + 20
    while len(robots) < 2 and time.monotonic() < end:  # sessions of other tests are just ending
        try:
            robots.append(RobotClient(address, layout=LAYOUT))
        except ServerError:
            time.sleep(0.05)
    with pytest.raises(ServerError, match="all 2 lanes"):
        RobotClient(address, layout=LAYOUT)
    for robot in robots:
        robot.close()


@pytest.mark.slow
def test_many_clients_at_once_and_no_compilation(port: int, model: Any) -> None:
    wishes = [
        ([user("push the red")], ["push the red"]),
        ([user(picture(5), "lift")], [picture(5), "lift"]),
        ([user("lift the blue block " * 12)], ["lift the blue block " * 12]),
        (
            [user(picture(6)), {"role": "assistant", "content": "red"}, user(picture(7))],
            [picture(6), " red", CHUNK_END, picture(7)],
        ),
    ]
    expected = [model.prompt(parts, tokens=10) for _, parts in wishes]
    before = _number(port, "compilations_after_ready")  # what this test's own prompts compiled, in the same process
    with RobotClient(f"ws://127.0.0.1:{port}", layout=LAYOUT) as robot:
        robot.reset()
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            futures = [pool.submit(asked, port, CHAT, chat(wishes[at % 4][0], max_tokens=10)) for at in range(24)]
            while not all(one.done() for one in futures):
                robot.act(np.ones(3, np.float32))
        texts = [one.result()[1]["choices"][0]["message"]["content"] for one in futures]
    assert texts == expected * 6
    assert _number(port, "compilations_after_ready") == before
    assert _number(port, "actions_total") > 0


def test_a_beginning_that_was_read_is_not_read_again(port: int) -> None:
    long = chat([user("lift the blue block " * 12)], max_tokens=4)
    first = asked(port, CHAT, long)[1]
    before = _number(port, "reused_positions_total")
    again = asked(port, CHAT, long)[1]
    assert again["choices"] == first["choices"] and again["usage"] == first["usage"]
    assert _number(port, "reused_positions_total") - before >= 32


def _number(port: int, name: str) -> float:
    for line in asked(port, "/metrics")[1].splitlines():
        if line.startswith(f"generalist_{name} "):
            return float(line.split()[1])
    raise AssertionError(f"there is no {name}")


def test_a_token_guards_every_route(model: Any) -> None:
    with running(model, token=TOKEN, sessions=1, origins=("https://example.org",)) as (_, port):
        routes = [
            ("/healthz", None),
            ("/readyz", None),
            ("/metrics", None),
            ("/v1/models", None),
            (CHAT, chat(HELLO)),
            ("/x", None),
        ]
        for path, body in routes:
            assert asked(port, path, body)[0] == 401
            assert asked(port, path, body, headers={"Authorization": "Bearer wrong"})[0] == 401
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert [asked(port, path, body, headers=good)[0] for path, body in routes] == [200] * 5 + [404]
        assert asked(port, "/healthz", headers=good | {"Host": "evil.example"})[0] == 403
        assert asked(port, "/healthz", headers=good | {"Origin": "https://evil.example"})[0] == 403
        assert asked(port, "/healthz", headers=good | {"Origin": "null"})[0] == 403
        for origin in (f"http://127.0.0.1:{port}", "https://example.org"):
            assert asked(port, "/healthz", headers=good | {"Origin": origin})[0] == 200
        address = f"ws://127.0.0.1:{port}"
        with pytest.raises(InvalidStatus, match="403"):
            RobotClient(address, layout=LAYOUT)
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, additional_headers=good, origin="https://evil.example")
        with connect(address, additional_headers={"Authorization": f"Api-Key {TOKEN}"}) as socket:  # as openpi's client
            assert unpack(socket.recv())["layouts"] == [LAYOUT]


def test_elsewhere_than_at_this_machine_it_needs_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ValueError, match="give a token"):
            Settings(host=host)
        assert Settings(host=host, token=TOKEN).host == host
    assert [Settings(host=host).token for host in ("127.0.0.1", "::1", "localhost")] == [None] * 3
    with pytest.raises(ValueError, match="16 characters"):
        Settings(token="short")


@pytest.mark.slow
def test_ending_loses_no_answer_that_has_begun(model: Any) -> None:
    # Long enough that all are under way when the end comes; two wait for a lane.
    bodies = [chat(HELLO, max_tokens=40, stream=one % 2 == 0, temperature=1, seed=one) for one in range(5)]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        with running(model, sessions=0) as (server, port):
            futures = [pool.submit(asked, port, CHAT, body) for body in bodies]
            while sum(server.engine.counts().values()) < 5 and not any(one.done() for one in futures):
                time.sleep(0.001)
        answers = [one.result() for one in futures]
    expected = [model.prompt(["push the red"], tokens=40, temperature=1.0, seed=one) for one in range(5)]
    for (status, found), text, body in zip(answers, expected, bodies, strict=True):
        assert status == 200
        if body["stream"]:
            pieces = [one["choices"][0]["delta"].get("content", "") for one in events(found)]
            assert "".join(pieces) == text
        else:
            assert found["choices"][0]["message"]["content"] == text


def test_more_than_may_wait_is_refused(model: Any) -> None:
    with running(model, sessions=0, lanes=1, queue=1) as (server, port):
        body = chat(HELLO, max_tokens=200, temperature=1, n=1)
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda one: asked(port, CHAT, body | {"seed": one}), range(12)))
        statuses = [status for status, _ in found]
        assert set(statuses) == {200, 429}
        assert next(body for status, body in found if status == 429)["error"]["type"] == "rate_limit_error"
        assert server.engine.counts() == {"waiting": 0, "running": 0, "sessions": 0}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_lane(model: Any, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import http.client

    # Slow steps, so that the text would go on for much longer than it takes to see that nobody waits for it.
    with running(model, sessions=0, lanes=1) as (server, port):
        engine, write = server.engine, server.engine.chat.write

        def slowly(active: Any) -> Any:
            time.sleep(0.1)
            return write(active)

        monkeypatch.setattr(engine.chat, "write", slowly)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = chat(HELLO, stream=stream, temperature=2, max_tokens=200, n=1)
        connection.request("POST", CHAT, json.dumps(body))
        if stream:
            response = connection.getresponse()
            response.read(1)
            response.close()
        else:
            time.sleep(0.3)
        connection.close()
        end = time.monotonic() + 5
        while engine.counts()["running"] and time.monotonic() < end:
            time.sleep(0.01)
        assert engine.counts()["running"] == 0
        assert _number(port, "texts_total") == 0, "it was given up, not written to its end"


def test_the_client_loads_no_jax() -> None:
    code = "import sys, generalist.client; assert not {'jax', 'flax', 'starlette'} & set(sys.modules), 'loaded'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lanes_are_as_many_as_fit(model: Any) -> None:
    assert lanes_that_fit(model, Settings(lanes=3), free=1 << 30) == 3
    few = lanes_that_fit(model, Settings(lanes=1000), free=1 << 24)
    assert 0 < few < 1000
    with pytest.raises(ValueError, match="a lane of"):
        lanes_that_fit(model, Settings(), free=1000)


def test_more_room_for_instructions_than_the_context_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="prefix is 100000, but the model has a context of"):
        Server(model, Settings(prefix=100_000), lambda line: None)


def test_a_frame_that_is_too_large_closes_the_socket(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}", max_size=None) as socket:
        socket.recv()
        with pytest.raises(ConnectionClosed):
            socket.send(b"\0" * (9 << 20))
            socket.recv()


def test_threads_end_with_the_server() -> None:
    assert threading.active_count() < 100
