"""Compiled programs are kept between runs, so that only the first start of a kind waits for the compiler.

They lie in the cache's folder (`generalist.system.cache`), at most `LARGEST` bytes of them; the least recently used go first.
Several processes may use them at once. GENERALIST_COMPILED=off keeps none; JAX_COMPILATION_CACHE_DIR names another folder, with
JAX's own rules.
"""

import hashlib
import os
import platform
from pathlib import Path

from generalist.system.cache import VARIABLE as FOLDER
from generalist.system.cache import cache_folder
from generalist.system.console import note
from generalist.system.switches import is_on

VARIABLE = "GENERALIST_COMPILED"
LARGEST = 4 * 2**30
MOST = "JAX_COMPILATION_CACHE_MAX_SIZE"
PATIENCE = 1.0  # seconds to wait for another process that has locked the folder
SETTINGS = {
    MOST: str(LARGEST),
    # Small programs too: a prompt runs dozens, of a tenth of a second each.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def use_compilation_cache() -> None:
    """Keeps compiled programs from now on, in this process and those that it starts; call it before jax is imported.

    Where the folder can't be written it keeps none, and says so: no command needs it.

    Raises:
        ValueError: GENERALIST_COMPILED is neither on nor off.
    """
    if not is_on(VARIABLE) or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "compiled" / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.environ.get(MOST) != "-1":  # without a limit JAX writes no such notes
            remove_unfinished(folder)
    except OSError as error:
        note(f"compiled programs are not kept in {folder} ({error.strerror}): name another folder with {FOLDER}")
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def remove_unfinished(folder: Path) -> None:
    """Removes programs of an existing folder that a process was writing when it was killed. JAX writes a program, and then when
    it was last used: without that note a program may be half of one, and JAX would fail to keep any other.

    Raises:
        OSError: the folder can't be written.
    """
    from filelock import FileLock, Timeout  # the lock under which JAX writes

    try:
        with FileLock(folder / ".lockfile", timeout=PATIENCE):
            for program in folder.glob("*-cache"):
                if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                    program.unlink()
    except Timeout:
        return  # a later start removes them


def processor() -> str:
    """What tells processors apart on which a compiled program may not run: a home folder may be shared by several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    told = ("model name", "flags", "Features", "CPU part")
    known = sorted({line for line in lines if line.startswith(told)} or lines[:1])
    return hashlib.sha256("\n".join([platform.machine(), *known]).encode()).hexdigest()[:16]
