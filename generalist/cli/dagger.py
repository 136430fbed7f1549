"""`generalist dagger`: the weights play, the experts say what they would have done, and training learns from it."""

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

DESCRIPTION = """Plays tasks with trained weights, asks each task's expert at every step what it would have done, and keeps the
episodes with those answers as their actions (DAgger, Ross et al. 2011). `train.py --data.dagger FOLDER` learns from them too."""

LANES = 32  # of Atari up to 1.4 GB: whole episodes of 2,100 frames are held until they are written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist dagger`."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="gets a data set per task; those it has already stay"
    )
    add_played(parser)
    parser.add_argument(
        "--expert-share",
        type=float,
        default=0.3,
        metavar="P",
        help="chance that a step is the expert's own, which gets a lost player on (default 0.3)",
    )
    parser.add_argument("--lanes", type=int, default=LANES, help=f"environments at once, of steps alike ({LANES})")
    parser.add_argument(
        "--seed",
        type=int,
        default=FIRST_SEED,
        help=f"of a task's first episode ({FIRST_SEED:,}); give another one to each round",
    )


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Plays and writes a data set for every task that has none yet.

    Raises:
        ValueError: a number is out of its range, a pattern matches no task that the weights know, a task has no expert, or a
            data set of the folder was made with other settings.
    """
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}")
    for name in ("episodes", "workers", "lanes"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    check_folder(arguments.folder, "FOLDER")
    if not 0 <= arguments.expert_share <= 1:
        raise ValueError(f"--expert-share is a chance between 0 and 1, got {arguments.expert_share}")
    if not 0 <= arguments.seed <= EVALUATION_SEED - arguments.episodes:
        raise ValueError(
            f"--seed must be at least 0, and --seed + --episodes at most {EVALUATION_SEED:,}, where the seeds of evaluation "
            f"begin; got {arguments.seed}"
        )
    generalist = load_weights(arguments, console)

    from generalist.inference.fingerprint import fingerprint

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
            f"{len(asked) - len(waiting)} of {counted(len(asked), 'task')} are in {arguments.folder} already",
            markup=False,
        )
    # A suite at a time, so that what is done stays done.
    by_suite: dict[str, list[CorrectedTask]] = defaultdict(list)
    for task in waiting:
        by_suite[task.suite].append(task)
    for suite, tasks in by_suite.items():
        try:
            steps = _corrected(generalist, tasks, settings, arguments, console)
        finally:
            for task in tasks:
                task.discard()
        if steps is None:
            console.print(f"stopped: nothing of {suite} is kept")
            return 130
        console.print(
            f"{suite}: {counted(len(tasks), 'task')}, {steps:,} steps with the experts' answers", highlight=False
        )
    console.print(
        f"learn from it: train.py ... --data.dagger {arguments.folder}", highlight=False, markup=False, soft_wrap=True
    )
    return 0


def _corrected(
    generalist: "Generalist",
    tasks: Sequence[CorrectedTask],
    settings: Mapping[str, Any],
    arguments: argparse.Namespace,
    console: Console,
) -> int | None:
    """Plays tasks of one suite and makes their data sets; the number of steps, None if it was stopped."""
    from generalist.eval.control.agents import Agent, Demonstrations, play
    from generalist.eval.control.policies import Prompt
    from generalist.system.progress import counting

    for task in tasks:
        task.begin()
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
    """Whether a task's data set is there already.

    Raises:
        ValueError: it was made with other settings.
    """
    stored = read_metadata(task.place)
    if stored is None:
        return False
    for name, value in settings.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{task.place} was played with {name} {stored.get(name)}, not {value}: name another folder, or delete it"
            )
    return True
