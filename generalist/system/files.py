"""Files and folders that are written completely or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is either complete or absent, even if the process is killed."""
    # The process's number keeps two writers apart; the name in the same folder keeps `replace` on one file system, so atomic.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that is either complete or absent.

    Raises:
        FileExistsError: it exists.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        if path.exists():  # now, though it did not when the command began
            raise FileExistsError(f"{path} exists already: name another file, or delete it")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the name `folder` when the block ends, and is deleted if it fails.

    Raises:
        FileExistsError: the folder exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: name another folder, or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, so on one file system, where renaming is atomic.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary) / "whole"  # with the permissions of new folders, which the temporary one lacks
        whole.mkdir()
        yield whole
        whole.rename(folder)
