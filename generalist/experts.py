"""Which tasks a run takes part in, and recording their experts. Imports no JAX: the first episodes are under way at once."""

import os

from rich.console import Console

from generalist.config import Config
from generalist.envs.recording import record
from generalist.envs.task import Task, tasks


def suite_tasks(config: Config) -> dict[str, list[Task]]:
    """The tasks of each control suite that takes part.

    Raises:
        ValueError: a pattern matches no task.
    """
    return {suite: tasks(f"{suite}/{control.tasks}") for suite, control in config.data.control().items()}


def record_missing(config: Config, console: Console) -> None:
    """Records the experts' episodes that are not on disk yet."""
    wanted = suite_tasks(config)
    episodes = {
        task.name: config.data.control()[suite].episodes or task.episodes
        for suite, several in wanted.items()
        for task in several
    }
    everything = [task for several in wanted.values() for task in several]
    if everything:
        workers = config.data.workers or os.cpu_count() or 1
        record(everything, config.data.folder / "episodes", episodes=episodes, workers=workers, console=console)
