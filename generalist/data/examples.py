"""Training examples from episodes, drawings and texts: each an indexable list from which `example(index, rng)` draws one.

The random generator belongs to the index and the epoch, so that the same position of a run always gives the same example.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from generalist.data.emoji import Drawing
from generalist.data.emoji import example as draw_example
from generalist.data.episodes import BrokenEpisode, Episode, Episodes
from generalist.envs.task import Recast
from generalist.tokenizers.image import moved
from generalist.tokenizers.sequence import Assembler, Sequence
from generalist.tokenizers.spaces import TaskLayout

Steps = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
"""Observations and actions of T steps: flat key → (T, ...)."""


@runtime_checkable
class Examples(Protocol):
    """What a source is made of."""

    def __len__(self) -> int:
        """Examples an epoch."""

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        """One of them; what is random about it is drawn from `rng`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlExamples:
    """Windows of `steps` steps of one task's episodes: ⌈T / steps⌉ an episode of T steps.

    A window starts within half its length of its stretch, never before the episode or so late that it would be cut short: all
    steps are seen with all lengths of history, beginnings and ends, which decide most episodes, a little more often.
    """

    reader: Episodes
    layout: TaskLayout
    assembler: Assembler
    steps: int
    hide_actions: float
    prompt_fraction: float = 0.0
    prompt_steps: int = 0
    prompt_demonstrations: int = 0
    length: int = 0
    """Positions of a row, which bound what of several demonstrations is shown."""
    shift: int = 0
    """Pixels by which all frames of an example are moved at most, in both directions."""
    recast: Callable[[np.random.Generator], Recast] | None = None
    """Draws an equal world, in which an example is shown; None: as it was recorded."""
    first: np.ndarray = dataclasses.field(init=False)
    """int (episodes + 1,): number of the first window of each episode."""

    def __post_init__(self) -> None:
        windows = -(-self.reader.lengths // self.steps)
        object.__setattr__(self, "first", np.concatenate([[0], np.cumsum(windows)]))

    def __len__(self) -> int:
        return int(self.first[-1])

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        """A window of an episode or, where it can't be read, of the next one. Which one that is depends on the files and the
        generator alone, not on what was left out before: a run that goes on sees what it would have seen.

        Raises:
            ValueError: more episodes than may be left out can't be read, or none can.
        """
        first = int(np.searchsorted(self.first, index, side="right")) - 1
        stretch = index - int(self.first[first])
        for step in range(len(self.reader)):
            try:
                return self._example((first + step) % len(self.reader), stretch, rng)
            except BrokenEpisode as error:
                self.reader.leave_out(error)
        raise ValueError(f"no episode of {self.layout.name} can be read: give another data set")

    def _example(self, number: int, stretch: int, rng: np.random.Generator) -> Sequence:
        episode = self.reader[number]
        half = self.steps // 2
        start = stretch * self.steps + int(rng.integers(-half, self.steps - half))
        start = min(max(start, 0), max(0, len(episode) - self.steps))
        window, instruction = episode.window(start, start + self.steps), episode.instruction
        hide = rng.random() < self.hide_actions
        world = self.recast(rng) if self.recast else None
        if world:
            instruction = world.instruction(instruction)
        prompts = self._prompts(number, instruction, rng) if rng.random() < self.prompt_fraction else []
        if world:
            window, *prompts = [(world.observations(seen), done) for seen, done in (window, *prompts)]
        sequence = self.assembler.control(self.layout, instruction, *window, hide_actions=hide, prompts=prompts)
        if self.shift:
            down, right = rng.integers(-self.shift, self.shift + 1, 2).tolist()
            sequence = dataclasses.replace(sequence, frames=moved(sequence.frames, down, right))
        return sequence

    def _prompts(self, number: int, instruction: str, rng: np.random.Generator) -> list[Steps]:
        """Steps of another episode of the task, or of several. The episode itself would give the answer away."""
        count, steps = min(1, len(self.reader) - 1), self.prompt_steps
        room = self.assembler.room(self.layout, instruction, window=self.steps, length=self.length)
        most = min(self.prompt_demonstrations, len(self.reader) - 1, room // max(1, steps))
        if most and rng.random() < 0.5:
            count = int(rng.integers(1, most + 1))
            steps = int(rng.integers(steps, room // count + 1))
        others = rng.choice(len(self.reader) - 1, count, replace=False).tolist()
        return [self._shown(self.reader[other + (other >= number)], steps, rng) for other in others]

    @staticmethod
    def _shown(episode: Episode, steps: int, rng: np.random.Generator) -> Steps:
        """So many steps of an episode: half the time its end, which shows the goal, else any (Gato, section 2.4)."""
        last = max(0, len(episode) - steps)
        start = last if rng.random() < 0.5 else int(rng.integers(last + 1))
        return episode.window(start, start + steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiExamples:
    """Drawings with their names, a little changed each time."""

    drawings: tuple[Drawing, ...]
    assembler: Assembler
    variants: int = 0
    """Fixed variants of each drawing; 0: a new one each time."""

    def __len__(self) -> int:
        return len(self.drawings)

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        return self.assembler.document(draw_example(self.drawings[index], rng, self.variants).parts())


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextExamples:
    """Windows of `length` tokens of documents laid end to end, each starting within its stretch at random."""

    ids: np.ndarray
    """int32 (n,): tokens of all documents, each closed by the end marker."""
    length: int
    assembler: Assembler

    def __len__(self) -> int:
        return max(1, len(self.ids) // self.length)

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        start = min(index * self.length + int(rng.integers(self.length)), max(0, len(self.ids) - self.length))
        return self.assembler.text(self.ids[start : start + self.length], eos=False)
