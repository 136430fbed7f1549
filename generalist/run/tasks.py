"""The tasks of a run, the places of their episodes, and recording of the experts. Does not import JAX, which no episode needs."""

from rich.console import Console

from generalist.config.run import Config
from generalist.data.episodes import EpisodeCache
from generalist.data.source import Stored
from generalist.envs.recording import record
from generalist.envs.registry import get
from generalist.envs.rlds import dataset_folder, read_metadata
from generalist.envs.task import Task
from generalist.system.processes import cores


def stored(config: Config, cache: EpisodeCache | None = None) -> Stored:
    """The places of a run's data.

    Args:
        cache: of decoded episodes, to be shared by several calls; None: a new one.
    """
    data = config.data
    return Stored(
        folder=data.folder, corrections=data.dagger, cache=cache or EpisodeCache(max(1, data.cache_megabytes))
    )  # fmt: skip


def source_tasks(config: Config) -> dict[str, list[Task]]:
    """The tasks of the sources that are trained on, by the source's name. Sources without tasks are left out.

    Raises:
        ValueError: a pattern matches no task, or a folder of demonstrations does not fit its environment.
        FileNotFoundError: a folder of demonstrations holds no data set.
    """
    found = {name: source.task_list() for name, source in config.data.taking_part.items()}
    return {name: tasks for name, tasks in found.items() if tasks}


def is_own(name: str) -> bool:
    """Whether a task's name is that of its user's own environment or data set."""
    return name.startswith(("own/", "recorded/"))


def own_tasks(config: Config) -> list[Task]:
    """A user's own tasks that can be played.

    Raises:
        ValueError, FileNotFoundError: see `source_tasks`.
    """
    played = [source for source in config.data.control().values() if "control" in source.evaluation_parts]
    return [task for source in played for task in source.task_list() if is_own(task.name)]


def task_of(name: str, config: Config) -> Task:
    """The task of that name.

    Args:
        config: of the run that the weights are from; a user's own environment is found by its demonstrations.

    Raises:
        ValueError: there is no such task.
        FileNotFoundError: the demonstrations are no longer in their place.
    """
    if not is_own(name):
        return get(name)
    own = own_tasks(config)
    found = next((task for task in own if task.name == name), None)
    if found is None:
        known = ", ".join(task.name for task in own) or "none"
        raise ValueError(f"the weights know no environment {name!r}; your own environments that they know: {known}")
    return found


def wanted_episodes(config: Config, task: Task) -> int:
    """The number of expert episodes of a task that a run records."""
    # All sources of the mixture, not only those that are trained on: demonstrations may come from their recordings too.
    recorded = (pair for source in config.data.sources.values() for pair in source.recordings())
    return next((count for one, count in recorded if one.name == task.name), task.episodes)


def check_corrections(config: Config) -> None:
    """Checks that every folder of `data.dagger` has corrections of a task that is trained on.

    Raises:
        FileNotFoundError: a folder has none.
    """
    tasks = [task for several in source_tasks(config).values() for task in several]
    for folder in config.data.dagger:
        if not any(read_metadata(dataset_folder(folder, task)) is not None for task in tasks):
            raise FileNotFoundError(
                f"data.dagger: {folder} holds no data set of a task that takes part: make one with `generalist dagger`"
            )


def record_missing(config: Config, console: Console) -> None:
    """Records the expert episodes that are not on disk yet.

    Raises:
        ValueError: a pattern matches no task, or an expert fails too often.
        FileNotFoundError: a folder of corrections has none.
    """
    check_corrections(config)
    # Tasks of all sources in one call, so that the workers stay busy from the first episode to the last.
    wanted = {task: count for source in config.data.taking_part.values() for task, count in source.recordings()}
    if wanted:
        episodes = {task.name: count for task, count in wanted.items()}
        folder, workers = config.data.folder / "episodes", config.data.workers or cores()
        record([*wanted], folder, episodes=episodes, workers=workers, console=console)
