"""The user's own environments with their demonstrations (docs/environments.md)."""

import dataclasses
from pathlib import Path

from generalist.data.source import Say, Stored, register
from generalist.data.sources.control import ControlSource
from generalist.envs.custom import own_tasks
from generalist.envs.custom_task import OwnTask
from generalist.envs.task import Task


@register("own")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Custom(ControlSource):
    """Your own environments; takes no part without demonstrations."""

    weight: float = 0.1
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    demonstrations: tuple[str, ...] = ()
    """Folders that `record_demonstrations` wrote; `ID=FOLDER` for another tool's data set, with its environment's id."""
    evaluation_episodes: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes is not None:
            raise ValueError(
                f"data.own.episodes = {self.episodes} has no effect, since all demonstrations are used: leave it out, and record "
                "as many as you want"
            )

    @property
    def takes_part(self) -> bool:
        """See `Source.takes_part`."""
        return self.weight > 0 and bool(self.demonstrations)

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Makes every environment, which checks that it is the recorded one."""
        if self.takes_part:
            # Here, not when an evaluation first plays it, after all of the training.
            for task in self.task_list():
                task.make().close()

    def task_list(self) -> list[Task]:
        """See `Source.task_list`."""
        return [*own_tasks(self.demonstrations, self.tasks)]

    def recordings(self) -> list[tuple[Task, int]]:
        """None: the user has recorded them."""
        return []

    def folder(self, task: Task, stored: Stored) -> Path:
        """The user's folder, read in place."""
        assert isinstance(task, OwnTask)
        return task.folder
