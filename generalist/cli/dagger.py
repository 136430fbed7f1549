"""`generalist dagger`: the weights play, experts name the action they would have taken, and training learns from these."""

import argparse
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from generalist.cli.eval_control import add_played, known_tasks, stopping
from generalist.cli.weights import load_weights
from generalist.envs.corrections import FIRST_SEED, CorrectedTask
from generalist.envs.rlds import read_metadata
from generalist.envs.task import EVALUATION_SEED
from generalist.eval.results.words import counted
from generalist.system.places import check_folder

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

DESCRIPTION = """Plays tasks with trained weights, asks the task's expert for its action in every step, and stores the episodes
with these actions (DAgger, Ross et al., 2011). `train.py --data.dagger FOLDER` trains on them as well."""

# Environments at once. Whole episodes are held until they are written: 2,100 frames of Atari in 32 lanes take up to 1.4 GB.
LANES = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist dagger`."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where one data set per task is written; existing ones stay"
    )
    add_played(parser)
    parser.add_argument(
        "--expert-share",
        type=float,
        default=0.3,
        metavar="P",
        help="probability that the expert's action is played, which frees weights that are stuck (default 0.3)",
    )
    parser.add_argument(
        "--lanes", type=int, default=LANES, help=f"maximum number of environments at once (default {LANES})"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=FIRST_SEED,
        help=f"seed of a task's first episode (default {FIRST_SEED:,}); use another one for each round",
    )


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Plays, and writes a data set for every task that has none yet; returns the exit status.

    Raises:
        ValueError: a number is out of range, a pattern matches no task that the weights know, a task has no expert, or a data
            set in the folder was made with other settings.
    """
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}")
    for name in ("episodes", "workers", "lanes"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    check_folder(arguments.folder, "FOLDER")
    if not 0 <= arguments.expert_share <= 1:
        raise ValueError(f"--expert-share must be from 0 to 1, got {arguments.expert_share}")
    # Training on episodes of the evaluation would make its scores worthless.
    if not 0 <= arguments.seed <= EVALUATION_SEED - arguments.episodes:
        raise ValueError(
            f"--seed must be at least 0, and --seed + --episodes at most {EVALUATION_SEED:,}, where the seeds of evaluation "
            f"begin; got {arguments.seed}"
        )
    generalist = load_weights(arguments, console)

    from generalist.inference.fingerprint import fingerprint

    # What decides an episode. It is stored with the data sets, so that one folder never mixes two rounds.
    settings = {
        "weights": fingerprint(generalist),
        "expert_share": arguments.expert_share,
        "episodes": arguments.episodes,
        "seed": arguments.seed,
    }
    asked = [
        CorrectedTask.of(task, arguments.expert_share, arguments.folder.absolute())
        for task in known_tasks(generalist, arguments.tasks)
    ]
    waiting = [task for task in asked if not _is_done(task, settings)]
    if len(waiting) < len(asked):
        console.print(
            f"{len(asked) - len(waiting)} of {counted(len(asked), 'task')} already have a data set in {arguments.folder}",
            markup=False,
        )
    # One suite at a time, so that the data sets of finished suites survive an interruption.
    by_suite: dict[str, list[CorrectedTask]] = defaultdict(list)
    for task in waiting:
        by_suite[task.suite].append(task)
    for suite, tasks in by_suite.items():
        try:
            steps = _corrected(generalist, tasks, settings, arguments, console)
        finally:  # whatever is unfinished: after an interruption, and after an error
            for task in tasks:
                task.discard()
        if steps is None:
            console.print(f"stopped: no episode of {suite} is kept")
            return 130
        console.print(
            f"{suite}: {counted(len(tasks), 'task')}, {steps:,} steps with the experts' actions", highlight=False
        )
    console.print(
        f"to train on it: train.py ... --data.dagger {arguments.folder}", highlight=False, markup=False, soft_wrap=True
    )
    return 0


def _corrected(
    generalist: "Generalist",
    tasks: Sequence[CorrectedTask],
    settings: Mapping[str, Any],
    arguments: argparse.Namespace,
    console: Console,
) -> int | None:
    """Plays the tasks of one suite and writes their data sets. Returns the number of steps; None if it was stopped."""
    from generalist.eval.control.agents import Agent, Demonstrations, play
    from generalist.eval.control.policies import Prompt
    from generalist.system.progress import counting

    for task in tasks:
        task.begin()
    # Interrupted, nothing of this suite is kept: a data set with fewer episodes would pass for a complete one.
    stop = threading.Event()
    with stopping(stop, console), counting(console, disable=not console.is_terminal) as progress:
        played, _ = play(
            generalist,
            Agent(Prompt()),
            tasks,
            arguments.episodes,
            Demonstrations(generalist),
            workers=arguments.workers,
            lanes=arguments.lanes,
            first_seed=arguments.seed,
            progress=progress,
            stop=stop,
        )
    if stop.is_set():
        return None
    return sum(
        task.finish([(one.seed, one.score, one.steps) for one in played if one.task == task.name], settings)
        for task in tasks
    )


def _is_done(task: CorrectedTask, settings: Mapping[str, Any]) -> bool:
    """Whether a task already has its data set.

    Raises:
        ValueError: the data set was made with other settings.
    """
    stored = read_metadata(task.place)
    if stored is None:
        return False
    for name, value in settings.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{task.place} was made with {name} {stored.get(name)}, not {value}: name another folder, or delete it"
            )
    return True
