"""An index per file of data: where its records begin and how long they are. Built once, by several processes, and kept.

<folder>/<kind>-<fingerprint>.npz        one per data file, or per group of small files; written whole or not at all
"""

import dataclasses
import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from generalist.data.formats.episodes import Opening
from generalist.data.formats.places import Place, size, stamp
from generalist.system.processes import run_jobs
from generalist.system.progress import counting

Arrays = Mapping[str, np.ndarray]
Scan = Callable[[Place], Arrays]
"""Reads a file for its index; a function of a module or a partial of one, since other processes call it."""
Group = tuple[Place, ...]
"""Files that have one index."""

FORMAT = 1
"""Of indices; raise it when a scan gives other arrays."""
LARGE = 2**26  # bytes: below, starting processes would take longer than scanning, and so would looking at its progress
# A million episodes in files of their own would otherwise need as many indices, and as many openings at every
# start.
GROUP = 1000  # small files that have one index


def indexed(files: Sequence[Place], scan: Scan, *, kind: str, opening: Opening) -> list[Arrays]:
    """The index of each file: taken from the folder of indices if the file is as it was, or scanned and kept.

    Args:
        kind: of the scan, with all settings that its result depends on.

    Raises:
        ValueError, OSError: what `scan` raises.
    """
    return _indexed([(file,) for file in files], functools.partial(_scan_first, scan), kind=kind, opening=opening)


def grouped(files: Sequence[Place], scan: Scan, *, kind: str, opening: Opening) -> Arrays:
    """The joined indices of many small files, such as one per episode, which are kept together.

    Args:
        scan: gives the same arrays for each file, which are joined along their first axis.
        kind: of the scan, with all settings that its result depends on.

    Raises:
        ValueError, OSError: what `scan` raises.
    """
    groups = [tuple(files[start : start + GROUP]) for start in range(0, len(files), GROUP)]
    found = _indexed(groups, functools.partial(_scan_all, scan), kind=kind, opening=opening)
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]} if found else {}


def _scan_first(scan: Scan, files: Group) -> Arrays:
    return scan(files[0])


def _scan_all(scan: Scan, files: Group) -> Arrays:
    # One file that fails ends the group: scans of such formats note what is broken and raise nothing.
    found = [scan(file) for file in files]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _indexed(groups: Sequence[Group], scan: Callable[[Group], Arrays], *, kind: str, opening: Opening) -> list[Arrays]:
    # Taken from the folder first, so that only what is new or changed is scanned.
    kept = [_kept(group, kind, opening.index) for group in groups]
    found: list[Arrays | None] = [None if path is None else read_arrays(path) for path in kept]
    lacking = [number for number, arrays in enumerate(found) if arrays is None]
    jobs = [_Job(groups[number], scan, kept[number]) for number in lacking]
    large = sum(size(file) for job in jobs for file in job.files) > LARGE
    several = opening.workers > 1 and len(jobs) > 1 and large
    with counting(Console(stderr=True, quiet=not large), transient=True, disable=not large) as progress:
        bar = progress.add_task(f"indexing {kind.partition(' ')[0]}", total=len(jobs))
        # Each worker writes its index itself: an interrupted start goes on where it was.
        done = run_jobs(_work, jobs, workers=opening.workers) if several else ((job, _work(job)) for job in jobs)
        scanned = {}
        for job, arrays in done:
            scanned[job.files] = arrays
            progress.advance(bar)
    for number in lacking:
        found[number] = scanned[groups[number]]
    return [arrays for arrays in found if arrays is not None]


@dataclasses.dataclass(frozen=True)
class _Job:
    files: Group
    scan: Callable[[Group], Arrays]
    kept: Path | None

    def __str__(self) -> str:
        return f"the index of {self.files[0]}"


def _work(job: _Job) -> Arrays:
    arrays = job.scan(job.files)
    if job.kept is not None:
        write_arrays(job.kept, arrays)
    return arrays


def _kept(files: Group, kind: str, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    # The name says all that the index depends on. A changed file has another name, so that an old index is never
    # taken for it.
    stamps = "\n".join(map(stamp, files))
    name = hashlib.sha256(f"{FORMAT} {kind} {stamps}".encode()).hexdigest()[:32]
    return folder / f"{kind.partition(' ')[0]}-{name}.npz"


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Writes arrays to one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the process in its name: several runs may start on the same data at once, and the last one wins with
    # the same content.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        # Not compressed: it is read at every start.
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)


def read_arrays(path: Path) -> dict[str, Any] | None:
    """The arrays of an index; None if there is none, or a damaged one, which is built anew."""
    try:
        # The folder of indices may be shared with other people, so that nothing in it may be run either.
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (FileNotFoundError, ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile):
        return None
