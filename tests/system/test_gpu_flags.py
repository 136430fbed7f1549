"""Options for GPUs: only where one is expected, never over a user's own, and not for a jaxlib that does not know them; and what
the extra `cuda` installs."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from generalist.system import gpu_flags
from generalist.system.gpu_flags import (
    BACKEND_OPTIONS,
    NATIVE_ATOMICS,
    is_broken,
    slow_additions,
    use_gpu_flags,
    with_flags,
)
from generalist.system.xla_flags import given_flags

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
SCHEDULER = "--xla_gpu_enable_latency_hiding_scheduler"


@pytest.mark.parametrize(
    ("given", "version", "wanted"),
    [
        ("", (0, 11, 1), f"{SCHEDULER}=true"),
        ("", (0, 10, 2), f"{SCHEDULER}=true {BACKEND_OPTIONS}={NATIVE_ATOMICS}"),
        (f"--a=1 {SCHEDULER}=false", (0, 12, 0), f"--a=1 {SCHEDULER}=false"),
        (f"{BACKEND_OPTIONS}=-mine", (0, 11, 0), f"{BACKEND_OPTIONS}=-mine {SCHEDULER}=true"),
    ],
)
def test_flags_fill_in_what_is_missing(given: str, version: tuple[int, ...], wanted: str):
    assert with_flags(given, version) == wanted


@pytest.mark.parametrize(
    ("plugin", "platforms", "switch", "set_"),
    [
        (True, "", "on", True),
        (True, "cuda,cpu", "on", True),
        (True, "cpu", "on", False),
        (True, "", "off", False),
        (False, "", "on", False),
    ],
)
def test_flags_are_set_where_a_gpu_is_expected(plugin, platforms, switch, set_, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: plugin and name == "jax_cuda13_plugin")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv(gpu_flags.VARIABLE, switch)
    monkeypatch.setenv("XLA_FLAGS", "")
    use_gpu_flags()
    assert (SCHEDULER in os.environ["XLA_FLAGS"]) == set_


def test_options_in_a_file_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "options"
    file.write_text("--a=1\n--b=2\n")
    monkeypatch.setenv("XLA_FLAGS", str(file))
    assert with_flags(given_flags(), (0, 11, 1)) == f"--a=1 --b=2 {SCHEDULER}=true"
    file.unlink()
    with pytest.raises(OSError, match="options names a file of options, which can't be read"):
        given_flags()


def test_a_switch_that_is_neither(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(gpu_flags.VARIABLE, "yes")
    with pytest.raises(ValueError, match="GENERALIST_GPU_FLAGS must be on or off, got 'yes'"):
        use_gpu_flags()


def test_this_jaxlib_knows_the_flags():
    """XLA ends a process whose flags it does not know."""
    flags = with_flags("", gpu_flags.jaxlib_version())
    code = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr


def test_a_user_without_the_option_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_flags, "jaxlib_version", lambda: (0, 11, 0))
    monkeypatch.setenv("XLA_FLAGS", "")
    assert "jaxlib 0.11.0" in (slow_additions() or "")
    monkeypatch.setenv("XLA_FLAGS", with_flags("", (0, 11, 0)))
    assert slow_additions() is None
    monkeypatch.setattr(gpu_flags, "jaxlib_version", lambda: (0, 11, 1))
    assert slow_additions() is None


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_what_the_extra_for_gpus_installs(python: str):
    def chosen(requirements: list[str], name: str) -> list[Requirement]:
        parsed = [Requirement(line) for line in requirements]
        found = [one for one in parsed if one.name == name]
        return [one for one in found if one.marker is None or one.marker.evaluate({"python_version": python})]

    (extra,) = chosen(PROJECT["project"]["optional-dependencies"]["cuda"], "jax")
    pinned = chosen(PROJECT["tool"]["uv"]["constraint-dependencies"], "jax")
    (pin,) = [re.fullmatch(r"==(.*)", str(one.specifier)).group(1) for one in pinned]
    assert extra.specifier.contains(pin), "the pins and the extra exclude each other"
    # Python 3.11 has no newer jax than the first one with the fault, against which it gets the option.
    numbers = tuple(map(int, pin.split(".")))
    assert is_broken(numbers) == (python == "3.11")
    if python != "3.11":
        assert not [broken for broken in ("0.10.2", "0.11.0") if extra.specifier.contains(broken)]
