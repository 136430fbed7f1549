"""Demonstrations that an agent is shown before an episode (Gato, section 2.4), as a client asks for them:

    {"observations": ..., "actions": ...}          an episode of the client's own: T values each, or their arrays (T, ...)
    {"task": "fetch/reach", "seed": 3}             the episode of that seed, played by the task's expert on this machine
    {"task": "fetch/reach", "recorded": 3}         the episode of that number among those that were recorded here

each with `"goal": true` to show the end alone, which shows the goal. They are shown as `generalist eval control` shows them.

Dimension key: T steps.
"""

import collections
import dataclasses
import threading
from collections.abc import Sequence as Sequences
from typing import Any

from generalist.data.episodes import BrokenEpisode, Episode
from generalist.envs.registry import tasks
from generalist.envs.task import Task
from generalist.eval.control.agents import Demonstrations
from generalist.eval.control.policies import Prompt, shown_steps
from generalist.inference.policy import shape_of
from generalist.inference.weights import Weights
from generalist.serve.engine import Engine
from generalist.serve.experts import Played, Wanted, played
from generalist.serve.robot_messages import fitted
from generalist.serve.sessions import Refused
from generalist.system.processes import WorkerError
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import Sequence, Values
from generalist.tokenizers.space_values import checked, steps_of
from generalist.tokenizers.spaces import TaskLayout

MOST = 8
"""Demonstrations of one episode."""
KEPT = 16
"""Episodes of experts that are remembered, each with as many steps as can be shown."""
FIELDS = {"observations", "actions", "task", "seed", "recorded", "goal"}


@dataclasses.dataclass(frozen=True)
class Given:
    """An episode that a client sent, or an expert played."""

    layout: TaskLayout
    observations: list[Any]
    """The last of T, or all."""
    actions: list[Any]

    def __len__(self) -> int:
        return len(self.actions)

    def window(self, start: int, stop: int) -> tuple[Values, Values]:
        """Steps, checked against the layout.

        Raises:
            ValueError: a value is not of its space; the message names the step.
        """
        gone = len(self.actions) - len(self.observations)
        seen, acted = self.layout.observation, self.layout.action
        where = f"{self.layout.name}: the demonstration, step"
        observations = [
            seen.checked(fitted(seen.space, self.observations[at - gone]), f"{where} {at}: the observation")
            for at in range(start, stop)
        ]
        actions = [
            checked(acted.space, fitted(acted.space, self.actions[at]), f"{where} {at}: the action", bounded=True)
            for at in range(start, stop)
        ]
        return seen.stack(observations), acted.stack(actions)


Shown = Given | Episode
"""An episode of T steps, some of which are shown."""


class Teacher:
    """Makes the prefixes of episodes that begin with demonstrations.

    Args:
        engine: whose weights are taught.
        room: positions that an instruction and demonstrations may take.
    """

    def __init__(self, engine: Engine, room: int):
        self._engine, self._room = engine, room
        self._recorded = Demonstrations(engine.weights)
        self._experts: collections.OrderedDict[Wanted, Played] = collections.OrderedDict()
        self._playing = threading.Lock()  # one expert at a time: each takes a processor

    def prefix(self, layout: str, prompt: str, found: Any) -> tuple[Sequence, list[int]]:
        """The instruction and the demonstrations that a message asks for, and how many steps of each are shown.

        Raises:
            ValueError: they are no demonstrations of this layout, cannot be made here, or do not fit.
        """
        weights = self._engine.weights
        several = [self._one(one, weights.layouts[layout]) for one in asked(found)]
        return shown(weights, weights.layouts[layout], prompt, several, self._room)

    def expert(self, task: Task, seed: int) -> Played:
        """An expert's episode, with as many observations as can be shown.

        Raises:
            ValueError: there is none.
        """
        wanted = Wanted(task.name, seed)
        with self._playing:
            if wanted not in self._experts:
                try:
                    self._experts[wanted] = played(wanted, self._room)
                except (ImportError, WorkerError) as error:
                    raise ValueError(str(error)) from error
            self._experts.move_to_end(wanted)
            while len(self._experts) > KEPT:
                self._experts.popitem(last=False)
            return self._experts[wanted]

    def _one(self, found: dict[str, Any], layout: TaskLayout) -> tuple[Shown, bool]:
        """An episode, and whether its end alone is shown."""
        goal = found.get("goal", False)
        if not isinstance(goal, bool):
            raise ValueError("demonstration: goal must be true or false")
        if "task" in found:
            return self._of_task(found, layout), goal
        if missing := sorted({"observations", "actions"} - found.keys()):
            raise ValueError(f"demonstration: {missing[0]} are missing: send observations and actions, or name a task")
        seen = steps_of(layout.observation.space, found["observations"], "demonstration: the observations")
        acted = steps_of(layout.action.space, found["actions"], "demonstration: the actions")
        if not acted or len(seen) not in (len(acted), len(acted) + 1):
            raise ValueError(
                f"demonstration: {len(seen)} observations and {len(acted)} actions: send as many of each, at least one; one "
                "observation more, the last one, is allowed"
            )
        return Given(layout, seen[: len(acted)], acted), goal

    def _of_task(self, found: dict[str, Any], layout: TaskLayout) -> Shown:
        own = {task.name: task for task in tasks() if task.layout == layout.name}
        name = found["task"]
        if not isinstance(name, str) or name not in own:
            raise ValueError(
                f"demonstration: {str(name)[:60]!r} is no task of {layout.name}: there are {', '.join(own) or 'none'}"
            )
        if "recorded" not in found:
            one = self.expert(own[name], _number(found.get("seed", 0), "seed"))
            return Given(layout, one.observations, one.actions)
        number = _number(found["recorded"], "recorded")
        try:
            reader = self._recorded(own[name])
            if number >= len(reader):
                raise ValueError(f"demonstration: {name} has {len(reader)} recorded episodes here, from 0 up")
            return reader[number]
        except (FileNotFoundError, BrokenEpisode) as error:
            raise ValueError(
                f"demonstration: {name} has no recorded episode {number} here: leave `recorded` out"
            ) from error


def asked(found: Any) -> list[dict[str, Any]]:
    """The demonstrations of a message: one, its task alone, or several.

    Raises:
        ValueError: it has something else.
    """
    several = found if isinstance(found, list) else [found]
    if len(several) > MOST:
        raise ValueError(f"demonstration: {len(several)} are more than {MOST}")
    several = [{"task": one} if isinstance(one, str) else one for one in several]
    for one in several:
        if not isinstance(one, dict):
            raise ValueError(
                "demonstration: must be a map with observations and actions, the name of a task, or a list"
            )
        if unknown := sorted(str(name) for name in one.keys() - FIELDS):
            raise ValueError(f"demonstration: has {unknown[0][:60]!r}: known are {', '.join(sorted(FIELDS))}")
    return several


def shown(
    weights: Weights, layout: TaskLayout, prompt: str, several: Sequences[tuple[Shown, bool]], room: int
) -> tuple[Sequence, list[int]]:
    """A prefix of an instruction and the last steps of demonstrations, and how many of each are shown.

    Args:
        several: episodes, each with whether its end alone is shown.
        room: positions.

    Raises:
        Refused: not one step of each fits, or not the whole end that shows a goal.
        ValueError: the prompt has places that these weights have no ids for.
    """
    weights.assembler.check_places(prompt)
    if sees_each_image(weights, layout):
        raise Refused(
            f"demonstration: images of {layout.name} are encoded one by one, and are not shown before an episode"
        )
    left, step = room - len(weights.assembler.instruction(prompt)), positions_of_step(weights, layout)
    fits = left // step // max(1, len(several))
    counts = []
    for episode, goal in several:
        count = min(len(episode), shown_steps(weights, layout, prompt, Prompt(len(several), goal=goal)))
        # A whole demonstration is cut to what fits, as everywhere; the end that shows a goal is what training showed.
        if fits < (count if goal else 1):
            needed = len(several) * (count if goal else 1) * step + room - left
            raise Refused(
                f"demonstration: the prompt and what is shown take {needed} positions, but may take {room}: serve with "
                f"--prefix {needed}"
            )
        counts.append(min(count, fits))
    windows = [
        episode.window(len(episode) - count, len(episode)) for (episode, _), count in zip(several, counts, strict=True)
    ]
    return weights.assembler.prefix(layout, prompt, windows), counts


def positions_of_step(weights: Weights, layout: TaskLayout) -> int:
    """Positions that a shown step takes, at most."""
    observed, acted = layout.observation.tokens_per_step, layout.action.tokens_per_step
    assert observed is not None and acted is not None, "layouts with text have no steps of one shape"
    return observed + weights.assembler.separator + acted


def sees_each_image(weights: Weights, layout: TaskLayout) -> bool:
    """Whether the frozen encoder sees the layout's images."""
    return Modality.IMAGE in shape_of(weights, layout.name).modalities


def _number(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise ValueError(f"demonstration: {name} must be a whole number from 0 to 2147483647")
    return value
