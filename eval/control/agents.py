"""The weights as agents, and what they are compared with, on any tasks."""

import dataclasses
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from generalist.data.episodes import Episodes
from generalist.envs.recording import record
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.eval.control.lanes import MAX_LANES, Episode, Policy, evaluate_control
from generalist.eval.control.policies import Memory, ModelPolicy, NearestNeighbour, Prompt
from generalist.inference.generalist import Generalist
from generalist.inference.policy import shape_of
from generalist.run.tasks import is_own, stored, wanted_episodes
from generalist.system.progress import counted


@dataclasses.dataclass(frozen=True)
class Agent:
    """Who plays."""

    prompt: Prompt | None
    """The model with this prompt; None: the nearest neighbour among the demonstrations."""

    @property
    def name(self) -> str:
        """How results call it."""
        if self.prompt is None:
            return "nearest neighbour"
        return f"model, {self.prompt}" if self.prompt.demonstrations else "model"

    @property
    def needs_demonstrations(self) -> bool:
        return self.prompt is None or self.prompt.demonstrations > 0


def parse_agent(text: str) -> Agent:
    """`model`, `nearest`, or a prompt for the model: `goal`, `whole`, or a number of demonstrations.

    Raises:
        ValueError: it is none of these.
    """
    if text == "nearest":
        return Agent(None)
    try:
        return Agent(Prompt.parse("none" if text == "model" else text))
    except ValueError:
        raise ValueError(
            f"an agent is model, goal, whole, a number of demonstrations, or nearest, got {text!r}"
        ) from None


class Demonstrations:
    """The recorded episodes of tasks."""

    def __init__(self, generalist: Generalist):
        self._config, self._stored = generalist.config, stored(generalist.config)
        self._lock = threading.Lock()

    def ensure(self, tasks: Sequence[Task], workers: int, console: Console) -> None:
        """Records what is missing."""
        folder = self._config.data.folder / "episodes"
        missing = [task for task in tasks if not is_own(task.name)]
        wanted = {task.name: wanted_episodes(self._config, task) for task in missing}
        record(missing, folder, episodes=wanted, workers=workers, console=console)

    def __call__(self, task: Task) -> Episodes:
        with self._lock:
            return self._config.data.suite_of(task.layout).episodes_of(task, self._stored)


def play(
    generalist: Generalist,
    agent: Agent,
    tasks: Sequence[Task],
    episodes: int | Mapping[str, int],
    demonstrations: Demonstrations,
    *,
    workers: int,
    lanes: int = MAX_LANES,
    first_seed: int = EVALUATION_SEED,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> tuple[list[Episode], dict[str, Any]]:
    """An agent's episodes, and notes on them: `cut_demonstrations`, how many were shown without their beginning, which did not
    fit; and `clipped`, the share of observed numbers beyond the range of their statistics, by layout, above 0 (None where the
    model does not play).

    Raises:
        ValueError: the weights do not know a task's layout.
        FileNotFoundError: demonstrations are needed and not recorded.
    """
    policies: list[ModelPolicy] = []

    # Hundreds of megabytes for a game: kept while somebody plays the task, and no longer.
    memories: weakref.WeakValueDictionary[str, Memory] = weakref.WeakValueDictionary()

    def memory(task: Task) -> Memory:
        if (known := memories.get(task.name)) is None:
            reader, layout = demonstrations(task), generalist.layouts[task.layout]
            with counted(progress, f"reading {task.name}", len(reader)) as read:
                memories[task.name] = known = Memory(layout, reader, read)
        return known

    def make(layouts: list[str]) -> Policy:
        if agent.prompt is None:
            return NearestNeighbour(generalist.layouts, len(layouts), memory)
        policies.append(ModelPolicy(generalist, layouts, agent.prompt, demonstrations))
        return policies[-1]

    shapes = {task.layout: shape_of(generalist, task.layout) for task in tasks}
    played = evaluate_control(
        make,
        tasks,
        episodes,
        workers=workers,
        shape_of=lambda task: shapes[task.layout],
        lanes=lanes,
        first_seed=first_seed,
        progress=progress,
        stop=stop,
    )
    clipped = _clipped(policies) if agent.prompt is not None else None
    return played, {"cut_demonstrations": sum(policy.cut for policy in policies), "clipped": clipped}


def _clipped(policies: Sequence[ModelPolicy]) -> dict[str, float]:
    """Over all groups of lanes, some of which share a layout."""
    counts: dict[str, np.ndarray] = {}
    for policy in policies:
        for name, pair in policy.observed.items():
            counts[name] = counts.get(name, np.zeros(2, np.int64)) + pair
    return {name: float(cut / numbers) for name, (cut, numbers) in sorted(counts.items()) if cut}
