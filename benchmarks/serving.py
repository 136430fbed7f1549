"""What a server does under load: agents beside chats, many clients, hostile ones, and its end.

    python benchmarks/serving.py [--seconds 60] [--clients 50] [--fuzzed 5000]

Starts `generalist serve` with the weights that ship as a process of its own, so that nothing of the clients is computed in it.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
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
from clients import LAYOUT, Robots, chatting, post, wish
from frames import fuzz

from generalist.client import RobotClient
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy, some_value

AGENTS = 16
INSTRUCTION = "move the gripper to the goal"  # the task's own
ROUNDS = 60
"""Steps of each agent that are measured at a time."""
TURNS = 8


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


def together(port: int, pid: int, generalist: Generalist) -> None:
    """Steps per second of 16 agents in process and through the server, in turn, and the processors' time of a step."""
    observation = some_value(generalist.layouts[LAYOUT].observation.space)
    policy = ControlPolicy(generalist, [LAYOUT] * AGENTS)
    policy.reset(range(AGENTS), [INSTRUCTION] * AGENTS, range(AGENTS))
    robots = [RobotClient(f"ws://127.0.0.1:{port}", layout=LAYOUT) for _ in range(AGENTS)]
    for robot in robots:
        robot.reset(prompt=INSTRUCTION)
    ratios, rates, used = [], [], []
    for turn in range(TURNS + 1):
        before = time.process_time()
        inside = rate(lambda: policy.act([observation] * AGENTS))
        middle = time.process_time()

        def through() -> None:
            for robot in robots:
                robot.send(observation)
            for robot in robots:
                robot.receive()

        busy = processor(pid)
        outside = rate(through)
        if turn:  # the first one compiles in this process
            ratios.append(outside / inside)
            rates.append((inside, outside))
            used.append((middle - before, processor(pid) - busy, time.process_time() - middle))
    for robot in robots:
        robot.close()
    inside, outside = (statistics.median(one) for one in zip(*rates, strict=True))
    own, server, clients = (1e6 * statistics.median(one) / (AGENTS * ROUNDS) for one in zip(*used, strict=True))
    print(
        f"{AGENTS} agents: {inside:.0f} steps/s in process, {outside:.0f} through the server, "
        f"ratio {statistics.median(ratios):.2f}; per step {own:.0f} us of processors in process, or {server:.0f} of the server "
        f"and {clients:.0f} of the client",
        flush=True,
    )


def processor(pid: int) -> float:
    """Seconds of processors that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rate(call: Any, rounds: int = ROUNDS) -> float:
    """Steps of agents per second."""
    started = time.perf_counter()
    for _ in range(rounds):
        call()
    return AGENTS * rounds / (time.perf_counter() - started)


def mixed(port: int, pid: int, generalist: Generalist, clients: int, seconds: float) -> None:
    """Many clients at once: texts, errors, memory, compilations."""
    expected = [generalist.prompt(wish(one)[1], tokens=24) for one in range(8)]
    robots = Robots.of(generalist, clients // 10)
    failed: list[Any] = []
    texts: list[tuple[int, str]] = []
    sizes = []
    with chatting(port, clients - robots.count, failed, texts, robots):
        time.sleep(min(10.0, seconds / 4))  # buffers of all clients
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sizes.append(resident(pid))
            time.sleep(0.5)
    wrong = sum(text != expected[one] for one, text in texts)
    print(
        f"{clients} clients, {robots.count} of them robots, for {seconds:.0f} s: {len(texts)} texts, {wrong} differ from those "
        f"alone, {len(failed)} errors, "
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


def frames(port: int, pid: int, count: int) -> None:
    """Websocket frames that no client should send."""
    before = resident(pid)
    ends, times = fuzz(port, count, LAYOUT)
    times.sort()
    print(
        f"{sum(ends.values())} fuzzed frames: {dict(ends)}, within p50 {statistics.median(times):.1f}, "
        f"p99 {times[int(len(times) * 0.99)]:.1f}, max {times[-1]:.0f} ms, memory +{resident(pid) - before:.0f} MiB",
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
    parser.add_argument("--fuzzed", type=int, default=5000, help="fuzzed requests, and frames (default 5000)")
    arguments = parser.parse_args()
    generalist = Generalist.load()
    with served("--sessions", "1") as (_, port, line):
        print(line, flush=True)
        beside_chats(port)
    with served("--sessions", str(AGENTS)) as (process, port, line):
        print(line, flush=True)
        together(port, process.pid, generalist)
        mixed(port, process.pid, generalist, arguments.clients, arguments.seconds)
        hostile(port, process.pid, arguments.fuzzed)
        frames(port, process.pid, arguments.fuzzed)
    ending()


if __name__ == "__main__":
    main()
