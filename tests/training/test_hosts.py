"""Several processes: where they stand, which is behind, and two real ones that train as one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from generalist.config.run import ClusterConfig
from generalist.data.packing import Position
from generalist.training.cluster import several_expected
from generalist.training.hosts import WAITING_FOR_DATA, Watchdog, all_positions, behind, positions_from

ROOT = Path(__file__).parent.parent.parent


def test_positions_come_back():
    positions = {0: Position(17, (3, 12)), 1: Position(2**40, ()), 2: Position(5, tuple(range(8)))}
    stored = json.loads(json.dumps(all_positions(positions, 3)))
    assert stored[0] == [17, 3, 12] and positions_from(stored) == positions


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "16"}, True),
        ({"TPU_WORKER_HOSTNAMES": "host-0"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_launchers_say_when_there_are_others(environment: dict[str, str], expected: bool):
    assert several_expected(environment) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"coordinator": "host:1234"},
            "cluster.coordinator HOST:PORT, cluster.processes and cluster.process go together",
        ),
        ({"processes": 2, "process": 0}, "go together"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "must be HOST:PORT or auto"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, "cluster.process must be from 0 to"),
    ],
)
def test_a_wrong_place_is_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**settings)


def test_who_is_behind(tmp_path: Path):
    now = time.time()
    signs = {
        0: (7, "waiting for the devices", 1),
        1: (7, WAITING_FOR_DATA, 2),
        3: (6, "saving", 1),
        4: (7, "saving", 900),
    }
    for process, (step, phase, silent) in signs.items():
        sign = {"step": step, "phase": phase, "time": now - silent}
        (tmp_path / f"{process}.json").write_text(json.dumps(sign))
    assert behind(tmp_path, 5, 7, now, 100.0) == [
        "process 1, at step 7, waiting for data",
        "process 2, without a sign of life",
        "process 3, at step 6, saving",
        "process 4, silent for 900 s since step 7",
    ]


@pytest.mark.slow
def test_a_step_that_takes_long_is_told_and_then_less_and_less_often(tmp_path: Path):
    said: list[str] = []
    with Watchdog(tmp_path, 0.2, said.append) as watchdog:
        watchdog.phase(3, WAITING_FOR_DATA)
        time.sleep(0.7)
        for step in range(4, 12):  # steps that go on are no news
            watchdog.phase(step, WAITING_FOR_DATA)
            time.sleep(0.02)
    assert 1 <= len(said) <= 2
    assert said[0].startswith("step 3 has taken 0 s so far: waiting for data")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


STEPS = 20


def start(folder: Path, name: str, processes: int, devices: int) -> list[subprocess.Popen]:
    """`train.py debug` on drawings and prose, as a user starts it, in so many processes of so many simulated devices."""
    command = f"""train.py debug --name {name} --runs {folder} --data.folder {folder}/data --training.steps {STEPS}
        --data.metaworld.weight 0 --data.babyai.weight 0 --data.atari.weight 0 --data.classic.weight 0 --data.fetch.weight 0
        --data.frames 16
        --data.shards 2 --training.log-every 1 --training.checkpoint-every 7 --training.stall-seconds 60
        --data.emoji.naming-items 2 --data.prose.evaluation-windows 1"""
    coordinator = f"--cluster.coordinator 127.0.0.1:{free_port()} --cluster.processes {processes} --cluster.process"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last one counts
    environment = os.environ | {"XLA_FLAGS": flags}
    running = []
    for process in range(processes):
        place = f"{coordinator} {process}" if processes > 1 else ""
        with (folder / f"{name}.{process}.log").open("a") as log:
            arguments = [sys.executable, *command.split(), *place.split()]
            running.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return running


def losses(folder: Path, name: str) -> list[tuple[float, ...]]:
    """Of each step so far."""
    path = folder / name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # none is lost or written twice
    return [(line["loss"], line["loss/emoji"], line["loss/prose"], line["gradient_norm"]) for line in lines]


def run(folder: Path, name: str, processes: int, devices: int, stop_after: int | None = None) -> None:
    """To the end; or until so many steps are done, when one of the processes is told to stop."""
    running = start(folder, name, processes, devices)
    while stop_after is not None and len(losses(folder, name)) < stop_after:
        assert all(process.poll() is None for process in running), logs(folder, name)
        time.sleep(0.05)
    if stop_after is not None:
        running[-1].send_signal(signal.SIGTERM)
    codes = [process.wait(timeout=300) for process in running]
    assert codes == [0 if stop_after is None else 130] * processes, logs(folder, name)


def logs(folder: Path, name: str) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"{name}.*.log")))


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_take_each_other_s_checkpoints(tmp_path: Path):
    """A run on two processes of four devices; the same stopped and gone on with on one device, and stopped again and back."""
    run(tmp_path, "whole", 1, 1)
    run(tmp_path, "parts", 2, 4, stop_after=4)
    assert len(losses(tmp_path, "parts")) < STEPS
    run(tmp_path, "parts", 1, 1, stop_after=10)
    assert len(losses(tmp_path, "parts")) < STEPS
    run(tmp_path, "parts", 2, 4)
    np.testing.assert_allclose(losses(tmp_path, "parts"), losses(tmp_path, "whole"), rtol=1e-4)
    loss = [[entry[0] for entry in losses(tmp_path, name)] for name in ("parts", "whole")]
    np.testing.assert_allclose(*loss, rtol=1e-5)
    assert len(loss[0]) == STEPS
