"""The benchmark for GPUs: what it does without one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The benchmark's command on one CPU device."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_without_a_gpu_it_says_so():
    done = run()
    assert done.returncode == 1
    assert done.stderr == "this needs a GPU, but JAX found cpu; --dry tries the script on a CPU\n"


def test_figures_are_kept_whatever_the_other_cases_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks/gpu.py")
    assert spec is not None and spec.loader is not None
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    numbers = ("rows", "length", "filled", "tokens_per_second", "mfu", "planned_bytes", "program_bytes", "peak_bytes")
    figures = dict.fromkeys((*numbers, "compile_seconds"), 1)
    attention = dict.fromkeys(("forward", "gradients", "ratio"), 1)

    def ran(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        case = json.loads(command[-1])
        if case.get("name") == "gato_1b":
            raise KeyboardInterrupt
        printed = (
            "no figures" if case.get("name") == "gato_79m" else json.dumps(attention if "length" in case else figures)
        )
        return subprocess.CompletedProcess(command, 0, printed, "")

    written, measure = tmp_path / "new" / "gpu.json", "a loop over the layers"
    chosen = ["--models", "gpt2_124m", "gato_79m", "gato_1b", "--measures", measure, "--lengths", "256"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *chosen, "--json", str(written)])
    monkeypatch.setattr(gpu, "use_gpu_flags", lambda: None)
    monkeypatch.setattr(gpu, "check_gpu", lambda: None)
    monkeypatch.setattr(gpu.subprocess, "run", ran)
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    found = json.loads(written.read_text())
    assert found["attention"] == [attention] and found["models"] == {"gpt2_124m": figures}
    assert found["left_out"] == [
        "gato_79m: its last line is no JSON: 'no figures'",
        f"{measure}: gato_79m has no figures to compare with",
    ]


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
