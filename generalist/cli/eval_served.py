"""`generalist eval served`: scores the weights of a server, playing here."""

import argparse
import os

from rich.console import Console

from generalist.envs.registry import tasks
from generalist.envs.task import EVALUATION_SEED
from generalist.eval.results.words import counted
from generalist.system.processes import cores


def add_served(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist eval served`."""
    parser.add_argument("server", metavar="SERVER", help="such as ws://127.0.0.1:8000, of `generalist serve`")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="such as 'classic/*' babyai/GoTo; default: all that the server plays",
    )
    parser.add_argument("--episodes", type=int, default=5, help="episodes per task (default 5)")
    parser.add_argument(
        "--lanes", type=int, default=4, help="environments at once, as many as its sessions (default 4)"
    )
    parser.add_argument(
        "--prompt",
        default="none",
        help="what is shown before each episode: none (the default), goal (the end of an episode of the task's expert, who plays "
        "on the server), whole (a whole one), or a number of whole ones, up to 8",
    )
    parser.add_argument(
        "--seed", type=int, default=EVALUATION_SEED, help=f"of the first episode (default {EVALUATION_SEED:,})"
    )


def served(arguments: argparse.Namespace, console: Console) -> int:
    """Plays, and prints the score of each task; returns the exit status. A token that the server demands is the environment's
    GENERALIST_TOKEN.

    Raises:
        ValueError: a number is too small, there is no such prompt, or the server plays none of the tasks.
        OSError: there is no such server.
    """
    for name in ("episodes", "lanes"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    from generalist.client import RobotClient, ServerError
    from generalist.eval.control.lanes import evaluate_control
    from generalist.eval.control.policies import Prompt
    from generalist.eval.control.served import ServedPolicy
    from generalist.system.progress import counting

    prompt = Prompt.parse(arguments.prompt)
    token = os.environ.get("GENERALIST_TOKEN")
    with RobotClient(arguments.server, token=token) as robot:
        known = robot.metadata["layouts"]
    played = [task for task in tasks(arguments.tasks) if task.layout in known]
    if not played:
        raise ValueError(f"{arguments.server} plays none of these tasks: it knows {', '.join(known) or 'none'}")
    try:
        with counting(console, transient=True, disable=not console.is_terminal) as progress:
            episodes = evaluate_control(
                lambda layouts: ServedPolicy(arguments.server, layouts, token, prompt),
                played,
                arguments.episodes,
                workers=cores(),
                parallel=1,  # a server has few lanes for steps of one shape
                lanes=arguments.lanes,
                first_seed=arguments.seed,
                progress=progress,
            )
    except ServerError as error:
        raise ValueError(f"{arguments.server}: {error}") from error
    from generalist.eval.results.scores import (
        percent,
    )  # imports SciPy's statistics, for which no other start shall wait

    for task in played:
        own = [episode for episode in episodes if episode.task == task.name]
        mean = sum(percent(one.score, task.random_score, task.expert_score) for one in own) / len(own)
        console.print(f"{task.name}: {mean:.0f}% of expert, {counted(len(own), 'episode')}", highlight=False)
    return 0
