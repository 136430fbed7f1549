"""Where a command writes: looked at before it computes what it writes there."""

import os
from pathlib import Path


def check_file(path: Path, option: str) -> None:
    """Whether a file can be written.

    Args:
        option: what names it.

    Raises:
        IsADirectoryError, NotADirectoryError, PermissionError: it can't.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{option} {path} is a folder: name a file")
    check_folder(path.parent, option)


def check_new_file(path: Path, option: str) -> None:
    """The same of a file that must not be there yet.

    Raises:
        FileExistsError: it is.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already: name another file with {option}, or delete it")
    check_folder(path.parent, option)


def check_new_folder(path: Path) -> None:
    """Whether a folder can be made that is not there yet.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: it can't.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already: name another folder, or delete it")
    check_folder(path.parent, "FOLDER")


def check_folder(path: Path, option: str) -> None:
    """Whether a folder can be written into, or made.

    Args:
        option: what names it, or what is to be in it.

    Raises:
        NotADirectoryError, PermissionError: it can't.
    """
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{option}: {there} is a file, so that nothing can be in it: name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{option}: nothing can be written into {there}: name another folder")
