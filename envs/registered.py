"""Finds the module that registers an environment's id, so that another process can make the environment too."""

import os
import subprocess
import sys
from typing import Any

import gymnasium as gym

from generalist.system.console import note

# Runs in a process that has imported only Gymnasium: imports the modules in turn and prints the first that registers the id.
_TRY = """
import importlib, sys
import gymnasium
id, *modules = sys.argv[1:]
for module in ("", *modules):
    try:
        if module: importlib.import_module(module)
    except Exception: continue  # whatever is wrong with it, it is not the module that registers the id
    if id in gymnasium.registry:
        print("found:" + module)
        break
"""
_SECONDS = 120


def importable_id(id: str) -> str:
    """The id by which any process can make the environment: `module:Id-v0` if another module than Gymnasium registers it.

    If no module does, the id is returned unchanged, is known to this process alone, and a note goes to standard error.
    """
    module = None if ":" in id else _module_of(id)
    # Gymnasium's own environments, ids with their module, and unknown ids, which `gymnasium.make` reports.
    if module is None or module.partition(".")[0] == "gymnasium":
        return id
    # The package first: importing its top level is what users of the id do themselves.
    found = None if module == "__main__" else _registering(id, [module.partition(".")[0], module])
    if found is None:
        note(
            f"no module that can be imported registers {id}, so other processes cannot make it, including those of training and "
            f"evaluation: put its class and gymnasium.register into a module, and name the folder module:{id}=FOLDER"
        )
    return f"{found}:{id}" if found else id


def _module_of(id: str) -> str | None:
    """The module of an environment's class; None if the id is not registered in this process."""
    try:
        entry: Any = gym.spec(id).entry_point
    except gym.error.Error:
        return None
    return entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", None)


def _registering(id: str, modules: list[str]) -> str | None:
    """The first of the modules whose import registers the id, "" if Gymnasium itself knows it, None if no import helps."""
    # A fresh process, since this one may have registered the id by hand. It gets this one's module path, but not the empty
    # entry, which would mean its own working folder.
    path = os.pathsep.join(path for path in sys.path if path)
    tried = subprocess.run(
        [sys.executable, "-c", _TRY, id, *dict.fromkeys(modules)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    return next((line.partition(":")[2] for line in tried.stdout.splitlines() if line.startswith("found:")), None)
