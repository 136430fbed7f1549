"""The clients of benchmarks/serving.py: chats, streams and robots, and what they ask for."""

import base64
import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from generalist.client import RobotClient
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy

LAYOUT = "fetch/reach"
QUESTIONS = (
    "question: what is red? answer:",
    "the red block is ",
    "an orange is a fruit. a plum is a",
    "once upon a time",
)


def post(port: int, body: Any) -> tuple[int, Any]:
    """The status of a chat's answer and its body, of a stream the text; status 0 if the connection was closed without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request("POST", "/v1/chat/completions", content)
        response = connection.getresponse()
        found = response.read()
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return response.status, streamed(found.decode())
        return response.status, json.loads(found)
    except (http.client.HTTPException, OSError):
        return 0, None
    finally:
        connection.close()


def streamed(events: str) -> str:
    """The text of a stream.

    Raises:
        ValueError: it has no end.
    """
    *lines, last = [line.removeprefix("data: ") for line in events.split("\n\n") if line]
    if last != "[DONE]":
        raise ValueError(f"a stream ends with {last[:80]}")
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


def picture(number: int) -> np.ndarray:
    """Pixels of one colour, uint8 (96, 96, 3)."""
    return np.full((96, 96, 3), np.random.default_rng(number).integers(0, 256, 3), np.uint8)


def wish(number: int) -> tuple[dict[str, Any], list[Any]]:
    """A request, and the same as the parts of a prompt."""
    text = QUESTIONS[number % len(QUESTIONS)]
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts: list[Any] = [text]
    if number % 2:
        file = io.BytesIO()
        Image.fromarray(picture(number)).save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content, parts = [{"type": "image_url", "image_url": {"url": url}}, *content], [picture(number), *parts]
    messages = [{"role": "user", "content": content}]
    return {"model": "pocket_long", "messages": messages, "temperature": 0, "max_tokens": 24}, parts


@contextlib.contextmanager
def chatting(
    port: int, clients: int, failed: list[Any], texts: list[tuple[int, str]], robots: "Robots | None" = None
) -> Iterator[None]:
    """Clients that chat, and robots that play, as long as the block lasts."""
    # In a process of their own: in this one they would take turns with the agents that are measured.
    context = multiprocessing.get_context("spawn")
    end, found = context.Event(), context.Queue()
    process = context.Process(target=chat_until, args=(port, clients, end, found, robots))
    process.start()
    found.get(timeout=60)  # it has begun
    try:
        yield
    finally:
        end.set()
        wrong, right = found.get(timeout=120)
        process.join()
        failed += wrong
        texts += right


@dataclasses.dataclass(frozen=True)
class Robots:
    """Robots that play the same episode again and again, ten steps per second."""

    count: int
    observations: list[Any]
    actions: list[np.ndarray]
    """What the weights choose in this process."""

    @classmethod
    def of(cls, generalist: Generalist, count: int) -> "Robots":
        """An episode of random observations."""
        space = generalist.layouts[LAYOUT].observation.space
        space.seed(0)
        observations = [space.sample() for _ in range(16)]
        policy = ControlPolicy(generalist, [LAYOUT])
        policy.reset([0], ["reach the goal"], [0])
        return cls(count, observations, [policy.act([one])[0] for one in observations])

    def play(self, port: int, end: Any, failed: list[Any]) -> None:
        """Plays until an event is set; actions that are other ones are failures."""
        with RobotClient(f"ws://127.0.0.1:{port}", layout=LAYOUT) as robot:
            while not end.is_set():
                robot.reset(prompt="reach the goal")
                for observation, action in zip(self.observations, self.actions, strict=True):
                    if not np.array_equal(robot.act(observation), action):
                        failed.append(("another action", action))
                    time.sleep(0.1)


def chat_until(port: int, clients: int, end: Any, found: Any, robots: Robots | None) -> None:
    """Chats in threads until an event is set, every other client in streams, then puts the errors and the texts into a queue."""
    failed: list[Any] = []
    texts: list[tuple[int, str]] = []
    wishes = [wish(one)[0] for one in range(8)]

    def chat(client: int) -> None:
        asked, streams = client, bool(client // 8 % 2)
        while not end.is_set():
            status, answer = post(port, wishes[asked % 8] | {"stream": streams})
            if status == 200:
                texts.append((asked % 8, answer if streams else answer["choices"][0]["message"]["content"]))
            elif status != 429:
                failed.append((status, answer))
            asked += 1

    found.put("begun")
    count = robots.count if robots is not None else 0
    with concurrent.futures.ThreadPoolExecutor(clients + count) as pool:
        running = [pool.submit(chat, one) for one in range(clients)]
        if robots is not None:
            running += [pool.submit(robots.play, port, end, failed) for _ in range(count)]
        for one in running:
            one.result()
    found.put((failed, texts))
