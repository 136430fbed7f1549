"""English prose that every machine already has: Python's language reference and the documentation in installed packages.

`pydoc_data.topics` is the language reference as text; numpy, scipy and JAX contain megabytes of docstrings in their sources,
which are parsed, never imported. The cleaned texts are kept in the data folder, so that only the first run makes them.
"""

import ast
import dataclasses
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

from generalist.data.stable_hash import stable_hash

Split = Literal["train", "heldout"]

PACKAGES = ("numpy", "scipy", "jax")
HELD_OUT_PERCENT = 6  # of the source files
SHORTEST = 200  # characters: a shorter docstring is a label, not prose
CLEANING = 1  # to be raised with every change of the cleaning, so that cached texts are made again
REPEATED = 0.3  # share of a held-out text's lines that training texts have too, above which it is dropped
LINE = 30  # characters from which on a line is taken to identify its text

_EXAMPLE = re.compile(r"^ *(>>>|\.\.\.)( |$)")
_UNDERLINE = re.compile(r"^ *([-=*~^#\"])\1{2,} *$")
_PLACEHOLDER = re.compile(r"^ *(%\(\w+\)s|\{\w+\}) *$")  # would be filled in when the package is imported
_EMPTY_END = re.compile(r"\s*\n *Examples?:? *$")  # the heading of examples that were removed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One text."""

    name: str
    """Its origin: `numpy/linalg/_linalg.py:norm@2594` or `topics/assert:`."""
    text: str


def prose(folder: Path, split: Split, megabytes: float = 6.0) -> list[Document]:
    """The documents of one split, in a fixed order.

    Whole source files are held out, not single docstrings, since neighbours repeat each other's sentences; a held-out text that
    shares 30% or more of its lines with training texts is dropped.

    Args:
        folder: keeps the texts for the next run (`folder/prose-*.jsonl`).
        split: `train` or `heldout`.
        megabytes: approximate size of both splits together; a smaller set is the beginning of a larger one.

    Raises:
        ValueError: `megabytes` is not positive, or the kept file is damaged.
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
    """Documents of this machine, cleaned, each text once, until the size is reached and both splits have some.

    Sources come in the order of their names' hashes, so that a small set is as mixed as a large one, and quick to make.
    """
    left, texts, chosen = megabytes * 1e6, set(), []
    sources = _sources()
    for name in sorted(sources, key=stable_hash):
        if left <= 0 and len({is_held_out(document.name) for document in chosen}) == 2:
            break
        for document in _documents(name, sources[name]):
            # Docstrings are copied between functions and classes; a copy in the other split would leak it.
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
    """The cleaned texts of one source that are long enough."""
    texts = _docstrings(file) if file else [("", topics[source.removeprefix("topics/")])]
    for label, text in texts:
        # Measured after cleaning: a long docstring may consist of examples alone.
        if len(text := clean(text)) >= SHORTEST:
            yield Document(name=f"{source}:{label}", text=text)


def clean(text: str) -> str:
    """Removes interactive examples and underlines; several empty lines become one.

    An example's output ends at the next empty line, as in doctest.
    """
    kept: list[str] = []
    in_example = False
    for line in text.splitlines():
        in_example = bool(_EXAMPLE.match(line)) or (in_example and bool(line.strip()))
        if in_example or _UNDERLINE.match(line) or _PLACEHOLDER.match(line):
            continue
        # An empty line is kept after a text line only, so none stands first and no two follow each other.
        if line.strip() or (kept and kept[-1]):
            kept.append(line.rstrip())
    return _EMPTY_END.sub("", "\n".join(kept).strip())


def _docstrings(file: Path) -> Iterator[tuple[str, str]]:
    """The docstrings of a source file, each with the name and line of what it documents."""
    # Parsed, not imported: that runs no code of the package, and finds functions that are private or need a GPU.
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # With the line, since methods of several classes share a name.
            label = "" if isinstance(node, ast.Module) else f"{node.name}@{node.lineno}"
            yield label, ast.get_docstring(node) or ""


def _source_folder(package: str) -> Path:
    """The folder of a package's sources, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the documentation of {package} is part of the prose, but {package} is not installed")
    return Path(spec.submodule_search_locations[0])


def _split(documents: list[Document], split: Split) -> list[Document]:
    """The documents of one split, without held-out ones that repeat training texts."""
    train = [document for document in documents if not is_held_out(document.name)]
    if split == "train":
        return train
    # By lines, since docstrings of different files are often copies with a few words changed.
    known = {line for document in train for line in _long_lines(document.text)}
    held_out = (document for document in documents if is_held_out(document.name))
    return [document for document in held_out if _share_known(document.text, known) < REPEATED]


def is_held_out(name: str) -> bool:
    """Whether the document of this name belongs to the held-out texts, which its source file decides."""
    return stable_hash(name.partition(":")[0]) % 100 < HELD_OUT_PERCENT


def _long_lines(text: str) -> list[str]:
    """Lines that are long enough to distinguish one text from another."""
    return [stripped for line in text.splitlines() if len(stripped := line.strip()) >= LINE]


def _share_known(text: str, known: set[str]) -> float:
    """Share of a text's long lines that are among the known ones; 1 for a text without any, which cannot be judged."""
    lines = _long_lines(text)
    return sum(line in known for line in lines) / len(lines) if lines else 1.0


def _fingerprint(megabytes: float) -> str:
    """A number that changes with the sources, the cleaning and the size."""
    versions = [f"{package}={importlib.metadata.version(package)}" for package in PACKAGES]
    settings = f"{CLEANING} {SHORTEST} {megabytes}"
    # Python's version too: the language reference comes with it.
    return f"{stable_hash(' '.join([*versions, platform.python_version(), settings])):016x}"


def _read(cache: Path) -> list[Document] | None:
    """The cached documents; None if there is no such file.

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
    """Writes the cache so that it is either complete or absent."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    # Two runs may write at once: each has its own temporary file, and both write the same content.
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(document)) + "\n" for document in documents)
    os.replace(temporary, cache)
