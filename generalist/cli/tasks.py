"""`generalist tasks`: lists the tasks that match patterns, with the scores of random actions and of the expert."""

import argparse
import math

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from generalist.envs.registry import tasks

DESCRIPTION = """Lists tasks by name, with the instruction, the mean scores of uniformly random actions and of the task's expert,
and the number of steps after which an episode is cut off. Needs no package of an environment."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist tasks`."""
    parser.add_argument(
        "patterns",
        nargs="*",
        default=["*"],
        metavar="PATTERN",
        help="such as 'atari/*' or babyai/GoTo; default: all tasks",
    )


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Prints the table; returns the exit status.

    Raises:
        ValueError: a pattern matches no task, or an argument is unknown.
    """
    if rest:
        raise ValueError(f"generalist tasks does not know {' '.join(rest)}")
    found = tasks(arguments.patterns)
    table = Table("task", "instruction", box=SIMPLE, pad_edge=False)
    for column in ("random", "expert", "steps"):
        table.add_column(column, justify="right")
    for task in found:
        scores = (_number(task.random_score), _number(task.expert_score))
        table.add_row(task.name, task.instruction, *scores, f"{task.max_steps:,}")
    console.print(table)
    console.print(f"{len(found)} task{'s' * (len(found) != 1)}", highlight=False)
    return 0


def _number(score: float) -> str:
    """A score with at most two decimals; empty if it was not measured."""
    return "" if math.isnan(score) else f"{score:,.2f}".rstrip("0").rstrip(".")
