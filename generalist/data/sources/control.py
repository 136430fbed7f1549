"""Control suites: episodes that scripted experts play, recorded by the run, shown as windows of steps."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from generalist.data.episodes import Episodes
from generalist.data.examples import ControlExamples, Examples
from generalist.data.source import Reading, Source, Stored, Ways, check_locations, register
from generalist.data.spread import spread
from generalist.envs import registry
from generalist.envs.recording import recording_folder
from generalist.envs.rlds import dataset_folder, read_metadata
from generalist.envs.task import Task
from generalist.tokenizers.acting import Acting

INSTRUCTIONS = 64  # per task, for the text tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlSource(Source):
    """One suite of control tasks as a source of training examples."""

    tasks: str = "*"
    """The suite's tasks to take, as a shell pattern on the part of the name after the slash."""
    episodes: int | None = None
    """Expert episodes recorded per task; None takes the suite's default number."""
    steps: int = 8
    """Environment steps per training window, which is also the context that the policy acts with."""
    hide_actions: float = 1.0
    """Share of windows whose action inputs are hidden, so that the policy cannot learn to copy its last action; it then decodes
    all dimensions of an action at once. Acting hides past actions if this is above 0."""
    temperature: float = 0.0
    """Acting samples actions at this temperature; 0 takes the most likely action, and the median of a continuous number. Sampling
    keeps a policy from standing still for ever."""
    prompt_fraction: float = 0.0
    """Share of windows that begin with steps of another episode of the same task (Gato: 0.25)."""
    prompt_steps: int = 4
    """Environment steps per prompt."""
    prompt_demonstrations: int = 0
    """If above 0, half of the prompts show 1 to N demonstrations, each at least `prompt_steps` long and cut to fit the row."""
    shift: int = 0
    """Maximum random shift of a training window's frames in pixels, the same for all of them: regularises training on few
    episodes (DrQ, Kostrikov et al. 2020)."""
    recast: bool = False
    """Show each training window in a random equivalent version, for suites that have any: BabyAI's grids with permuted colours,
    also in the instruction. Regularises training on few episodes."""
    evaluation_episodes: int = 10
    """Episodes played per task when the trained weights are evaluated."""

    def __post_init__(self) -> None:
        # Messages say SUITE: settings do not know their name in the mixture.
        least = {"shift": 0, "prompt_demonstrations": 0, "steps": 1, "prompt_steps": 1, "evaluation_episodes": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"data.SUITE.{name} must be at least {value}, got {getattr(self, name)}")
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"data.SUITE.episodes must be at least 1, got {self.episodes}")
        for name in ("hide_actions", "prompt_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.SUITE.{name} must be a share from 0 to 1, got {getattr(self, name)}")
        if self.temperature < 0:
            raise ValueError(f"data.SUITE.temperature must not be negative, got {self.temperature}")

    @property
    def acting(self) -> Acting:
        """How agents act in layouts that are trained with these settings; stored with each layout (see `TaskLayout`)."""
        return Acting(
            steps=self.steps,
            # A policy that has seen hidden actions acts best as it did there, even if some windows showed them.
            hide_actions=self.hide_actions > 0,
            temperature=self.temperature,
            prompt_steps=self.prompt_steps,
        )

    def has_layout(self, layout: str) -> bool:
        """Whether a layout, by its name, is of this source's tasks."""
        return layout.partition("/")[0] == self.kind

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("control",)

    def check_settings(self, name: str, ways: Ways) -> None:
        """See `Source.check_settings`."""
        if self.shift and "frame" not in ways.images:
            raise ValueError(
                f"data.{name}.shift moves frames, but tokens.images = {'+'.join(ways.images)} has none: leave it out, or add "
                "frame to tokens.images"
            )
        if self.recast and not self.knows_equal_worlds:
            raise ValueError(f"data.{name}.recast: {name} has no equivalent versions of an episode: leave it out")
        # Observations hardly ever repeat, so that storing their features would only fill the disk.
        if ways.features == "stored" and {"encoder", "projected"} & {*ways.images}:
            raise ValueError(
                f"data.features = stored needs a fixed set of images, but data.{name} shows observations: compute the features, "
                "or let images enter another way (tokens.images)"
            )

    @property
    def knows_equal_worlds(self) -> bool:
        """Whether the suite's tasks define `recast`."""
        return False

    def task_list(self) -> list[Task]:
        """See `Source.task_list`."""
        return registry.tasks(f"{self.kind}/{self.tasks}")

    def recordings(self) -> list[tuple[Task, int]]:
        """See `Source.recordings`."""
        return [(task, self.episodes or task.episodes) for task in self.task_list()]

    def folder(self, task: Task, stored: Stored) -> Path:
        """The folder of a task's episodes."""
        return recording_folder(stored.folder / "episodes", task, self.episodes or task.episodes)

    def open_demonstrations(self, stored: Stored) -> dict[Task, Episodes]:
        """See `Source.open_demonstrations`."""
        return {task: self.episodes_of(task, stored) for task in self.task_list()}

    def episodes_of(self, task: Task, stored: Stored) -> Episodes:
        """The episodes of one of its tasks.

        Raises:
            FileNotFoundError: they are not where they should be.
            ValueError: they are damaged.
        """
        return stored.reader(self.folder(task, stored), task.instruction)

    def open_corrections(self, stored: Stored) -> list[tuple[Task, Episodes]]:
        """See `Source.open_corrections`."""
        places = [
            (task, dataset_folder(folder, task)) for folder in stored.corrections for task in self.task_list()
        ]  # fmt: skip
        # A folder of corrections is of some tasks only, and one whose metadata are missing was not completed.
        found = [(task, place) for task, place in places if read_metadata(place) is not None]
        return [(task, stored.reader(place, task.instruction)) for task, place in found]

    def texts(self, stored: Stored) -> Iterator[str]:
        """The instructions of a sample of each task's episodes."""
        for reader in self.open_demonstrations(stored).values():
            # In some suites every episode has its own instruction.
            yield from (reader[index].instruction for index in spread(len(reader), INSTRUCTIONS).tolist())

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """Windows of each task's demonstrations, then of its corrections."""
        # Corrections show the weights' mistakes, so they never serve as prompts.
        return [
            *(self._windows(task, reader, reading) for task, reader in self.open_demonstrations(stored).items()),
            *(
                self._windows(task, reader, reading, prompts=False)
                for task, reader in self.open_corrections(stored)
            ),
        ]  # fmt: skip

    def _windows(self, task: Task, reader: Episodes, reading: Reading, *, prompts: bool = True) -> ControlExamples:
        return ControlExamples(
            reader=reader,
            layout=reading.layouts[task.layout],
            assembler=reading.assembler,
            steps=self.steps,
            hide_actions=self.hide_actions,
            prompt_fraction=self.prompt_fraction if prompts else 0.0,
            prompt_steps=self.prompt_steps,
            prompt_demonstrations=self.prompt_demonstrations,
            length=reading.length,
            shift=self.shift,
            recast=task.recast if self.recast else None,
        )


@register("metaworld")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaWorld(ControlSource):
    """Meta-World: robot manipulation from state."""

    evaluation_episodes: int = 4


@register("babyai")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BabyAI(ControlSource):
    """BabyAI: instructions in a grid world."""

    evaluation_episodes: int = 5
    places: float = 0.0
    """Share of the training windows at an episode's beginning that are told the place of their target in the first view instead
    of its name, `go to <loc...>`, in levels whose mission is to go to one thing that is in view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.places <= 1:
            raise ValueError(f"data.{self.kind}.places must be a share from 0 to 1, got {self.places}")

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("control", "places") if self.places else ("control",)

    def check_settings(self, name: str, ways: Ways) -> None:
        """See `Source.check_settings`."""
        super().check_settings(name, ways)
        if not self.places:
            return
        check_locations(f"{name}.places", ways.locations)
        if not any(task.can_be_pointed for task in self.task_list()):
            raise ValueError(
                f"data.{name}.places = {self.places} has no effect, since data.{name}.tasks = {self.tasks} has no level whose "
                f"target can be told by its place: leave data.{name}.places out, or choose levels such as GoTo*"
            )

    def _windows(self, task: Task, reader: Episodes, reading: Reading, *, prompts: bool = True) -> ControlExamples:
        windows = super()._windows(task, reader, reading, prompts=prompts)
        return dataclasses.replace(windows, places=self.places, pointed=task.pointed)

    @property
    def knows_equal_worlds(self) -> bool:
        return True


@register("atari")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Atari(ControlSource):
    """Atari 2600 from pixels."""

    evaluation_episodes: int = 4


@register("classic")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classic(ControlSource):
    """Classic control, Box2D and MuJoCo from state."""


@register("fetch")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetch(ControlSource):
    """Fetch: a robot arm that reaches, pushes and carries, from state."""

    evaluation_episodes: int = 20
