"""HDF5 files of somebody else's, opened for reading; links that lead out of a file are refused."""

import contextlib
import re
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import numpy as np

from generalist.data.formats.arrays import check_size, native, text
from generalist.data.formats.faults import BrokenRecord, Unread, naming
from generalist.data.formats.handles import Handles
from generalist.data.formats.places import Place

ENDINGS = (".hdf5", ".h5", ".hdf")
OPEN = 16  # files that are kept open
# A hard link may lead back to a group above it, so that a walk over all groups would never end.
DEEPEST, MOST = 16, 10_000  # groups within groups, and data sets in one of them: more is a circle of links


def is_hdf5(place: Place) -> bool:
    """Whether a file is called like HDF5 files."""
    # macOS leaves files such as ._demo.hdf5 on disks of other systems, which are none.
    return place.suffix in ENDINGS and not place.name.startswith(".")


def hdf5_files(place: Place) -> list[Place]:
    """A file itself, or the HDF5 files of a folder by their names."""
    if not place.is_dir():
        return [place] if is_hdf5(place) else []
    return sorted((file for file in place.iterdir() if is_hdf5(file)), key=lambda file: file.name)


class Opened:
    """An HDF5 file that is open.

    Raises:
        ImportError: h5py is not installed.
        OSError: it is none.
    """

    def __init__(self, place: Place):
        h5py = package()
        # h5py gets an open stream, not a path, so that files in buckets are read too.
        with contextlib.ExitStack() as stack:
            self.stream: BinaryIO = stack.enter_context(place.open("rb"))
            self.content: Any = stack.enter_context(h5py.File(self.stream, "r"))
            """`h5py.File`"""
            # Only now, since a file that is no HDF5 must be closed at once.
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()


FILES: Handles[Opened] = Handles(Opened, OPEN)
"""Of this process."""


@contextlib.contextmanager
def opened(place: Place, where: str) -> Iterator[Opened]:
    """A file until the end of a block; whatever goes wrong with it names `where`.

    Raises:
        BrokenRecord: it can't be read.
        ImportError: h5py is not installed.
    """
    with naming(where), FILES.use(place) as file:
        yield file


def package() -> Any:
    """h5py.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 files are read with h5py: pip install 'generalist[formats]'") from error
    return h5py


def has(group: Any, name: str) -> bool:
    """Whether a group has a member, wherever it leads."""
    return _link(group, name) is not None


def find(group: Any, path: str, where: str) -> Any:
    """What stands under a path of names joined with `/`; itself if the path is empty.

    Raises:
        BrokenRecord: there is nothing.
        Unread: a link on the way leads to another file or place.
    """
    for name in path.split("/") if path else ():
        # The kind of a link is asked before it is followed: an external link makes HDF5 open any file of the
        # machine, and soft links can lead in circles.
        kind = _link(group, name)
        if kind is None:
            raise BrokenRecord(f"{where} has no {name!r} in {group.name!r}: copy it again, or take it out")
        if kind != package().h5l.TYPE_HARD:
            raise Unread(
                f"{where}: {name!r} is a link to another place, which is not followed: put what it points to in its place "
                "(h5copy -f soft,ext)"
            )
        group = group[name]
    return group


def _link(group: Any, name: str) -> int | None:
    """The kind of the link that a member of a group is; None if there is none."""
    key = name.encode()
    if not isinstance(group, package().Group) or not group.id.links.exists(key):
        return None
    return int(group.id.links.get_info(key).type)


def arrays(group: Any, where: str, unread: dict[str, str], passed_over: Collection[str] = ()) -> Iterator[str]:
    """The paths of all arrays in a group and in the groups within it.

    Args:
        unread: is filled with the paths that are links, and the reason not to follow them.
        passed_over: members that are no matter.

    Raises:
        BrokenRecord: there are too many.
    """
    h5py = package()
    # Not `visititems`, which follows no link and tells of none: what is left out must be named.
    found, groups = 0, [("", group)]
    while groups:
        path, group = groups.pop()
        # Asked before a group's members are listed, whose number a damaged file can claim to be anything.
        if path.count("/") > DEEPEST or len(group) > MOST or found > MOST or len(groups) > MOST:
            raise BrokenRecord(f"{where} has more than {DEEPEST} groups in groups, or {MOST:,} arrays: divide it")
        for name in group:
            inner = f"{path}/{name}" if path else name
            if inner in passed_over:
                continue
            try:
                member = find(group, name, where)
            except Unread as error:
                unread[inner] = str(error)
                continue
            if isinstance(member, h5py.Group):
                groups.append((inner, member))
            elif isinstance(member, h5py.Dataset):
                found += 1
                yield inner


def numbered(group: Any, pattern: str, where: str) -> list[str]:
    """Names of a group's members that a pattern matches, in the order of the number that it catches.

    Raises:
        BrokenRecord: it is no group.
    """
    if not isinstance(group, package().Group):
        raise BrokenRecord(f"{where}: {group.name!r} is no group: copy it again")
    found = [(int(match[1]), name) for name in group if (match := re.fullmatch(pattern, name))]
    # By number: by name, demo_10 would come before demo_2.
    return [name for _, name in sorted(found)]


def attribute(thing: Any, name: str, where: str) -> str | np.ndarray | None:
    """An attribute of a group or an array, if it has it and it is a text or numbers.

    Raises:
        BrokenRecord: it is too large.
        ValueError, OSError: it can't be read, for whoever opened the file. A damaged text may make HDF5 take 4 GB until then.
    """
    if name not in thing.attrs:
        return None
    about = thing.attrs.get_id(name)
    # h5py makes the array before it reads.
    check_size(about.shape or (), about.dtype, f"{where}: the attribute {name!r}")
    value = thing.attrs[name]
    if isinstance(value, str | bytes):
        return text(value)
    # What is neither, such as references to other objects, means nothing outside of its file.
    if isinstance(value, package().Empty) or np.asarray(value).dtype.kind not in "fiub":
        return None
    return native(np.asarray(value))
