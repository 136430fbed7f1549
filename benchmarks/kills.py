"""Checks that a run that is killed again and again ends with bit-identical weights to an uninterrupted one.

    python benchmarks/kills.py --kills 20

Trains `debug` on drawings and prose twice: once in one go; and once killed with SIGKILL at random moments, while it starts, steps
or saves, and started again each time. Prints where the kills fell, and compares every number of the last checkpoints.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
SETTINGS = """--data.metaworld.weight 0 --data.babyai.weight 0 --data.atari.weight 0 --data.classic.weight 0 --data.fetch.weight 0
    --data.frames 16
    --training.checkpoint-every 3 --training.log-every 1 --data.emoji.naming-items 2 --data.prose.evaluation-windows 1"""


def main() -> None:
    """Runs both, kills one repeatedly, and compares their weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.perf_counter()
        start(folder, "whole", arguments.steps).wait()
        print(f"in one go: {arguments.steps} steps, {time.perf_counter() - begun:.0f} s", flush=True)
        saving = 0
        for kill in range(arguments.kills):
            where, step = kill_one(folder, "killed", arguments.steps, rng)
            saving += where == "saving"
            print(f"kill {kill + 1}: while {where}, step {step}", flush=True)
        if start(folder, "killed", arguments.steps).wait():
            raise SystemExit("the run did not continue: " + (folder / "killed.log").read_text()[-2000:])
        compared = compare(folder, arguments.steps)
        print(f"{arguments.kills} kills, {saving} of them during a save: {compared} numbers, all the same bits")


def start(folder: Path, name: str, steps: int) -> subprocess.Popen:
    """Starts or continues the run."""
    command = (
        f"train.py debug --name {name} --runs {folder} --data.folder {folder}/data --training.steps {steps} {SETTINGS}"
    )
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with (folder / f"{name}.log").open("a") as log:
        return subprocess.Popen([sys.executable, *command.split()], cwd=ROOT, env=environment, stdout=log, stderr=log)


def kill_one(folder: Path, name: str, steps: int, rng: random.Random) -> tuple[str, int]:
    """Starts the run and kills it: once in five times before its first new step, otherwise shortly after it."""
    before, process = last_step(folder / name), start(folder, name, steps)
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 8))
    else:
        while last_step(folder / name) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
    if process.poll() is not None:
        raise SystemExit(f"the run ended before it was killed: use more --steps (see {folder / name}.log)")
    process.kill()
    process.wait()
    step = last_step(folder / name)
    if list((folder / name / "checkpoints").glob("*tmp*")):
        return "saving", step
    return ("starting" if step == before else "stepping"), step


def last_step(run: Path) -> int:
    """The last step in the metrics; the last line may be cut off."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except json.JSONDecodeError:
            continue
    return 0


def compare(folder: Path, steps: int) -> int:
    """Compares the last checkpoints of both runs and returns the count of their numbers, all of which are equal.

    Raises:
        AssertionError: some are not.
    """
    states = []
    for name in ("whole", "killed"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            states.append(checkpointer.restore((folder / name / "checkpoints" / str(steps) / "state").absolute()))
    left, right = (jax.tree_util.tree_leaves_with_path(state) for state in states)
    assert [path for path, _ in left] == [path for path, _ in right]
    for (path, one), (_, other) in zip(left, right, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), f"{jax.tree_util.keystr(path)} differs"
    return sum(np.asarray(leaf).size for _, leaf in left)


if __name__ == "__main__":
    main()
