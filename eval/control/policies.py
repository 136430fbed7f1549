"""Policies: the model, without a prompt or with demonstrations before the episode; and the nearest neighbour among those.

Dimension key: T steps, n measured numbers, m categories, H height, W width, C channels.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8

from generalist.data.episodes import Episodes
from generalist.envs.task import Policy, Task
from generalist.envs.watching import Begin
from generalist.eval.control.lanes import Begun
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.inference.weights import Weights
from generalist.tokenizers.sequence import Sequence as Tokens
from generalist.tokenizers.space_tree import assembled
from generalist.tokenizers.spaces import TaskLayout

Demonstrations = Callable[[Task], Episodes]
"""The recorded episodes of a task."""

Values = dict[str, Shaped[np.ndarray, "T ..."]]
"""Observations of T steps, by flat key."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The part of other episodes of the task that the model is shown before its own (Gato, section 2.4)."""

    demonstrations: int = 0
    """Number of episodes."""
    goal: bool = False
    """Show only their last `prompt_steps` steps, which show the goal."""

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """A prompt as the command line names it: none, goal, whole, or a number of demonstrations.

        Raises:
            ValueError: it is none of these.
        """
        named = {"none": cls(), "goal": cls(1, goal=True), "whole": cls(1)}
        if text in named:
            return named[text]
        if text.isdecimal() and int(text) > 0:
            return cls(int(text))
        raise ValueError(f"a prompt is none, goal, whole or a number of demonstrations, got {text!r}")

    def __str__(self) -> str:
        if self.goal:
            return "goal prompt"
        return "whole demonstration" if self.demonstrations == 1 else f"{self.demonstrations} demonstrations"


class ModelPolicy:
    """The model acts. Demonstrations that do not fit into a row of training are cut to their last steps.

    Args:
        generalist: the weights.
        layouts: the name of each lane's layout.
        prompt: what is shown before each episode.
        demonstrations: the source of prompts; an episode's seed decides which ones it is shown.
    """

    def __init__(self, generalist: Generalist, layouts: list[str], prompt: Prompt, demonstrations: Demonstrations):
        self._generalist, self._prompt, self._demonstrations = generalist, prompt, demonstrations
        self._policy = ControlPolicy(generalist, layouts)
        self.cut = 0
        """Number of demonstrations that were shown without their beginning."""

    def start(self, begun: Mapping[int, Begun]) -> None:
        """See `lanes.Policy`."""
        prefixes = [self._prefix(one) for one in begun.values()]
        self._policy.reset(list(begun), prefixes, [one.seed for one in begun.values()])

    def act(self, observations: list[Any]) -> list[Any]:
        """See `lanes.Policy`."""
        return self._policy.act(observations)

    def close(self) -> None:
        """See `lanes.Policy`; there is nothing to end."""

    @property
    def observed(self) -> dict[str, tuple[int, int]]:
        """See `ControlPolicy.observed`."""
        return self._policy.observed

    def _prefix(self, begun: Begun) -> Tokens:
        """The episode's instruction, with demonstrations after it."""
        layout, assembler = self._generalist.layouts[begun.task.layout], self._generalist.assembler
        if not self._prompt.demonstrations:
            return assembler.instruction(begun.instruction)
        steps = shown_steps(self._generalist, layout, begun.instruction, self._prompt)
        reader = self._demonstrations(begun.task)
        count = min(self._prompt.demonstrations, len(reader))
        # By the seed alone, so that it does not matter in which lane or order episodes are played.
        chosen = np.random.default_rng(begun.seed).choice(len(reader), count, replace=False)
        episodes = [reader[int(index)] for index in chosen]
        if not self._prompt.goal:
            self.cut += sum(len(episode) > steps for episode in episodes)
        # The last steps: the end shows the goal.
        shown = [episode.window(max(0, len(episode) - steps), len(episode)) for episode in episodes]
        return assembler.prefix(layout, begun.instruction, shown)


def shown_steps(weights: Weights, layout: TaskLayout, instruction: str, prompt: Prompt) -> int:
    """Steps of each demonstration that fit into a row of training beside the instruction and a whole window."""
    acting = layout.acting
    if prompt.goal:
        return acting.prompt_steps
    room = weights.assembler.room(layout, instruction, window=acting.steps, length=weights.config.data.length)
    # Never fewer than training prompts have: the model has seen no shorter ones.
    return max(acting.prompt_steps, room // prompt.demonstrations)


class NearestNeighbour:
    """Takes the action of the demonstrated step whose observation is nearest, among steps with the same instruction if there are
    any. A baseline: it shows how far copying gets.

    Args:
        layouts: by their names.
        lanes: number of lanes.
        memory: the memory of a task; held by the lanes that play it.
    """

    def __init__(self, layouts: Mapping[str, TaskLayout], lanes: int, memory: Callable[[Task], "Memory"]):
        self._layouts, self._memory_of = layouts, memory
        self._playing: list[Begun | None] = [None] * lanes
        # Held per lane, so that a task's memory is freed when its last lane begins another task.
        self._memory: list[Memory | None] = [None] * lanes
        self._before: list[Values | None] = [None] * lanes

    def start(self, begun: Mapping[int, Begun]) -> None:
        """See `lanes.Policy`."""
        for lane, one in begun.items():
            self._playing[lane], self._before[lane] = one, None
            self._memory[lane] = self._memory_of(one.task)

    def act(self, observations: list[Any]) -> list[Any]:
        """See `lanes.Policy`."""
        actions: list[Any] = [None] * len(observations)
        # Lanes of one task look into its memory together: reading it takes longer than comparing.
        together: dict[Memory, list[int]] = {}
        for lane, (memory, observation) in enumerate(zip(self._memory, observations, strict=True)):
            if memory is not None and observation is not None:
                together.setdefault(memory, []).append(lane)
        for memory, lanes in together.items():
            begun = [one for one in (self._playing[lane] for lane in lanes) if one is not None]
            space = self._layouts[begun[0].task.layout].observation
            seen = [space.stack([observations[lane]]) for lane in lanes]
            # The first step of an episode has no change: it is its own predecessor, as in `Memory`.
            before = [self._before[lane] or now for lane, now in zip(lanes, seen, strict=True)]
            found = memory.actions(features(_joined(seen), _joined(before)), [one.instruction for one in begun])
            for lane, now, action in zip(lanes, seen, found, strict=True):
                self._before[lane], actions[lane] = now, action
        return actions

    def close(self) -> None:
        """See `lanes.Policy`; its memories are freed."""
        self._memory = [None] * len(self._memory)


@dataclasses.dataclass(frozen=True)
class Features:
    """T observations as numbers to compare."""

    numbers: Float32[np.ndarray, "T n"]
    """Measured values, and images at a quarter of their size with their changes since the step before."""
    categories: Int32[np.ndarray, "T m"]
    """Values that are compared for equality only."""


def features(now: Values, before: Values) -> Features:
    """The features of T flat observations.

    Args:
        now: the observations.
        before: those one step earlier.
    """
    steps = len(next(iter(now.values())))
    # Empty columns first: a space may have no numbers, or no categories, and nothing cannot be concatenated.
    numbers, categories = [np.zeros((steps, 0), np.float32)], [np.zeros((steps, 0), np.int32)]
    for key in sorted(now):
        array = np.asarray(now[key])
        # Texts are left out: an instruction is compared apart from the observation.
        if array.dtype == np.uint8 and array.ndim == 4:
            small, last = _small(array), _small(np.asarray(before[key]))
            numbers += [small, small - last]
        elif array.dtype.kind == "f":
            numbers.append(array.reshape(steps, -1).astype(np.float32))
        elif array.dtype.kind in "iub":
            categories.append(array.reshape(steps, -1).astype(np.int32))
    return Features(np.concatenate(numbers, axis=1), np.concatenate(categories, axis=1))


def _joined(steps: Sequence[Values]) -> Values:
    """Several steps' values as those of one episode."""
    return {key: np.concatenate([values[key] for values in steps]) for key in steps[0]}


def _small(images: UInt8[np.ndarray, "T H W C"]) -> Float32[np.ndarray, "T n"]:
    """Grey images, averaged over 4×4 pixels, as vectors in 0..1."""
    grey = images.mean(axis=-1, dtype=np.float32) / 255  # (T, H, W)
    height, width = (size // 4 * 4 for size in grey.shape[1:])
    blocks = grey[:, :height, :width].reshape(len(grey), height // 4, 4, width // 4, 4)
    return blocks.mean(axis=(2, 4)).reshape(len(grey), -1)  # (T, H / 4 · W / 4)


class Memory:
    """Every step of a task's demonstrations, as features with its action.

    Args:
        layout: of the task.
        reader: its demonstrations.
        read: called after each episode, for a progress bar: a game's hundreds of megabytes take minutes.
    """

    def __init__(self, layout: TaskLayout, reader: Episodes, read: Callable[[], None] = lambda: None):
        parts, self._actions, instructions = [], [], []
        for index in range(len(reader)):
            episode = reader[index]
            seen, acted = episode.window(0, len(episode))
            earlier = {key: np.concatenate([array[:1], array[:-1]]) for key, array in seen.items()}
            parts.append(features(seen, earlier))
            self._actions += values(layout, acted, len(episode))
            instructions += [episode.instruction] * len(episode)
            read()
        numbers = np.concatenate([part.numbers for part in parts])  # (T, n) of all episodes
        # Standardised, so that every number counts the same; a constant one must not be divided by zero.
        self._mean, self._std = numbers.mean(axis=0), np.maximum(numbers.std(axis=0), 1e-3)
        self._numbers = (numbers - self._mean) / self._std
        self._squares = np.square(self._numbers).sum(axis=1)
        self._categories = np.concatenate([part.categories for part in parts])
        self._instructions = np.array(instructions)

    def actions(self, seen: Features, instructions: Sequence[str]) -> list[Any]:
        """The action of the step that is nearest to each of the observations.

        Args:
            seen: the observations.
            instructions: of their episodes.
        """
        # One product reads the memory once for all of them: an Atari game's takes a quarter of a gigabyte.
        products = self._numbers @ ((seen.numbers - self._mean) / self._std).T  # (T, observations)
        found = []
        for number, instruction in enumerate(instructions):
            # |a - b|² without |b|², which is the same for all steps.
            distance = self._squares - 2 * products[:, number]
            # A category that differs counts as one standard deviation.
            distance = distance + (self._categories != seen.categories[number]).sum(axis=1)
            same = self._instructions == instruction
            if same.any():
                distance = np.where(same, distance, np.inf)
            found.append(self._actions[int(np.argmin(distance))])
        return found


def values(layout: TaskLayout, flat: Mapping[str, Shaped[np.ndarray, "T ..."]], steps: int) -> list[Any]:
    """Recorded actions of T steps as values of their space."""
    leaves = {part.path: np.asarray(flat[part.key]) for part in layout.action.parts}
    return [assembled(layout.action.space, (), leaves, step) for step in range(steps)]


def player(generalist: Generalist, task: Task) -> Begin:
    """The weights as the player of a single environment (see `generalist.envs.watching`).

    Raises:
        ValueError: they do not know the task's layout.
    """
    if task.layout not in generalist.layouts:
        known = ", ".join(sorted(generalist.layouts)) or "none"
        raise ValueError(f"the weights were not trained on {task.layout}; the layouts they know: {known}")
    # Made once: its caches and compiled steps serve all episodes.
    policy = ControlPolicy(generalist, [task.layout])

    def begin(task: Task, env: gym.Env, instruction: str, seed: int) -> Policy:
        policy.reset([0], [instruction], [seed])
        return lambda observation: policy.act([observation])[0]

    return begin
