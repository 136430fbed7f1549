"""A clone-and-plan expert for any Atari game: it tries futures in the emulator itself and plays the best one's beginning.

Candidates are simple: one action held for a while, then another to the horizon. So what it plays looks like what a person
might: a direction held, seldom a flicker. What is left of the last plan competes as well and wins ties, which keeps to a course
while nothing scores. It sees the future, the game's own draws included; a policy that imitates it from frames does not, which
is why horizons are short.

Planning leaves the environment as it was, to the bit, and draws nothing at random. A plan starts from the state that was really
reached: when that is not the one foreseen, because another action was executed, a new plan is made.
"""

import dataclasses
from typing import Any, Protocol


class Simulator(Protocol):
    """What planning needs of a game: states that can be taken and put back, and what an action brings."""

    @property
    def names(self) -> list[str]:
        """Names of the actions, in the order of their indices."""

    @property
    def memory(self) -> list[int]:
        """The bytes by which two states are told apart."""

    @property
    def lives(self) -> int:
        """Lives that are left."""

    @property
    def over(self) -> bool:
        """Whether the game is over."""

    def press(self, name: str) -> int:
        """The index of the action of that name."""

    def snapshot(self) -> Any:
        """The whole state."""

    def restore(self, state: Any) -> None:
        """Puts a state back."""

    def advance(self, action: int) -> float:
        """Plays a decision; what it scores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
    """Settings of a game's planning. A plan simulates at most (actions · holds · (seconds + 1) + 1) · `horizon` decisions."""

    horizon: int = 12
    """Decisions looked ahead."""
    holds: tuple[int, ...] = (4,)
    """Decisions for which a candidate may hold its first action."""
    keep: int = 2
    """Decisions for which a plan is followed while all goes as foreseen."""
    actions: tuple[str, ...] = ()
    """Names of the actions tried first, the most wanted first; none for all of the game's."""
    seconds: tuple[str, ...] = ()
    """Names of the actions that a candidate may go on with, besides the one that it holds."""
    discount: float = 0.98
    """Worth of a point one decision later."""
    life: float = 100.0
    """Points that a life is worth."""


class Plan:
    """An expert within one episode: call it for the index of the action in the environment's present state."""

    def __init__(self, settings: Planner, env: Simulator) -> None:
        self._settings, self._env = settings, env
        candidates = (
            (first,) * hold + (second,) * (settings.horizon - hold)
            for first in map(env.press, settings.actions or env.names)
            for hold in settings.holds
            for second in (first, *map(env.press, settings.seconds))
        )
        self._candidates = [list(actions) for actions in dict.fromkeys(candidates)]
        self._plan: list[int] = []  # what is left of it
        self._kept = 0
        self._foreseen: list[int] | None = None

    def __call__(self) -> int:
        """The next action; simulates, and leaves the environment as it was."""
        root = self._env.snapshot()
        if self._kept == 0 or self._env.memory != self._foreseen:
            left = self._plan + self._plan[-1:] * (self._settings.horizon - len(self._plan))
            self._plan = max([left, *self._candidates], key=lambda actions: self._worth(actions, root))
            self._kept = self._settings.keep
        action, *self._plan = self._plan
        self._kept -= 1
        self._env.restore(root)
        if self._kept:
            self._env.advance(action)
            self._foreseen = self._env.memory
            self._env.restore(root)
        return action

    def _worth(self, actions: list[int], root: object) -> float:
        """The discounted score of playing `actions` from `root`, up to the loss of a life; an empty list is worth nothing."""
        if not actions:
            return float("-inf")
        env, settings = self._env, self._settings
        env.restore(root)
        total, weight, lives = 0.0, 1.0, env.lives
        for action in actions:
            total += weight * env.advance(action)
            if env.lives < lives or env.over:
                return total - weight * settings.life
            weight *= settings.discount
        return total
