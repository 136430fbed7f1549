"""A user's own environments with their demonstrations (docs/environments.md)."""

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
    """Environments of your own; takes no part without demonstrations."""

    weight: float = 0.1
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    demonstrations: tuple[str, ...] = ()
    """Folders that `record_demonstrations` wrote; `ID=FOLDER` for another tool's, with the environment's Gymnasium id."""
    evaluation_episodes: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes is not None:
            raise ValueError(
                f"data.own.episodes = {self.episodes}, but demonstrations are taken as they are: leave it out, and record "
                "as many as are wanted"
            )

    @property
    def takes_part(self) -> bool:
        """See `Source.takes_part`."""
        return self.weight > 0 and bool(self.demonstrations)

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Makes every environment: whether it is the one that was recorded."""
        if self.takes_part:
            for task in self.task_list():
                task.make().close()

    def task_list(self) -> list[Task]:
        """See `Source.task_list`."""
        return [*own_tasks(self.demonstrations, self.tasks)]

    def recordings(self) -> list[tuple[Task, int]]:
        """None: what there is was recorded by the user."""
        return []

    def folder(self, task: Task, stored: Stored) -> Path:
        """The user's own folder."""
        assert isinstance(task, OwnTask)
        return task.folder
