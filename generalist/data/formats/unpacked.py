"""Compressed files that have no random access, unpacked once and kept beside the indices.

<folder>/unpacked-<fingerprint>         one per compressed file, written whole or not at all
"""

import gzip
import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from generalist.data.files import DocumentError
from generalist.data.formats.places import Place, size, stamp

PACKED = (".gz", ".tgz", ".zst", ".zip")
"""How names of compressed files end; a zip holds one file."""
# A quarter of a terabyte.
LARGEST = 2**38  # bytes of an unpacked file
RATIO, RATIO_FROM = 200, 2**26  # text shrinks to a tenth: more than this many times is meant to fill the disk
ROOM = 2**30  # bytes that stay free on the disk
CHUNK = 2**22


def is_packed(file: Place) -> bool:
    """Whether a file is compressed, by its name."""
    return file.name.lower().endswith(PACKED)


def unpacked(file: Place, folder: Path) -> Place:
    """A file without its compression: itself if it has none, else its copy in a folder, made if it is not there yet.

    Raises:
        DocumentError: it is damaged, cut off, a bomb, or there is no room for it; no copy stays then.
    """
    if not is_packed(file):
        return file
    copy = folder / f"unpacked-{hashlib.sha256(stamp(file).encode()).hexdigest()[:32]}"
    # It has its name only when it is whole, and a changed file has another one.
    if copy.exists():
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may unpack the same file; each writes its own, and the last rename wins with the same
    # content.
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}")
    try:
        with _opened(file) as packed, temporary.open("wb") as written:
            _copy(packed, written, file, folder)
        os.replace(temporary, copy)
    finally:
        temporary.unlink(missing_ok=True)
    return copy


def _copy(packed: Any, written: Any, file: Place, folder: Path) -> None:
    most, count = max(RATIO_FROM, RATIO * size(file)), 0
    while chunk := packed.read(CHUNK):
        # Counted while it is written, as the sizes that gzip and zip declare are not to be trusted.
        count += len(chunk)
        if count > min(most, LARGEST):
            raise DocumentError(
                f"{file} unpacks to more than {min(most, LARGEST):,} bytes: unpack it yourself if it is sound"
            )
        if shutil.disk_usage(folder).free < ROOM + len(chunk):
            raise DocumentError(f"{file} does not fit into {folder} unpacked: make room there, or unpack it elsewhere")
        written.write(chunk)


@contextmanager
def _opened(file: Place) -> Iterator[Any]:
    """The content of a compressed file.

    Raises:
        DocumentError: it is damaged; also what goes wrong until it is closed.
    """
    try:
        with file.open("rb") as raw:
            if file.name.lower().endswith((".gz", ".tgz")):
                # Also files of several members, one behind the other, such as `cat a.gz b.gz` makes; the checksum
                # of each is compared.
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield stream
            elif file.name.lower().endswith(".zst"):
                import pyarrow

                with pyarrow.CompressedInputStream(raw, "zstd") as frames:
                    yield frames
            else:
                with zipfile.ZipFile(raw) as archive, archive.open(_only(archive, file)) as member:
                    yield member
    except DocumentError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DocumentError(f"{file} can't be unpacked ({error}): get it again") from error


def _only(archive: zipfile.ZipFile, file: Place) -> zipfile.ZipInfo:
    """The one file of an archive; its name is not used."""
    # macOS adds a folder __MACOSX with what its file system knows of each file.
    found = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX")]
    if len(found) != 1:
        raise DocumentError(f"{file} holds {len(found)} files, where one is read: unpack it yourself")
    return found[0]
