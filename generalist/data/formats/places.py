"""Where data are: local folders, `gs://` and `s3://` alike, through universal_pathlib and fsspec.

A local place is a plain `pathlib.Path`; one with a scheme has the same methods and opens through fsspec.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import fsspec
from upath import UPath

Place = Path | UPath
"""A file or a folder, local or in a bucket."""

# fsspec takes both names for Google's storage.
EXTRAS = {"gs": "cloud", "gcs": "cloud", "s3": "cloud"}


def place(where: str | Place) -> Place:
    """The place that a setting names.

    Raises:
        ImportError: its scheme needs a package that is not installed.
        ValueError: the scheme is unknown.
    """
    if isinstance(where, Path | UPath):
        return where
    # Not urllib, which takes `C:` of a Windows path for a scheme.
    scheme = re.match(r"([a-z0-9+]+)://", where)
    if scheme is None:
        return Path(where)
    try:
        # Imports what the scheme needs: otherwise the first file would tell the missing package, far from the setting.
        fsspec.get_filesystem_class(scheme[1])
        return UPath(where)
    except ImportError as error:
        extra = EXTRAS.get(scheme[1])
        remedy = f"pip install 'generalist[{extra}]'" if extra else "install it, or give a folder, gs:// or s3://"
        raise ImportError(f"{where} can't be read without another package ({error}): {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{where} has a scheme that is not known ({error}): give a folder, gs:// or s3://") from error


def inside(folder: Place, name: str, told_by: object) -> Place:
    """The place within a folder that a file of somebody else's names.

    Args:
        told_by: the file and record that name it, for the message.

    Raises:
        ValueError: the name leads out of the folder (it is absolute, has a scheme or `..`), or no file can have it.
    """
    # A backslash separates folders on Windows alone, so that a name with one means something else on other
    # machines.
    path = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or path.is_absolute() or ".." in path.parts or "://" in name:
        raise ValueError(f"{told_by} names {name!r:.80}, which is outside {folder}: only names within it are followed")
    return folder / name


def stamp(file: Place) -> str:
    """What changes when a file does: its address, size and time of change; an index or statistics that were computed from the
    file are valid as long as it stays the same.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(file, UPath):
        info = file.fs.info(file.path)
        # Which of these a bucket has differs between stores; an ETag changes with the content.
        changed = (
            info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("updated") or info.get("created")
        )
        return f"{file} {info.get('size')} {changed}"
    about = file.stat()
    # Nanoseconds: two versions of a file may be written within the same second.
    return f"{file.resolve()} {about.st_size} {about.st_mtime_ns}"


def size(file: Place) -> int:
    """Bytes of a file."""
    return file.stat().st_size


def read_range(file: Place, offset: int, count: int) -> bytes:
    """`count` bytes of a file from `offset` on; of a file in a bucket no more than those are fetched.

    Raises:
        ValueError: the file ends before; it has changed since it was indexed, or was cut off.
        OSError: it can't be read.
    """
    if isinstance(file, UPath):
        # A range of no bytes is refused by some stores.
        content = file.fs.cat_file(file.path, start=offset, end=offset + count) if count else b""
    else:
        with file.open("rb") as opened:
            opened.seek(offset)
            content = opened.read(count)
    # Local files and most stores give what is there without an error.
    if len(content) != count:
        raise ValueError(f"{file} ends within the bytes {offset:,} to {offset + count:,}: get it again")
    return content


def missing(files: Iterable[Place]) -> list[Place]:
    """Those that are not there."""
    return [file for file in files if not file.exists()]
