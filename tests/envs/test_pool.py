"""Many environments at once: the same as one after the other."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
from troubled import Troubled

from generalist.envs import pool as pool_module
from generalist.envs.pool import Act, Acted, EnvPool, Start, Started
from generalist.envs.registry import get
from generalist.system.processes import WorkerError

CARTPOLE = get("classic/cartpole")
SEEDS = [1, 2, 3]


def test_lanes_play_like_single_environments():
    pool = EnvPool(3, workers=2)
    begun = pool.run({lane: Start(CARTPOLE, seed) for lane, seed in enumerate(SEEDS)})
    envs = [CARTPOLE.make() for _ in SEEDS]
    for lane, (env, seed) in enumerate(zip(envs, SEEDS, strict=True)):
        started = begun[lane]
        assert isinstance(started, Started) and started.instruction == CARTPOLE.instruction
        np.testing.assert_array_equal(env.reset(seed=seed)[0], started.observation)
    for _ in range(3):
        results = pool.run({0: Act(1), 1: Act(0)})
        assert results.keys() == {0, 1}
        for lane, action in ((0, 1), (1, 0)):
            observation, reward, *_ = envs[lane].step(action)
            acted = results[lane]
            assert isinstance(acted, Acted) and acted.reward == reward
            np.testing.assert_array_equal(observation, acted.observation)
    pool.close()


def test_a_lane_takes_another_task():
    pool, other = EnvPool(1, workers=1), get("classic/pendulum")
    pool.run({0: Start(CARTPOLE, 1)})
    started = pool.run({0: Start(other, 5)})[0]
    assert isinstance(started, Started) and started.instruction == other.instruction
    np.testing.assert_array_equal(other.make().reset(seed=5)[0], started.observation)
    pool.close()


def test_a_failing_environment_is_named():
    pool = EnvPool(1, workers=1)
    pool.run({0: Start(CARTPOLE, 1)})
    with pytest.raises(WorkerError, match=r"classic/cartpole failed in the episode with seed 1 \(.*\.py, line \d+\)"):
        pool.run({0: Act("left")})
    pool._workers[0][0].kill()
    with pytest.raises(WorkerError, match="classic/cartpole died"):
        pool.run({0: Act(1)})
    pool.close()


def test_environments_may_have_processes_and_are_closed(tmp_path: Path):
    pool = EnvPool(1, workers=1)
    pool.run({0: Start(Troubled(name="children", folder=tmp_path), 1)})
    process, _ = pool._workers[0]
    pool.close()
    pool.close()
    assert process.exitcode == 0 and (tmp_path / "children closed").exists()


def test_one_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By another thread while it is waited for, and when the pool is closed."""
    monkeypatch.setattr(pool_module, "CLOSING", 0.1)
    for killed in (True, False):
        pool = EnvPool(1, workers=1)
        pool.run({0: Start(Troubled(name="hangs", folder=tmp_path), 1)})
        with contextlib.closing(pool):
            if killed:
                threading.Timer(0.2, pool.kill).start()
                with pytest.raises(WorkerError, match="hangs died"):
                    pool.run({0: Act(0)})
            else:
                pool._workers[0][1].send({0: Act(0)})
            process = pool._workers[0][0]
        assert process.exitcode == -9


def test_a_failure_leaves_no_shared_memory(tmp_path: Path):
    pool = EnvPool(2, workers=2)
    tasks = [Troubled(name=name, folder=tmp_path) for name in ("fails", "large")]
    with pytest.raises(
        WorkerError, match=r"fails failed in the episode with seed 3 \(LookupError: .*troubled.py, line"
    ):
        pool.run({lane: Start(task, 3) for lane, task in enumerate(tasks)})
    memory = pool._inboxes[1]._memory
    pool.close()
    assert memory is not None, "the other worker's answer was opened"
    with pytest.raises(FileNotFoundError):
        SharedMemory(memory.name)


ENDS = """
import os, pathlib, signal, sys
from generalist.envs.pool import EnvPool, Start
from troubled import Troubled

pool = EnvPool(1, workers=1)
pool.run({0: Start(Troubled(name="plain", folder=pathlib.Path(sys.argv[1])), 1)})
print(pool._workers[0][0].pid, flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["left open", "killed"])
def test_nothing_is_left_behind(tmp_path: Path, how: str):
    """Neither of a program that forgets to close its pool, nor of one that is killed."""
    command = [sys.executable, "-c", ENDS, str(tmp_path), how]
    path = os.pathsep.join(one for one in sys.path if one)
    ended = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}, timeout=120)
    assert (ended.returncode == 0) == (how == "left open")
    until = time.monotonic() + 60
    while Path(f"/proc/{int(ended.stdout)}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{int(ended.stdout)}").exists()
    assert (tmp_path / "plain closed").exists()
