"""`generalist eval`: the commands that score weights, and those that compare and show results."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from generalist.cli import eval_control as agents_command
from generalist.cli import eval_fewshot as fewshot_command
from generalist.cli import eval_served as served_command
from generalist.system.places import check_file

DESCRIPTION = "Scores weights as agents and with shots, compares results files, and writes reports of them."
RESULTS = "results.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands, each with its arguments."""
    commands = parser.add_subparsers(dest="evaluation", required=True, metavar="COMMAND")
    for name, add, summary in (
        (
            "control",
            agents_command.add_control,
            "score agents on any tasks: the weights, with or without prompts, and the nearest neighbour",
        ),
        ("again", agents_command.add_again, "repeat the evaluation of a results file, and compare every episode"),
        (
            "fewshot",
            fewshot_command.add_fewshot,
            "score the weights with shots: new words, captions, questions, classes",
        ),
        ("served", served_command.add_served, "score the weights of a server (`generalist serve`), playing here"),
        ("compare", _add_compare, "compare two results files: which is better, and whether the episodes can show it"),
        ("report", _add_report, "write one HTML file with everything about a run's evaluation, to open offline"),
    ):
        # No abbreviations: an option added later could make a shorter one ambiguous in stored commands.
        add(commands.add_parser(name, help=summary, description=summary, allow_abbrev=False))


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Runs a subcommand; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user.
    """
    if rest:
        raise ValueError(f"generalist eval {arguments.evaluation} does not know {' '.join(rest)}")
    runs: dict[str, Callable[[argparse.Namespace, Console], int]] = {
        "control": agents_command.control,
        "again": agents_command.again,
        "fewshot": fewshot_command.fewshot,
        "served": served_command.served,
        "compare": _compare,
        "report": _report,
    }
    return runs[arguments.evaluation](arguments, console)


def results_path(path: Path) -> Path:
    """The path of a results file, which may be given by its run's folder."""
    return path / RESULTS if path.is_dir() else path


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A", help="a results.json, or a run's folder")
    parser.add_argument("after", type=Path, metavar="B", help="another results.json, or run's folder")


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    """Compares two results files; needs neither JAX nor weights."""
    from generalist.eval.report import compare
    from generalist.eval.results import file as report

    before, after = (report.load(results_path(path)) for path in (arguments.before, arguments.after))
    compare.compare(before, after, console)
    return 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="RUN_OR_RESULTS", help="a run's folder, or a results file")
    parser.add_argument(
        "--fewshot", type=Path, nargs="+", default=[], metavar="FILE", help="results of eval fewshot to include"
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default report.html)")
    parser.add_argument(
        "--videos", action="store_true", help="play one episode of every task with the run's weights, and include it"
    )
    parser.add_argument(
        "--weights",
        metavar="FOLDER",
        help="for --videos: the weights of the results, if they are not in the run's folder",
    )


def _report(arguments: argparse.Namespace, console: Console) -> int:
    from generalist.eval.report import page

    if arguments.weights and not arguments.videos:
        raise ValueError("--weights is for --videos: give both or neither")
    check_file(arguments.out, "--out")  # before anything is played
    source = results_path(arguments.source)
    page.write(
        source,
        arguments.out,
        console,
        fewshot=arguments.fewshot,
        videos=arguments.videos,
        weights=arguments.weights,
    )
    console.print(f"report: {arguments.out} ({arguments.out.stat().st_size / 1e6:.1f} MB)", highlight=False)
    return 0
