"""What a server does under load: agents beside chats, many clients, hostile ones, and its end.

    python benchmarks/serving.py [--seconds 60] [--clients 50] [--fuzzed 5000]

Starts `generalist serve` with the weights that ship as a process of its own, so that nothing of the clients is computed in it.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from generalist.client import RobotClient
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy, some_value

LAYOUT = "fetch/reach"
QUESTIONS = (
    "question: what is red? answer:",
    "the red block is ",
    "an orange is a fruit. a plum is a",
    "once upon a time",
)
AGENTS = 16


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """A server as a process, its port, and what it said when it was ready."""
    command = [sys.executable, "-m", "generalist", "serve", "--port", "0", "--layouts", LAYOUT, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("ready"):
                break
        else:
            raise RuntimeError("the server ended before it was ready")
        yield process, int(line.rsplit(":", 1)[1]), line.strip()
    finally:
        process.terminate()
        process.wait(60)


def post(port: int, body: Any) -> tuple[int, Any]:
    """The status and body of a chat's answer; status 0 if the connection was closed without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request("POST", "/v1/chat/completions", content)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (http.client.HTTPException, OSError):
        return 0, None
    finally:
        connection.close()


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


def resident(pid: int) -> float:
    """MiB of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def number(port: int, name: str) -> float:
    """A number of the server's metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^generalist_{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


@contextlib.contextmanager
def chatting(port: int, clients: int, failed: list[Any], texts: list[tuple[int, str]]) -> Iterator[None]:
    """Clients that chat as long as the block lasts."""
    # In a process of their own: in this one they would take turns with the agents that are measured.
    context = multiprocessing.get_context("spawn")
    end, found = context.Event(), context.Queue()
    process = context.Process(target=chat_until, args=(port, clients, end, found))
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


def chat_until(port: int, clients: int, end: Any, found: Any) -> None:
    """Chats in threads until an event is set, then puts the errors and the texts into a queue."""
    failed: list[Any] = []
    texts: list[tuple[int, str]] = []
    wishes = [wish(one)[0] for one in range(8)]

    def chat(asked: int) -> None:
        while not end.is_set():
            status, answer = post(port, wishes[asked % 8])
            if status == 200:
                texts.append((asked % 8, answer["choices"][0]["message"]["content"]))
            elif status != 429:
                failed.append((status, answer))
            asked += 1

    found.put("begun")
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(chat, range(clients)))
    found.put((failed, texts))


def steps(port: int, count: int) -> list[float]:
    """Milliseconds of an agent's steps, round trip."""
    times = []
    with RobotClient(f"ws://127.0.0.1:{port}", layout=LAYOUT) as robot:
        space = Generalist.load().layouts[LAYOUT].observation.space
        observation = some_value(space)
        robot.reset()
        for _ in range(count):
            robot.act(observation)
            times.append(robot.timing["round_trip_ms"])
    return times[count // 10 :]


def beside_chats(port: int) -> None:
    """An agent's step, alone and beside chats, in turn."""
    alone, loaded = [], []
    for _ in range(3):
        alone.append(statistics.median(steps(port, 150)))
        failed: list[Any] = []
        with chatting(port, 8, failed, []):
            time.sleep(1)
            loaded.append(statistics.median(steps(port, 150)))
    ratios = [one / other for one, other in zip(loaded, alone, strict=True)]
    print(
        f"an agent's step, p50: {statistics.median(alone):.1f} ms alone, {statistics.median(loaded):.1f} ms beside 8 chats, "
        f"ratio {statistics.median(ratios):.2f}",
        flush=True,
    )


def together(port: int, generalist: Generalist) -> None:
    """Steps per second of 16 agents in process and through the server, in turn."""
    observation = some_value(generalist.layouts[LAYOUT].observation.space)
    policy = ControlPolicy(generalist, [LAYOUT] * AGENTS)
    policy.reset(range(AGENTS), [""] * AGENTS, range(AGENTS))
    robots = [RobotClient(f"ws://127.0.0.1:{port}", layout=LAYOUT) for _ in range(AGENTS)]
    for robot in robots:
        robot.reset()
    ratios, rates = [], []
    for turn in range(6):
        inside = rate(lambda: policy.act([observation] * AGENTS))

        def through() -> None:
            for robot in robots:
                robot.send(observation)
            for robot in robots:
                robot.receive()

        outside = rate(through)
        if turn:  # the first one compiles in this process
            ratios.append(outside / inside)
            rates.append((inside, outside))
    for robot in robots:
        robot.close()
    inside, outside = (statistics.median(one) for one in zip(*rates, strict=True))
    print(
        f"{AGENTS} agents: {inside:.0f} steps/s in process, {outside:.0f} through the server, "
        f"ratio {statistics.median(ratios):.2f}",
        flush=True,
    )


def rate(call: Any, rounds: int = 60) -> float:
    """Steps of agents per second."""
    started = time.perf_counter()
    for _ in range(rounds):
        call()
    return AGENTS * rounds / (time.perf_counter() - started)


def mixed(port: int, pid: int, generalist: Generalist, clients: int, seconds: float) -> None:
    """Many clients at once: texts, errors, memory, compilations."""
    expected = [generalist.prompt(wish(one)[1], tokens=24) for one in range(8)]
    failed: list[Any] = []
    texts: list[tuple[int, str]] = []
    sizes = []
    with chatting(port, clients, failed, texts):
        time.sleep(min(10.0, seconds / 4))  # buffers of all clients
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sizes.append(resident(pid))
            time.sleep(0.5)
    wrong = sum(text != expected[one] for one, text in texts)
    print(
        f"{clients} clients for {seconds:.0f} s: {len(texts)} texts, {wrong} differ from those alone, {len(failed)} errors, "
        f"memory {sizes[0]:.0f} to {sizes[-1]:.0f} MiB ({100 * (sizes[-1] / sizes[0] - 1):+.1f}%), "
        f"{number(port, 'compilations_after_ready'):.0f} compilations after ready",
        flush=True,
    )


def hostile(port: int, pid: int, count: int) -> None:
    """Requests that are changed at random: their statuses, times and memory."""
    good = json.dumps(wish(0)[0] | {"max_tokens": 1}).encode()
    rng = np.random.default_rng(0)
    before, times, statuses = resident(pid), [], {}
    peak = before
    for at in range(count):
        body = bytearray(good)
        for _ in range(int(rng.integers(1, 8))):
            place = int(rng.integers(len(body)))
            body[place : place + int(rng.integers(0, 4))] = rng.integers(
                0, 256, int(rng.integers(0, 4)), np.uint8
            ).tobytes()
        started = time.perf_counter()
        status, _ = post(port, bytes(body))
        if status != 200:
            times.append(1000 * (time.perf_counter() - started))
        statuses[status] = statuses.get(status, 0) + 1
        peak = max(peak, resident(pid)) if at % 50 == 0 else peak
    times.sort()
    print(
        f"{count} fuzzed requests: statuses {dict(sorted(statuses.items()))}, refused within p50 {statistics.median(times):.1f}, "
        f"p99 {times[int(len(times) * 0.99)]:.1f}, max {times[-1]:.0f} ms, memory +{peak - before:.0f} MiB",
        flush=True,
    )


def ending() -> None:
    """SIGTERM while texts are being written."""
    with served("--sessions", "0") as (process, port, _):
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            futures = [
                pool.submit(post, port, wish(one % 8)[0] | {"max_tokens": 100, "temperature": 1}) for one in range(12)
            ]
            while number(port, "running") < 8:
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            statuses = [future.result()[0] for future in futures]
        code = process.wait(60)
    print(f"SIGTERM under load: {statuses.count(200)} of {len(statuses)} texts were answered whole, exit status {code}")


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the mixed clients (default 60)")
    parser.add_argument("--clients", type=int, default=50, help="mixed clients (default 50)")
    parser.add_argument("--fuzzed", type=int, default=5000, help="fuzzed requests (default 5000)")
    arguments = parser.parse_args()
    generalist = Generalist.load()
    with served("--sessions", "1") as (_, port, line):
        print(line, flush=True)
        beside_chats(port)
    with served("--sessions", str(AGENTS)) as (process, port, line):
        print(line, flush=True)
        together(port, generalist)
        mixed(port, process.pid, generalist, arguments.clients, arguments.seconds)
        hostile(port, process.pid, arguments.fuzzed)
    ending()


if __name__ == "__main__":
    main()
