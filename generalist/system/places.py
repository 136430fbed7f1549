"""Checks of output paths, made before a command computes anything."""

import os
from pathlib import Path


def check_file(path: Path, option: str) -> None:
    """Checks that a file can be written.

    Args:
        option: name of the option that gives it, for the message.

    Raises:
        IsADirectoryError, NotADirectoryError, PermissionError: it cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{option} {path} is a folder: name a file")
    check_folder(path.parent, option)


def check_new_file(path: Path, option: str) -> None:
    """Checks that a file can be written and does not exist yet.

    Raises:
        FileExistsError: it exists.
        NotADirectoryError, PermissionError: it cannot be written.
    """
    # Nothing is ever overwritten silently: results of hours may be in it.
    if path.exists():
        raise FileExistsError(f"{path} exists already: name another file with {option}, or delete it")
    check_folder(path.parent, option)


def check_new_folder(path: Path) -> None:
    """Checks that a folder does not exist yet and can be created.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: it exists or cannot be created.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already: name another folder, or delete it")
    check_folder(path.parent, "FOLDER")


def check_folder(path: Path, option: str) -> None:
    """Checks that a folder can be written into, or created.

    Args:
        option: name of the option that gives it, for the message.

    Raises:
        NotADirectoryError, PermissionError: it can neither be written into nor created.
    """
    # The nearest ancestor that exists decides: everything below it would be created.
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{option}: {there} is a file, not a folder: name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{option}: {there} is not writable: name another folder")
