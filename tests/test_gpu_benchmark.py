"""The benchmark for GPUs: what it does without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The benchmark's command on one CPU device."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_without_a_gpu_it_says_so():
    done = run()
    assert done.returncode == 1
    assert done.stderr == "this needs a GPU, but JAX found cpu; --dry tries the script on a CPU\n"


@pytest.mark.slow
def test_a_dry_run_goes_from_recordings_to_figures(tmp_path: Path):
    measure = "gradients of rows by XLA's scatter"
    chosen = ("--models", "gato_79m", "--measures", measure, "--minutes", "30")
    done = run("--dry", *chosen, "--json", str(tmp_path / "gpu.json"))
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["left_out"] == [] and "left out" not in done.stdout, done.stdout + done.stderr
    first = found["models"]["gato_79m"]
    assert 0.5 < first["filled"] <= 1 and first["tokens_per_second"] > 0 and first["jax"] in done.stdout
    assert len(first["kernels"]) == 10 and sum(share for _, share in first["kernels"]) <= 1
    assert set(found["without"]) == {measure}
