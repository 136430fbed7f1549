"""Agents that play tasks: the weights with or without demonstrations as a prompt, and a baseline to compare them with."""

import dataclasses
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from generalist.data.episodes import Episodes
from generalist.envs.recording import record
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.eval.control.lanes import MAX_LANES, Episode, Policy, Word, as_given, evaluate_control
from generalist.eval.control.policies import Memory, ModelPolicy, NearestNeighbour, Prompt
from generalist.inference.generalist import Generalist
from generalist.inference.policy import shape_of
from generalist.inference.weights import Weights
from generalist.run.tasks import is_own, stored, wanted_episodes
from generalist.system.progress import counted


@dataclasses.dataclass(frozen=True)
class Agent:
    """An agent as the command line and results name it."""

    prompt: Prompt | None
    """The model with this prompt; None: the nearest neighbour among the demonstrations."""

    @property
    def name(self) -> str:
        """Its name in results."""
        # A key of stored results: files of today must stay readable, so these names are final.
        if self.prompt is None:
            return "nearest neighbour"
        return f"model, {self.prompt}" if self.prompt.demonstrations else "model"

    @property
    def needs_demonstrations(self) -> bool:
        """Whether recorded episodes must be on disk before it plays."""
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
    """The recorded episodes of tasks, opened when they are first needed; safe to call from several threads."""

    def __init__(self, weights: Weights):
        self._config, self._stored = weights.config, stored(weights.config)
        self._lock = threading.Lock()

    def ensure(self, tasks: Sequence[Task], workers: int, console: Console) -> None:
        """Records the demonstrations that are not on disk."""
        folder = self._config.data.folder / "episodes"
        # Custom tasks have no scripted expert: their demonstrations come from their user.
        missing = [task for task in tasks if not is_own(task.name)]
        wanted = {task.name: wanted_episodes(self._config, task) for task in missing}
        record(missing, folder, episodes=wanted, workers=workers, console=console)

    def __call__(self, task: Task) -> Episodes:
        # Groups of lanes run in threads, and several of them may play the same task.
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
    word: Word = as_given,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> tuple[list[Episode], dict[str, Any]]:
    """Plays episodes of tasks with an agent.

    Args:
        generalist: the weights.
        agent: the agent.
        tasks: of any layouts.
        episodes: per task, or by the task's name.
        demonstrations: recorded episodes, for prompts and the nearest neighbour.
        workers, lanes, first_seed, word, progress, stop: as of `evaluate_control`.

    Returns:
        The episodes, and notes on them: `cut_demonstrations`, the number of demonstrations that were shown without their
        beginning, since all of it did not fit; and `clipped`, the share of observed numbers beyond the range of their
        statistics, by layout, where it is above 0 (None if the model does not play).

    Raises:
        ValueError: the weights do not know a task's layout.
        FileNotFoundError: demonstrations are needed and not recorded.
    """
    policies: list[ModelPolicy] = []

    # A game's memory takes hundreds of megabytes: lanes that play the task hold it, and it is freed with the last of them.
    memories: weakref.WeakValueDictionary[str, Memory] = weakref.WeakValueDictionary()

    def memory(task: Task) -> Memory:
        # Two threads may both build it: a waste, but `known` keeps each one's alive until its lanes hold it.
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

    # Computed here, so that an unknown layout fails before any environment is started.
    shapes = {task.layout: shape_of(generalist, task.layout) for task in tasks}
    played = evaluate_control(
        make,
        tasks,
        episodes,
        workers=workers,
        shape_of=lambda task: shapes[task.layout],
        lanes=lanes,
        # An accelerator leaves the cores to the environments. On a CPU both want the same cores: two groups took 1.04 to 1.27
        # times as long as one on two cores.
        overlap=jax.default_backend() != "cpu",
        first_seed=first_seed,
        word=word,
        progress=progress,
        stop=stop,
    )
    clipped = _clipped(policies) if agent.prompt is not None else None
    return played, {"cut_demonstrations": sum(policy.cut for policy in policies), "clipped": clipped}


def _clipped(policies: Sequence[ModelPolicy]) -> dict[str, float]:
    """Share of clipped numbers by layout, over all groups of lanes; several groups may share a layout."""
    counts: dict[str, np.ndarray] = {}  # (2,) each: clipped numbers, and all
    for policy in policies:
        for name, pair in policy.observed.items():
            counts[name] = counts.get(name, np.zeros(2, np.int64)) + pair
    return {name: float(cut / numbers) for name, (cut, numbers) in sorted(counts.items()) if cut}
