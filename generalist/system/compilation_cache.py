"""Compiled programs are kept between runs, so that only the first start of a kind waits for the compiler.

They lie in the cache's folder (`generalist.system.cache`), at most `LARGEST` bytes of them; the least recently used go first.
Several processes may use them at once. GENERALIST_COMPILED=off keeps none; JAX_COMPILATION_CACHE_DIR names another folder, with
JAX's own rules.
"""

import hashlib
import os
import platform
from pathlib import Path

from generalist.system.cache import cache_folder
from generalist.system.switches import is_on

VARIABLE = "GENERALIST_COMPILED"
LARGEST = 4 * 2**30
SETTINGS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(LARGEST),
    # Small programs too: a prompt runs dozens, of a tenth of a second each.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def use_compilation_cache() -> None:
    """Keeps compiled programs from now on, in this process and those that it starts; call it before jax is imported.

    Raises:
        ValueError: GENERALIST_COMPILED is neither on nor off.
    """
    if not is_on(VARIABLE) or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "compiled" / processor()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    remove_unfinished(folder)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def remove_unfinished(folder: Path) -> None:
    """Removes programs that a process was writing when it was killed. JAX writes a program, and then when it was last used:
    without that note a program may be half of one, and JAX would fail to keep any other."""
    if not folder.is_dir():
        return
    from filelock import FileLock  # the lock under which JAX writes

    with FileLock(folder / ".lockfile"):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()


def processor() -> str:
    """What tells processors apart on which a compiled program may not run: a home folder may be shared by several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    told = ("model name", "flags", "Features", "CPU part")
    known = sorted({line for line in lines if line.startswith(told)} or lines[:1])
    return hashlib.sha256("\n".join([platform.machine(), *known]).encode()).hexdigest()[:16]
