"""Where a conversion is put together: a hidden folder beside its target, with finished parts that a later run goes on from.

.TARGET.converting/
    plan.json               which conversion this is
    lock                    the process that works here
    progress/00007          steps done of a part that is being made
    STAGE/00007/            a finished part: its files, and part.json with their checksums
    result/                 the new data set, renamed to TARGET at the end
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from generalist.system.files import write_json
from generalist.system.processes import is_running

CHECKSUMS, PART = "checksums.json", "part.json"
MAKER = "generalist data convert"
"""In the checksums' file: only what was made by this command is replaced by it."""
BLOCK = 2**20


def working_folder(target: Path) -> Path:
    """Where the data set of a target is put together."""
    # Beside the target, on the same disk: renaming to it is one step, and hidden from whoever lists data sets.
    return target.absolute().with_name(f".{target.absolute().name}.converting")


def check_target(target: Path, replace: bool) -> None:
    """
    Raises:
        FileExistsError: there is something already that may not be replaced.
    """
    # A link to nothing does not `exist`, but its name is taken.
    if not target.exists() and not target.is_symlink():
        return
    if not replace:
        raise FileExistsError(f"{target} exists already: name another folder, delete it, or give --replace")
    # A wrong TARGET must not cost a folder of something else.
    if _maker(target) != MAKER:
        raise FileExistsError(
            f"{target} was not made by this command ({CHECKSUMS} is missing or says otherwise), so that --replace leaves it "
            "alone: name another folder, or delete it"
        )


def _maker(folder: Path) -> Any:
    try:
        stored = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored.get("made_by") if isinstance(stored, dict) else None


@contextlib.contextmanager
def at_work(folder: Path, plan: dict[str, Any], say: Callable[[str], None]) -> Iterator[None]:
    """Holds a working folder; what another conversion has left there is removed.

    Raises:
        FileExistsError: another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    # A process that was killed leaves its lock; whether it still runs decides, not the file.
    holder = lock.read_text(encoding="utf-8") if lock.exists() else ""
    if holder and holder != str(os.getpid()) and is_running(holder):
        raise FileExistsError(f"{folder}: process {holder} converts to this target already: wait for it, or end it")
    lock.write_text(str(os.getpid()), encoding="utf-8")
    try:
        # Parts of other settings or another source would give a data set that is neither.
        if _stored_plan(folder) != plan:
            for left in folder.iterdir():
                if left != lock:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            write_json(folder / "plan.json", plan)
        elif (folder / "parts").exists():
            say(f"going on with what {folder} has")
        yield
    finally:
        lock.unlink(missing_ok=True)


def _stored_plan(folder: Path) -> Any:
    try:
        return json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def finished(folder: Path) -> dict[str, Any] | None:
    """What was noted of a part, if it is complete and each file fits its checksum."""
    try:
        noted = json.loads((folder / PART).read_text(encoding="utf-8"))
        # Checked in each run: hours may lie between, and a disk may have lost what was in its cache.
        whole = all(checksum(folder / name) == told["sha256"] for name, told in noted["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return noted if whole else None


def make_part(folder: Path, fill: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A part: the finished one, or made by `fill`, which writes files into an empty folder and returns what is noted of them.

    Returns:
        what was noted, with `files`: bytes and sha256 by path within the folder.
    """
    if (noted := finished(folder)) is not None:
        return noted
    shutil.rmtree(folder, ignore_errors=True)
    # A process whose parent was killed may still write the same part: each has a folder of its own.
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        noted = fill(temporary)
        noted["files"] = files_of(temporary)
        # Written last, and only then does the folder get its name.
        write_json(temporary / PART, noted)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return noted


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and checksum of each file in a folder, by its path within it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": checksum(path)} for path in found
    }


def place_file(source: Path, target: Path) -> None:
    """Puts a part's file into the result; the part keeps it, so that an interrupted run can do so again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A hard link takes no room, and needs no second copy of a large set.
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def publish(work: Path, target: Path, replace: bool) -> None:
    """Renames the result to the target and removes the rest.

    Raises:
        FileExistsError: something has appeared there meanwhile.
    """
    check_target(target, replace)
    # The old data set is moved away before the new one takes its name, so that the name never leads to a mixture
    # of both.
    former = work / "former"
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        os.replace(target, former)
    os.replace(work / "result", target)
    shutil.rmtree(work, ignore_errors=True)
