"""Websocket frames that no client should send: each is answered or closes its socket, and others are served meanwhile."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import asked, running

from generalist.client import RobotClient

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "frames.py"


@pytest.mark.slow
def test_random_frames_have_an_end(make_model: Callable[..., Any]) -> None:
    with running(make_model("frame"), sessions=4, lanes=1) as (_, port):
        command = [sys.executable, str(SCRIPT), str(port), "--count", "200"]
        fuzzing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with RobotClient(f"ws://127.0.0.1:{port}", layout="classic/test") as robot:
            robot.reset(prompt="push")
            acted = 0
            while fuzzing.poll() is None:
                robot.act(np.zeros(3, np.float32))
                acted += 1
        told = fuzzing.communicate()[0]
        assert fuzzing.returncode == 0 and "fuzzed frames: " in told, told
        assert " answered" in told and " closed" in told and acted > 0
        assert asked(port, "/healthz")[0] == 200
