"""The repository's shape: what is installed, what shadows what, and that the pins agree."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("tokenizers", "envs", "eval")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()

# Words that never belong in a file of the repository, spelled so that this file does not hold them either.
HOST = re.compile(r"https?://[a-z0-9.-]*(p[y]pi|p[y]thonhosted|n[p]mjs|d[e]bian)|index[-]url|find[-]links")
MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.])/(w[o]rk|f[a]rm|r[o]ot|h[o]me)/")


@pytest.mark.parametrize("folder", LINKED)
def test_root_folders_are_reached_through_links(folder: str) -> None:
    link = ROOT / "generalist" / folder
    assert link.is_symlink() and link.resolve() == ROOT / folder
    assert not (ROOT / folder / "__init__.py").exists(), "it would shadow other packages of that name"


def test_our_tokenizers_and_huggingfaces_live_in_one_process_at_the_root() -> None:
    code = """
import generalist, tokenizers, generalist.tokenizers.vocabulary as ours
assert tokenizers.Tokenizer.__module__ == "tokenizers", tokenizers
assert "site-packages" in tokenizers.__file__
assert ours.Vocabulary
import generalist.envs.task, generalist.eval.results.scores
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_package_is_listed() -> None:
    inside = [path for path in (ROOT / "generalist").iterdir() if path.is_dir()]
    deeper = [below for path in inside for below in path.iterdir() if below.is_dir()]
    found = [path for path in (*inside, *deeper) if list(path.glob("*.py"))]
    names = (".".join(path.relative_to(ROOT).parts) for path in found)
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(["generalist", *names])
    assert not [path for path in deeper for below in path.iterdir() if below.is_dir() and list(below.glob("*.py"))]


@pytest.mark.slow
def test_wheel_installs_nothing_but_generalist(tmp_path: Path) -> None:
    build = "import sys, setuptools.build_meta as build; print(build.build_wheel(sys.argv[1]))"
    copy = tmp_path / "copy"  # building writes into the tree
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            target.write_bytes(source.read_bytes())
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=copy, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in files} == {"generalist", "generalist-0.1.0.dist-info"}
    for needed in ("generalist/tokenizers/vocabulary.py", "generalist/envs/reference_scores.json"):
        assert needed in files


def test_constraints_are_exact_and_the_same_for_pip_and_uv() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.+]+(; python_version (<|>=) '3.12')?", pin) for pin in PINS)
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == PINS, "copy constraints.txt into pyproject.toml"
    assert "mujoco==3.3.0" in PINS, "Meta-World needs it"
    assert not [pin for pin in PINS if re.match("(torch|tensorflow)=", pin)]


def test_no_file_names_a_package_host_or_a_path_of_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    found = []
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if not path.is_file() or path.is_symlink():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), 1):
            if HOST.search(line) or MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert not found
