"""Who plays: the model, without a prompt or with demonstrations before the episode; and the nearest neighbour among those."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from generalist.data.episodes import Episode, EpisodeReader
from generalist.envs.task import Task
from generalist.eval.control import Begun
from generalist.inference.load import Generalist
from generalist.inference.policy import ControlPolicy, shape_of
from generalist.tokenizers.sequence import Sequence as Tokens
from generalist.tokenizers.spaces import TaskLayout

Demonstrations = Callable[[Task], EpisodeReader]
"""The recorded episodes of a task."""

Values = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What of other episodes of the task the model is shown before its own (Gato, section 2.4)."""

    kind: Literal["none", "goal", "whole"] | int
    """Nothing; the last `prompt_steps` steps of a demonstration, which show the goal; a whole one; or several whole ones."""

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """From the command line.

        Raises:
            ValueError: it is no kind of prompt.
        """
        if text in ("none", "goal", "whole"):
            return cls(text)  # type: ignore[arg-type]
        if text.isdecimal() and int(text) > 0:
            return cls(int(text))
        raise ValueError(f"a prompt is none, goal, whole or a number of demonstrations, got {text!r}")

    @property
    def demonstrations(self) -> int:
        """How many episodes it takes from."""
        return self.kind if isinstance(self.kind, int) else 0 if self.kind == "none" else 1

    def __str__(self) -> str:
        return f"{self.kind} demonstrations" if isinstance(self.kind, int) else f"{self.kind} prompt"


class ModelPolicy:
    """The weights act. Demonstrations that are longer than a row of training are cut to their last steps.

    Args:
        layouts: the name of each lane's layout.
        demonstrations: where prompts come from; which are shown in an episode is drawn by its seed.
    """

    def __init__(self, generalist: Generalist, layouts: list[str], prompt: Prompt, demonstrations: Demonstrations):
        self._generalist, self._prompt, self._demonstrations = generalist, prompt, demonstrations
        self._policy = ControlPolicy(generalist, layouts)
        self.cut = 0
        """Demonstrations that were shown without their beginning."""

    def start(self, begun: Mapping[int, Begun]) -> None:
        """See `eval.control.Policy`."""
        prefixes = [self._prefix(one) for one in begun.values()]
        self._policy.reset(list(begun), prefixes, [one.seed for one in begun.values()])

    def act(self, observations: list[Any]) -> list[Any]:
        """See `eval.control.Policy`."""
        return self._policy.act(observations)

    def _prefix(self, begun: Begun) -> Tokens:
        layout, assembler = self._generalist.layouts[begun.task.layout], self._generalist.assembler
        if not self._prompt.demonstrations:
            return assembler.instruction(begun.instruction)
        control = self._generalist.control(begun.task.layout)
        reader, shape = self._demonstrations(begun.task), shape_of(self._generalist, begun.task.layout)
        each = len(shape.modalities) - (shape.dimensions - 1 if shape.hidden else 0) + shape.dimensions
        own = len(assembler.instruction(begun.instruction)) + shape.window * (len(shape.modalities) + shape.dimensions)
        room = max(
            control.prompt_steps, (self._generalist.config.data.length - own) // each // self._prompt.demonstrations
        )
        steps = control.prompt_steps if self._prompt.kind == "goal" else room
        rng = np.random.default_rng(begun.seed)
        chosen = rng.choice(len(reader), min(self._prompt.demonstrations, len(reader)), replace=False)
        episodes = [reader[int(index)] for index in chosen]
        self.cut += sum(len(episode) > steps for episode in episodes) if self._prompt.kind != "goal" else 0
        shown = [episode.window(max(0, len(episode) - steps), len(episode)) for episode in episodes]
        return assembler.prefix(layout, begun.instruction, shown)


class NearestNeighbour:
    """Does what was done in the demonstrated step whose observation is nearest; among those with the same instruction, if there
    are any. A baseline: it shows what copying can do.

    Args:
        layouts: of each layout's name.
        memories: one a task, shared by all lanes and groups.
    """

    def __init__(self, layouts: Mapping[str, TaskLayout], lanes: int, memory: Callable[[Task], "Memory"]):
        self._layouts, self._memory = layouts, memory
        self._playing: list[Begun | None] = [None] * lanes
        self._before: list[Values | None] = [None] * lanes

    def start(self, begun: Mapping[int, Begun]) -> None:
        """See `eval.control.Policy`."""
        for lane, one in begun.items():
            self._playing[lane], self._before[lane] = one, None

    def act(self, observations: list[Any]) -> list[Any]:
        """See `eval.control.Policy`."""
        actions: list[Any] = [None] * len(observations)
        for lane, (begun, observation) in enumerate(zip(self._playing, observations, strict=True)):
            if begun is None or observation is None:
                continue
            layout = self._layouts[begun.task.layout]
            seen = layout.observation.stack([observation])
            before = self._before[lane] or seen
            actions[lane] = self._memory(begun.task).action(features(seen, before), begun.instruction)
            self._before[lane] = seen
        return actions


@dataclasses.dataclass(frozen=True)
class Features:
    """T observations as numbers to compare."""

    numbers: np.ndarray
    """float32 (T, n): measured values, and images at a quarter of their size with what changed since the last one."""
    categories: np.ndarray
    """(T, m): counted as equal or different."""


def features(now: Values, before: Values) -> Features:
    """Of flat observations, each array (T, ...), and those one step earlier."""
    steps = len(next(iter(now.values())))
    numbers, categories = [np.zeros((steps, 0), np.float32)], [np.zeros((steps, 0), np.int32)]
    for key in sorted(now):
        array = np.asarray(now[key])
        if array.dtype == np.uint8 and array.ndim == 4:
            small, last = _small(array), _small(np.asarray(before[key]))
            numbers += [small, small - last]
        elif array.dtype.kind == "f":
            numbers.append(array.reshape(steps, -1).astype(np.float32))
        elif array.dtype.kind in "iub":
            categories.append(array.reshape(steps, -1).astype(np.int32))
    return Features(np.concatenate(numbers, axis=1), np.concatenate(categories, axis=1))


def _small(images: np.ndarray) -> np.ndarray:
    """Grey images (T, H, W, C) by the mean of 4×4 pixels, as vectors in 0..1."""
    grey = images.mean(axis=-1, dtype=np.float32) / 255
    height, width = (size // 4 * 4 for size in grey.shape[1:])
    blocks = grey[:, :height, :width].reshape(len(grey), height // 4, 4, width // 4, 4)
    return blocks.mean(axis=(2, 4)).reshape(len(grey), -1)


class Memory:
    """Every step of a task's demonstrations."""

    def __init__(self, layout: TaskLayout, reader: EpisodeReader):
        episodes: Sequence[Episode] = [reader[index] for index in range(len(reader))]
        parts, self._actions, instructions = [], [], []
        for episode in episodes:
            seen, acted = episode.window(0, len(episode))
            earlier = {key: np.concatenate([array[:1], array[:-1]]) for key, array in seen.items()}
            parts.append(features(seen, earlier))
            self._actions += values(layout, acted, len(episode))
            instructions += [episode.instruction] * len(episode)
        numbers = np.concatenate([part.numbers for part in parts])
        self._mean, self._std = numbers.mean(axis=0), np.maximum(numbers.std(axis=0), 1e-3)
        self._numbers = (numbers - self._mean) / self._std
        self._squares = np.square(self._numbers).sum(axis=1)
        self._categories = np.concatenate([part.categories for part in parts])
        self._instructions = np.array(instructions)

    def action(self, seen: Features, instruction: str) -> Any:
        """The action of the nearest step."""
        mine = (seen.numbers[0] - self._mean) / self._std
        distance = self._squares - 2 * self._numbers @ mine
        distance = distance + (self._categories != seen.categories[0]).sum(axis=1)
        same = self._instructions == instruction
        if same.any():
            distance = np.where(same, distance, np.inf)
        return self._actions[int(np.argmin(distance))]


def values(layout: TaskLayout, flat: Mapping[str, np.ndarray], steps: int) -> list[Any]:
    """Recorded actions as values of their space."""
    from generalist.tokenizers.space_tree import assembled

    leaves = {part.path: np.asarray(flat[part.key]) for part in layout.action.parts}
    return [assembled(layout.action.space, (), leaves, step) for step in range(steps)]
