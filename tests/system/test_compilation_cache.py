"""Compiled programs are kept between processes, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from generalist.system import compilation_cache
from generalist.system.compilation_cache import MOST, processor, remove_unfinished, use_compilation_cache

COMPILES = """
from generalist.system.compilation_cache import use_compilation_cache
use_compilation_cache()
import jax
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
print(float(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8)))))
print(sum(name == "/jax/compilation_cache/cache_hits" for name in hits) > 0)
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "GENERALIST")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ["GENERALIST_CACHE"] = str(tmp_path)


@pytest.mark.slow
def test_the_python_interface_keeps_programs_too(tmp_path: Path) -> None:
    code = "from generalist import AgentPrompt; import jax; print(jax.config.jax_compilation_cache_dir)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert Path(printed.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.slow
def test_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    printed = [
        subprocess.run(
            [sys.executable, "-c", COMPILES], capture_output=True, text=True, check=True, env=os.environ
        ).stdout
        for _ in range(2)
    ]
    assert [one.split() for one in printed] == [["512.0", "False"], ["512.0", "True"]]
    assert [*(tmp_path / "compiled").iterdir()]


def test_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["GENERALIST_COMPILED"] = "off"
    use_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    os.environ["GENERALIST_COMPILED"] = "no"
    with pytest.raises(ValueError, match="GENERALIST_COMPILED must be on or off, got 'no'"):
        use_compilation_cache()
    os.environ["GENERALIST_COMPILED"] = "on"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = "elsewhere"
    use_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("most", "kept"), [(None, ["whole-atime", "whole-cache"]), ("-1", ["half-cache", "whole-atime", "whole-cache"])]
)
def test_programs_without_a_note_are_removed_where_jax_writes_notes(
    most: str | None, kept: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "compiled" / processor()
    folder.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (folder / name).write_bytes(b"")
    if most:
        os.environ[MOST] = most
    use_compilation_cache()
    assert sorted(path.name for path in folder.glob("*-*")) == kept


def test_a_locked_folder_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation_cache, "PATIENCE", 0.1)
    (tmp_path / "half-cache").write_bytes(b"")
    with FileLock(tmp_path / ".lockfile"):
        remove_unfinished(tmp_path)
    assert (tmp_path / "half-cache").exists()


def test_a_folder_that_can_t_be_written_keeps_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "compiled").write_bytes(b"")
    use_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert "(Not a directory): name another folder with GENERALIST_CACHE" in capsys.readouterr().err
