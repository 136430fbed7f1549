"""A data set of episodes in another format: in parts by several processes, resumable, whole or not at all."""

import contextlib
import dataclasses
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from generalist.data.convert import lerobot, lerobot_files, rlds
from generalist.data.convert.parts import Job, bytes_per_step, planned, steps_done
from generalist.data.convert.report import FORMAT, Report, made_report, write_checksums
from generalist.data.convert.source import Settings, Source, opened
from generalist.data.convert.verify import VerifyJob, compare, written
from generalist.data.convert.work import (
    at_work,
    check_target,
    checksum,
    publish,
    working_folder,
)
from generalist.data.formats.faults import Faults
from generalist.data.formats.video import require_av
from generalist.data.statistics import fingerprint
from generalist.system.places import check_folder
from generalist.system.processes import run_jobs
from generalist.system.progress import counting

POLLED = 0.5
"""Seconds between two looks at how far the parts are."""
SPARE = {"rlds": 1.1, "lerobot": 2.2}
"""Bytes that are needed per estimated byte: a little is spare, and rows of LeRobot stand twice before the end."""


def convert(
    settings: Settings,
    target: Path,
    *,
    workers: int,
    unreadable: float = 0.0,
    verify: bool = False,
    replace: bool = False,
    console: Console,
) -> Report:
    """Converts a data set. Killed at any point, it leaves no target, and run again it goes on with the parts that are complete.

    Args:
        workers: processes.
        unreadable: share of the episodes that may be left out because they can't be read.
        verify: whether every value is read back and compared.
        replace: whether an earlier conversion at the target is replaced.

    Raises:
        FileExistsError: there is something at the target that may not be replaced.
        FileNotFoundError, ImportError: there is no source, or a package is missing.
        ValueError: the source can't be read, a setting does not fit it, too many episodes are broken, or a value that was read
            back differs.
        OSError: the disk has no room, or can't be written.
    """
    # All that can be refused is refused before hours of work, and before anything is written.
    check_target(target, replace)
    check_folder(target.absolute().parent, "TARGET")
    _check_apart(settings.source, target)
    for kept in (opened, written):  # files may have changed since an earlier conversion of this process
        kept.cache_clear()
    source = opened(settings)
    # Asked for in the parent, since a worker's ImportError would come as one of many parts.
    if lerobot.cameras(source):
        require_av()
    episodes, known = source.episodes, source.episodes.broken()
    # Records that were lost as a whole have numbers behind the last episode.
    total = len(episodes) + sum(number >= len(episodes) for number in known)
    faults = Faults(settings.source, total, unreadable, lambda line: console.print(line, highlight=False, markup=False))
    for number, reason in known.items():
        faults.add(number, reason)
    per_step = bytes_per_step(source)
    # The parts depend on the source and the settings alone, not on the number of workers: a later run may have
    # another.
    work, ranges = working_folder(target), planned(source, per_step)
    _check_room(work, per_step * int(episodes.lengths.sum()) * SPARE[settings.to])
    run = _Run(source, target, work, workers, faults, console)
    with at_work(work, _plan(source, ranges), lambda line: console.print(line, highlight=False, soft_wrap=True)):
        parts = run.parts(
            [
                Job(settings, work, number, *bounds, allowed=int(unreadable * total))
                for number, bounds in enumerate(ranges)
            ]
        )
        if not any(part["episodes"] for part in parts):
            raise ValueError(f"{settings.source} has no episode that can be read: there is nothing to convert")
        files = run.checked(parts, run.assembled(parts))
        worst = run.compared(parts) if verify else None
        report = made_report(source, parts, files, faults, worst)
        write_checksums(work / "result", settings, report, files)
    # Last of all: whoever finds the target can rely on every check above.
    publish(work, target, replace)
    return report


def _check_apart(source: str, target: Path) -> None:
    """
    Raises:
        ValueError: the source is in the target or the other way round.
    """
    if "://" in source:
        return
    # Resolved, since a link may lead into the source; --replace would delete what is being read.
    one, other = Path(source).resolve(), target.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(f"TARGET {target} and SOURCE {source} are in each other: name a folder elsewhere")


def _check_room(work: Path, needed: float) -> None:
    """
    Raises:
        OSError: the disk has less room than the new data set takes.
    """
    # The target's parent may not exist yet.
    there = next(folder for folder in work.parents if folder.exists())
    # Parts of an earlier run are taken over, and need no more room.
    held = sum(path.stat().st_size for path in work.rglob("*") if path.is_file()) if work.exists() else 0
    free = shutil.disk_usage(there).free
    if free + held < needed:
        raise OSError(
            f"the conversion takes about {needed / 1e9:,.1f} GB, and {there} has {free / 1e9:,.1f} GB free: make room, or name "
            "a target on another disk"
        )


def _plan(source: Source, ranges: list[tuple[int, int]]) -> dict[str, Any]:
    """What must be the same for the parts of an earlier run to be taken over."""
    plan = {
        "format": FORMAT,
        "settings": dataclasses.asdict(source.settings),
        # A source that has changed gives other parts, though its path and settings are the same.
        "source": fingerprint(source.episodes),
        "mapping": source.mapping.to_json(),
        "fields": [f"{one.field.key} {one.key} {one.shape} {one.encoding}" for one in source.kept],
        "parts": ranges,
    }
    # Tuples become lists, as they are in the stored plan that this one is compared with.
    return json.loads(json.dumps(plan))


@dataclasses.dataclass(frozen=True)
class _Run:
    """The steps of a conversion."""

    source: Source
    target: Path
    work: Path
    workers: int
    faults: Faults
    console: Console

    def parts(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Makes all parts that are not there yet; what was noted of each."""
        is_rlds = self.source.settings.to == "rlds"
        # How far an unfinished part came counts no more: it is made anew.
        for job in jobs:
            if not job.folder.exists():
                (self.work / "progress" / f"{job.number:05d}").unlink(missing_ok=True)
        noted: dict[int, dict[str, Any]] = {}
        with self._steps("converting"):
            # Parts come in the order in which they are finished, and are sorted below by their number.
            for job, part in self._done(rlds.write_part if is_rlds else lerobot.write_part, jobs):
                noted[job.number] = part
                for number, reason in part["broken"].items():
                    self.faults.add(int(number), reason)
        return [noted[number] for number in sorted(noted)]

    def assembled(self, parts: list[dict[str, Any]]) -> set[str]:
        """Puts the new data set together; the checksums of its files of episodes."""
        # Made of links to the parts in seconds: nothing of an interrupted result is trusted.
        shutil.rmtree(self.work / "result", ignore_errors=True)
        if self.source.settings.to == "rlds":
            rlds.assemble(self.source, self.work, self.target, parts)
            return _checksums(parts, (rlds.RECORDS,))
        jobs = lerobot_files.file_jobs(self.work, parts)
        with counting(self.console) as progress:
            bar = progress.add_task("numbering frames, files", total=len(jobs))
            numbered = []
            for _, noted in self._done(lerobot_files.write_file, jobs):
                numbered.append(noted)
                progress.advance(bar)
        lerobot_files.assemble(self.source, self.work, parts, jobs)
        return _checksums(numbered, (lerobot.DATA,)) | _checksums(parts, (".mp4",))

    def checked(self, parts: list[dict[str, Any]], made: set[str]) -> dict[str, dict[str, Any]]:
        """Reads all files back; returns bytes and checksum of each.

        Args:
            made: checksums of the files that were written.

        Raises:
            OSError: one differs from what was written.
            ValueError: the new data set has other episodes than were written.
        """
        result = self.work / "result"
        found = sorted(path for path in result.rglob("*") if path.is_file())
        sums: dict[Path, str] = {}
        with counting(self.console) as progress:
            bar = progress.add_task("reading back, files", total=len(found))
            for path, found_sum in self._done(checksum, found):
                sums[path] = found_sum
                progress.advance(bar)
        files = {
            path.relative_to(result).as_posix(): {"bytes": path.stat().st_size, "sha256": sums[path]} for path in found
        }
        # Sums were taken when the parts were finished, and again from the result: a failing disk or memory shows
        # here. Descriptions are in no part, so that the result has more files than were made.
        if made - {*sums.values()}:
            raise OSError(f"{self.work}: a file on the disk is not what was written: check the disk, and run again")
        # Opened by our own reader, which checks numbers, lengths and places of all episodes.
        new = written(self.work, self.source.settings.split, self.workers)
        lengths = [length for part in parts for length in part["lengths"]]
        if new.broken() or not np.array_equal(new.lengths, lengths):
            raise ValueError(f"{result} does not have the episodes that were written: run again")
        return files

    def compared(self, parts: list[dict[str, Any]]) -> float:
        """Compares every value with the source; the largest mean difference of a video's frame."""
        jobs, first, worst = [], 0, 0.0
        for part in parts:
            if part["episodes"]:
                jobs.append(VerifyJob(self.source.settings, self.work, tuple(part["episodes"]), first))
            # Episodes are numbered through in the result, without those that were left out.
            first += len(part["episodes"])
        with counting(self.console) as progress:
            bar = progress.add_task("comparing, episodes", total=first)
            for job, difference in self._done(compare, jobs):
                worst = max(worst, difference)
                progress.advance(bar, len(job.episodes))
        return worst

    def _done(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """(job, result) as they come; a single job needs no other process."""
        if self.workers > 1 and len(jobs) > 1:
            return run_jobs(function, jobs, workers=self.workers)
        return ((job, function(job)) for job in jobs)

    @contextlib.contextmanager
    def _steps(self, what: str) -> Iterator[None]:
        """A bar of steps, as the parts note them."""
        ended = threading.Event()
        with counting(self.console) as progress:
            total = int(self.source.episodes.lengths.sum())
            bar = progress.add_task(f"{what}, steps", total=total, completed=steps_done(self.work))

            def look() -> None:
                # Workers are other processes: they tell how far they are by small files.
                while not ended.wait(POLLED):
                    progress.update(bar, completed=steps_done(self.work))

            thread = threading.Thread(target=look, daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                progress.update(bar, completed=steps_done(self.work))


def _checksums(noted: list[dict[str, Any]], endings: tuple[str, ...]) -> set[str]:
    """Checksums of the files of parts that have episodes, by how their names end."""
    files = (file for part in noted if part["episodes"] for file in part["files"].items())
    return {told["sha256"] for name, told in files if name.endswith(endings)}
