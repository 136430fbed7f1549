"""`generalist data convert`: episodes in another format."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

# Imported when the command runs: `--help` must not wait for TFDS and PyArrow.
if TYPE_CHECKING:
    from generalist.data.convert.report import Report
    from generalist.data.convert.source import Settings

SUMMARY = "write episodes of any format that is read as RLDS or LeRobot v3.0"


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist data convert`."""
    parser.add_argument("source", metavar="SOURCE", help="folder or file of a data set; gs:// and s3:// too")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder of the new data set")
    parser.add_argument(
        "--to", required=True, choices=("rlds", "lerobot"), help="RLDS in ArrayRecord files, or LeRobot v3.0"
    )
    parser.add_argument("--split", default="train", help="of the source (default train)")
    parser.add_argument(
        "--mapping", default="", metavar="FILE", help="YAML with what the fields mean (default: by their names)"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="FIELD", help="leave a field out; may be repeated"
    )
    parser.add_argument("--instruction", default="", metavar="TEXT", help="of episodes that carry none")
    parser.add_argument("--rate", type=float, metavar="HZ", help="steps per second, where the source does not say it")
    parser.add_argument(
        "--images",
        choices=("video", "png"),
        help="LeRobot: MP4 (default), or image files within the rows, which lose nothing",
    )
    parser.add_argument("--codec", choices=("libsvtav1", "h264"), help="LeRobot: of videos (default libsvtav1, AV1)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--unreadable",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the episodes that may be left out (default 0)",
    )
    parser.add_argument("--verify", action="store_true", help="read back every value and compare it with the source")
    parser.add_argument("--replace", action="store_true", help="replace what this command has made at TARGET before")


def convert(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Converts; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user.
    """
    # Unlike the other commands this one takes no settings of a run.
    if rest:
        raise ValueError(f"generalist data convert does not know {' '.join(rest)}")
    _check(arguments)
    from generalist.data.convert.convert import convert as run
    from generalist.system.processes import cores

    begun = time.perf_counter()
    try:
        report = run(
            _settings(arguments),
            arguments.target,
            workers=arguments.workers or cores(),
            unreadable=arguments.unreadable,
            verify=arguments.verify,
            replace=arguments.replace,
            console=console,
        )
    except KeyboardInterrupt:
        # Finished parts are kept: nothing has to be cleaned up.
        console.print("\nthe same command goes on from here", highlight=False)
        raise
    _show(report, arguments, time.perf_counter() - begun, console)
    return 0


def _settings(arguments: argparse.Namespace) -> "Settings":
    from generalist.data.convert.source import Settings

    return Settings(
        source=arguments.source,
        to=arguments.to,
        split=arguments.split,
        mapping=arguments.mapping,
        without=tuple(arguments.without),
        instruction=arguments.instruction,
        rate=arguments.rate,
        # None tells an option that was given from a default, for `_check`.
        images=arguments.images or "video",
        codec=arguments.codec or "libsvtav1",
    )


def _check(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: an option is out of its range or does not go with the format.
    """
    # `Path` makes one slash of two.
    if "://" in str(arguments.target) or str(arguments.target).startswith(("gs:/", "s3:/")):
        raise ValueError(f"TARGET {arguments.target}: only local folders are written; copy the folder there afterwards")
    if not 0 <= arguments.unreadable < 1:
        raise ValueError(f"--unreadable must be a share from 0 to below 1, got {arguments.unreadable:g}")
    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {arguments.workers}")
    if arguments.rate is not None and not 0 < arguments.rate < 1e6:
        raise ValueError(f"--rate must be above 0 and below a million steps per second, got {arguments.rate:g}")
    for option in ("images", "codec"):
        # An option that does nothing is an error: whoever gave it expects something else.
        if arguments.to == "rlds" and getattr(arguments, option) is not None:
            raise ValueError(f"--{option} goes with --to lerobot only: RLDS has image files")
    if arguments.images == "png" and arguments.codec is not None:
        raise ValueError("--codec goes with videos, not with --images png")


def _show(report: "Report", arguments: argparse.Namespace, seconds: float, console: Console) -> None:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    say("fields: " + ", ".join(key if key == new else f"{key} → {new}" for key, new in report.fields.items()))
    for key, reason in report.unread.items():
        say(f"field left out: {key}, since {reason}")
    if report.left_out:
        say(f"episodes left out: {len(report.left_out):,}, which could not be read")
        # The numbers of all are in checksums.json.
        for reason in list(report.left_out.values())[:20]:
            say(f"  {reason}")
    if report.empty:
        say(f"episodes left out: {report.empty:,} without a step")
    compared = (
        "every value compared with the source"
        if report.worst is not None
        else "files read back; --verify compares values"
    )
    if report.worst:
        # Videos lose a little by design; how much is told rather than hidden.
        compared += f" (frames of videos differ by up to {report.worst:.1f} of 255 on average)"
    say(f"checked: {compared}")
    say(
        f"{arguments.target}: {report.episodes:,} episodes, {report.steps:,} steps, {report.files:,} files, "
        f"{report.bytes / 1e6:,.1f} MB, in {seconds:,.0f} s"
    )
