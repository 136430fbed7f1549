"""Which tasks a run takes part in, where their episodes are, and recording the experts. Imports no JAX: the first episodes are
under way at once."""

from pathlib import Path

from rich.console import Console

from generalist.config.run import Config
from generalist.envs.custom import own_tasks
from generalist.envs.custom_task import OwnTask
from generalist.envs.recording import record, recording_folder
from generalist.envs.registry import get, tasks
from generalist.envs.rlds import dataset_folder, read_metadata
from generalist.envs.task import Task
from generalist.system.processes import cores


def suite_tasks(config: Config) -> dict[str, list[Task]]:
    """The tasks of each control suite that takes part.

    Raises:
        ValueError: a pattern matches no task, or a folder of demonstrations does not fit its environment.
        FileNotFoundError: a folder of demonstrations holds no data set.
    """
    listed = {suite: control for suite, control in config.data.control().items() if suite != "own"}
    found = {suite: tasks(f"{suite}/{control.tasks}") for suite, control in listed.items()}
    if "own" in config.data.control():
        found["own"] = [*own_tasks(config.data.own.demonstrations, config.data.own.tasks)]
    return found


def is_own(name: str) -> bool:
    """Whether a task's name is that of an environment of its user's own."""
    return name.startswith("own/")


def task_of(name: str, config: Config) -> Task:
    """The task of that name, one's own by the demonstrations that a run was trained on.

    Raises:
        ValueError: there is none.
        FileNotFoundError: the demonstrations are not where they were.
    """
    if not is_own(name):
        return get(name)
    own = suite_tasks(config).get("own", [])
    found = next((task for task in own if task.name == name), None)
    if found is None:
        known = ", ".join(task.name for task in own) or "none"
        raise ValueError(f"the weights know no environment {name!r}; of one's own they know: {known}")
    return found


def episodes_folder(config: Config, task: Task) -> Path:
    """Where a task's episodes are: recorded by us, or its user's demonstrations."""
    if isinstance(task, OwnTask):
        return task.folder
    return recording_folder(config.data.folder / "episodes", task, wanted_episodes(config, task))


def wanted_episodes(config: Config, task: Task) -> int:
    """How many of an expert's episodes a run learns from."""
    return getattr(config.data, task.suite).episodes or task.episodes


def correction_folders(config: Config) -> dict[str, list[tuple[Task, Path]]]:
    """Of each suite that takes part: the tasks that the experts have corrected play in, and where those episodes are.

    Raises:
        FileNotFoundError: a folder of `data.dagger` holds none of any task that takes part.
    """
    found: dict[str, list[tuple[Task, Path]]] = {}
    for folder in config.data.dagger:
        before = sum(map(len, found.values()))
        for suite, several in suite_tasks(config).items():
            own = ((task, dataset_folder(folder, task)) for task in several)
            found.setdefault(suite, []).extend((task, place) for task, place in own if read_metadata(place) is not None)
        if sum(map(len, found.values())) == before:
            raise FileNotFoundError(
                f"data.dagger: {folder} holds no data set of a task that takes part: make some with `generalist dagger`"
            )
    return found


def record_missing(config: Config, console: Console) -> None:
    """Records the experts' episodes that are not on disk yet.

    Raises:
        ValueError: an environment of one's own can't be made, or is not the one that was recorded.
        FileNotFoundError: a folder of corrections holds none.
    """
    correction_folders(config)  # what is wrong with them is said before anything is played
    wanted = suite_tasks(config)
    for task in wanted.pop("own", []):
        task.make().close()  # what is wrong with it is said before anything is played
    everything = [task for several in wanted.values() for task in several]
    episodes = {task.name: wanted_episodes(config, task) for task in everything}
    if everything:
        workers = config.data.workers or cores()
        record(everything, config.data.folder / "episodes", episodes=episodes, workers=workers, console=console)
