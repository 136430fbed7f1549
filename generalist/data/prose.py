"""English prose that is on every machine already: Python's language reference and installed packages' documentation.

`pydoc_data.topics` is the language reference as text; numpy, scipy and JAX carry megabytes of it in their sources,
which are parsed, never imported. What comes out is kept in the data folder, so that only the first run pays for it.
"""

import ast
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

Split = Literal["train", "heldout"]

PACKAGES = ("numpy", "scipy", "jax")
HELD_OUT_PERCENT = 6
SHORTEST = 200  # characters: below that a docstring is a label, not prose
CLEANING = 1  # raise it when the text below comes out differently, and cached texts are made anew

_EXAMPLE = re.compile(r"^ *(>>>|\.\.\.)( |$)")
_UNDERLINE = re.compile(r"^ *([-=*~^#\"])\1{2,} *$")
_PLACEHOLDER = re.compile(r"^ *(%\(\w+\)s|\{\w+\}) *$")  # filled in when the package is imported, which we don't
_EMPTY_END = re.compile(r"\s*\n *Examples?:? *$")  # the heading over examples that are gone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One text."""

    name: str
    """Where it is from: `numpy/linalg/_linalg.py:norm@2594` or `topics/assert:`."""
    text: str


def prose(folder: Path, split: Split, megabytes: float = 6.0) -> list[Document]:
    """The documents of one split, in a fixed order.

    Whole source files are held out, not single docstrings, since neighbours repeat each other's sentences; a held-out
    text of which 30% of the lines stand in the training texts is left out as well.

    Args:
        folder: where the texts are kept for the next run (`folder/prose-*.jsonl`).
        split: `train` or `heldout`.
        megabytes: of both splits together, about; a smaller set is the beginning of a larger one.
    """
    if megabytes <= 0:
        raise ValueError(f"megabytes must be above 0, got {megabytes}")
    cache = folder / f"prose-{_fingerprint(megabytes)}.jsonl"
    documents = _read(cache)
    if documents is None:
        documents = collect(megabytes)
        _write(cache, documents)
    return _split(documents, split)


def collect(megabytes: float) -> list[Document]:
    """Documents of this machine, cleaned, each text once, until there are enough and some of either split.

    Sources come in the order of their names' hashes, so that a small set is as mixed as a large one, and quick to make.
    """
    left, texts, chosen = megabytes * 1e6, set(), []
    sources = _sources()
    for name in sorted(sources, key=_hash):
        if left <= 0 and len({is_held_out(document.name) for document in chosen}) == 2:
            break
        for document in _documents(name, sources[name]):
            if document.text not in texts:
                texts.add(document.text)
                chosen.append(document)
                left -= len(document.text.encode())
    return chosen


def _sources() -> dict[str, Path | None]:
    """Every source by name: a file, or None for a topic of the language reference."""
    found: dict[str, Path | None] = {f"topics/{topic}": None for topic in topics}
    for package in PACKAGES:
        root = _source_folder(package)
        for file in root.rglob("*.py"):
            if "tests" not in file.relative_to(root).parts:
                found[f"{package}/{file.relative_to(root).as_posix()}"] = file
    return found


def _documents(source: str, file: Path | None) -> Iterator[Document]:
    """The texts of one source that are long enough, cleaned."""
    texts = _docstrings(file) if file else [("", topics[source.removeprefix("topics/")])]
    for label, text in texts:
        if len(text := clean(text)) >= SHORTEST:
            yield Document(name=f"{source}:{label}", text=text)


def clean(text: str) -> str:
    """Text without interactive examples and underlines; runs of empty lines become one.

    An example's output ends at the next empty line, as in doctest.
    """
    kept: list[str] = []
    in_example = False
    for line in text.splitlines():
        in_example = bool(_EXAMPLE.match(line)) or (in_example and bool(line.strip()))
        if in_example or _UNDERLINE.match(line) or _PLACEHOLDER.match(line):
            continue
        if line.strip() or (kept and kept[-1]):
            kept.append(line.rstrip())
    return _EMPTY_END.sub("", "\n".join(kept).strip())


def _docstrings(file: Path) -> Iterator[tuple[str, str]]:
    """The docstrings of a source file, each with the name and line of what it documents."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            label = "" if isinstance(node, ast.Module) else f"{node.name}@{node.lineno}"
            yield label, ast.get_docstring(node) or ""


def _source_folder(package: str) -> Path:
    """Where a package's sources are, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the documentation of {package} is part of the prose, but {package} is not installed")
    return Path(spec.submodule_search_locations[0])


def _split(documents: list[Document], split: Split) -> list[Document]:
    """The documents of one split; from the held-out ones, those that repeat the training texts are dropped."""
    train = [document for document in documents if not is_held_out(document.name)]
    if split == "train":
        return train
    known = {line for document in train for line in _sentences(document.text)}
    return [
        document for document in documents if is_held_out(document.name) and _share_known(document.text, known) < 0.3
    ]


def is_held_out(name: str) -> bool:
    """Whether the document of this name belongs to the held-out texts: decided by its source file."""
    return _hash(name.partition(":")[0]) % 100 < HELD_OUT_PERCENT


def _sentences(text: str) -> list[str]:
    """Lines that are long enough to tell one text from another."""
    return [stripped for line in text.splitlines() if len(stripped := line.strip()) >= 30]


def _share_known(text: str, known: set[str]) -> float:
    """Which share of a text's lines is among the known ones."""
    lines = _sentences(text)
    return sum(line in known for line in lines) / len(lines) if lines else 1.0


def _hash(name: str) -> int:
    """A number that is the same on every machine, unlike Python's own hash."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _fingerprint(megabytes: float) -> str:
    """Changes when the sources, the cleaning or the size do."""
    versions = [f"{package}={importlib.metadata.version(package)}" for package in PACKAGES]
    return f"{_hash(' '.join([*versions, platform.python_version(), f'{CLEANING} {SHORTEST} {megabytes}'])):016x}"


def _read(cache: Path) -> list[Document] | None:
    """The cached documents, or None if there are none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with cache.open(encoding="utf-8") as lines:
            return [Document(**json.loads(line)) for line in lines]
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{cache} is damaged ({error}): delete it, and it is made again") from error


def _write(cache: Path, documents: list[Document]) -> None:
    """Writes the cache so that it is either whole or absent."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(document)) + "\n" for document in documents)
    os.replace(temporary, cache)
