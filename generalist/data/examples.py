"""Training examples from episodes, drawings and texts: each an indexable list from which `example(index, rng)` draws one.

The random generator is determined by the index and the epoch, so that the same position of a run always gives the same example.

Dimension key: E1 episodes and one, T steps, n tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, Shaped

from generalist.data.emoji import Drawing
from generalist.data.emoji import example as draw_example
from generalist.data.episodes import BrokenEpisode, Episode, Episodes
from generalist.envs.task import Recast
from generalist.tokenizers.image import moved
from generalist.tokenizers.sequence import Assembler, Sequence
from generalist.tokenizers.spaces import TaskLayout

Steps = tuple[dict[str, Shaped[np.ndarray, "T ..."]], dict[str, Shaped[np.ndarray, "T ..."]]]
"""Observations and actions of T steps, by flat key."""


@runtime_checkable
class Examples(Protocol):
    """What a source is made of."""

    def __len__(self) -> int:
        """Examples per epoch."""

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        """The example of that index; everything random about it is drawn from `rng`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlExamples:
    """Windows of `steps` steps of one task's episodes: ⌈T / steps⌉ windows per episode of T steps.

    A window's start is shifted at random by up to half its length, but never before the episode or so late that it would be cut
    short. So every step is seen with every length of history, and beginnings and ends, which decide most episodes, come up a
    little more often.
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
    """Positions per row, which bound how much of several demonstrations is shown."""
    shift: int = 0
    """Maximum number of pixels by which all frames of an example are moved, along both axes."""
    recast: Callable[[np.random.Generator], Recast] | None = None
    """Draws an equivalent version of an episode, in which an example is shown; None: as it was recorded."""
    places: float = 0.0
    """Share of the windows at an episode's beginning whose instruction names its target by the place, where `pointed` can."""
    pointed: Callable[[str, Any], str | None] | None = None
    """Instruction and first observation → the instruction with the place, or None (`Task.pointed`)."""
    first: Int[np.ndarray, "E1"] = dataclasses.field(init=False)
    """Index of the first window of each episode, and last the number of all windows."""

    def __post_init__(self) -> None:
        # Negated floor division rounds up: the last window of an episode counts even if it overlaps the one before.
        windows = -(-self.reader.lengths // self.steps)
        # A frozen dataclass allows no assignment, and the sums are needed for every example.
        object.__setattr__(self, "first", np.concatenate([[0], np.cumsum(windows)]))

    def __len__(self) -> int:
        return int(self.first[-1])

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        """A window of an episode or, if that can't be read, of the next one that can.

        Raises:
            ValueError: more episodes than may be left out can't be read, or none can.
        """
        first = int(np.searchsorted(self.first, index, side="right")) - 1
        stretch = index - int(self.first[first])
        for step in range(len(self.reader)):
            # Tried even if it was left out before: the outcome, and what it draws, must depend on the files and the generator
            # alone, or a resumed run, which has not met the damaged episode yet, would see other examples.
            try:
                return self._example((first + step) % len(self.reader), stretch, rng)
            except BrokenEpisode as error:
                self.reader.leave_out(error)
        raise ValueError(f"no episode of {self.layout.name} can be read: give another data set")

    def _example(self, number: int, stretch: int, rng: np.random.Generator) -> Sequence:
        # The order of the draws is part of the data: another order gives a resumed run other examples.
        episode = self.reader[number]
        half = self.steps // 2
        start = stretch * self.steps + int(rng.integers(-half, self.steps - half))
        start = min(max(start, 0), max(0, len(episode) - self.steps))
        window, instruction = episode.window(start, start + self.steps), episode.instruction
        hide = rng.random() < self.hide_actions
        # Later windows do not show the view in which the place is.
        if self.pointed and self.places and start == 0 and rng.random() < self.places:
            instruction = self.pointed(instruction, _first(window[0])) or instruction
        # The window, its instruction and its prompts are shown in the same version, or they would contradict each other.
        world = self.recast(rng) if self.recast else None
        if world:
            # Before the prompts, whose room depends on the length of the instruction that is shown.
            instruction = world.instruction(instruction)
        prompts = self._prompts(number, instruction, rng) if rng.random() < self.prompt_fraction else []
        if world:
            window, *prompts = [(world.observations(seen), done) for seen, done in (window, *prompts)]
        sequence = self.assembler.control(self.layout, instruction, *window, hide_actions=hide, prompts=prompts)
        if self.shift:
            # All frames by the same amount: what moves between them is what the policy must see.
            down, right = rng.integers(-self.shift, self.shift + 1, 2).tolist()
            sequence = dataclasses.replace(sequence, frames=moved(sequence.frames, down, right))
        return sequence

    def _prompts(self, number: int, instruction: str, rng: np.random.Generator) -> list[Steps]:
        """Steps of one or several other episodes of the task: the episode itself would give the answer away."""
        count, steps = min(1, len(self.reader) - 1), self.prompt_steps  # no prompt if there is no other episode
        room = self.assembler.room(self.layout, instruction, window=self.steps, length=self.length)
        most = min(self.prompt_demonstrations, len(self.reader) - 1, room // max(1, steps))
        # The other half keeps Gato's form, a single short prompt.
        if most and rng.random() < 0.5:
            count = int(rng.integers(1, most + 1))
            # From `prompt_steps` up to all that fits beside the window, divided equally.
            steps = int(rng.integers(steps, room // count + 1))
        # Drawn among all but the episode itself, whose number is skipped.
        others = rng.choice(len(self.reader) - 1, count, replace=False).tolist()
        return [self._shown(self.reader[other + (other >= number)], steps, rng) for other in others]

    @staticmethod
    def _shown(episode: Episode, steps: int, rng: np.random.Generator) -> Steps:
        """`steps` steps of an episode: half the time its end, which shows the goal, else from anywhere (Gato, section 2.4)."""
        last = max(0, len(episode) - steps)
        start = last if rng.random() < 0.5 else int(rng.integers(last + 1))
        return episode.window(start, start + steps)


def _first(observations: Mapping[str, Shaped[np.ndarray, "T ..."]]) -> Any:
    """The first of several observations that are one array each."""
    (several,) = observations.values()
    return several[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiExamples:
    """Drawings with their names, slightly varied each time."""

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
    """Windows of `length` tokens of concatenated documents, each starting at random within its stretch."""

    ids: Int32[np.ndarray, "n"]
    """Tokens of all documents, each followed by the end marker."""
    length: int
    assembler: Assembler

    def __len__(self) -> int:
        # A corpus shorter than one window is one short example.
        return max(1, len(self.ids) // self.length)

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        # A random start, so that a token is not predicted from the same context in every epoch.
        start = min(index * self.length + int(rng.integers(self.length)), max(0, len(self.ids) - self.length))
        # A window ends anywhere: the documents' own end markers are among the ids.
        return self.assembler.text(self.ids[start : start + self.length], eos=False)
