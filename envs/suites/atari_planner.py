"""A clone-and-plan expert for any Atari game: it simulates futures in the emulator and plays the beginning of the best one.

Candidates are simple: one action held for a while, then another up to the horizon, so play looks like a person's: a direction is
held and rarely flickers. The rest of the last plan is a candidate too and wins ties, which keeps a course while nothing scores.
The planner sees the future, including the game's random draws; a policy that imitates it from frames does not, which is why
horizons are short.

Planning leaves the environment bit-identical and uses no random numbers. A plan starts from the state that was actually reached:
if that is not the predicted one, because another action was executed, a new plan is made.
"""

import dataclasses
from typing import Any, Protocol


class Simulator(Protocol):
    """The interface to a game that planning needs: states that can be saved and restored, and the reward of an action."""

    @property
    def names(self) -> list[str]:
        """Names of the actions, in the order of their indices."""

    @property
    def memory(self) -> list[int]:
        """The bytes that distinguish two states."""

    @property
    def lives(self) -> int:
        """Number of lives left."""

    @property
    def over(self) -> bool:
        """Whether the game is over."""

    def press(self, name: str) -> int:
        """The index of the action with that name."""

    def snapshot(self) -> Any:
        """The complete state."""

    def restore(self, state: Any) -> None:
        """Restores a state."""

    def advance(self, action: int) -> float:
        """Plays one decision and returns its score."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
    """Settings of a game's planner. A plan simulates at most (actions · holds · (seconds + 1) + 1) · `horizon` decisions."""

    horizon: int = 12
    """Number of decisions that are simulated."""
    holds: tuple[int, ...] = (4,)
    """Numbers of decisions for which a candidate may hold its first action."""
    keep: int = 2
    """Decisions for which a plan is followed while states are as predicted."""
    actions: tuple[str, ...] = ()
    """Names of the first actions, in order of preference; empty: all actions of the game."""
    seconds: tuple[str, ...] = ()
    """Names of the second actions, besides the first one."""
    discount: float = 0.98
    """Value of a point one decision later."""
    life: float = 100.0
    """Value of a life in points."""


class Plan:
    """An expert for one episode: a call returns the index of the action for the environment's current state."""

    def __init__(self, settings: Planner, env: Simulator) -> None:
        self._settings, self._env = settings, env
        candidates = (
            (first,) * hold + (second,) * (settings.horizon - hold)
            for first in map(env.press, settings.actions or env.names)
            for hold in settings.holds
            for second in (first, *map(env.press, settings.seconds))
        )
        # Without repetition: a second action that equals the first gives the same candidate for every hold.
        self._candidates = [list(actions) for actions in dict.fromkeys(candidates)]
        self._plan: list[int] = []  # its remaining actions
        self._kept = 0  # decisions for which it may still be followed
        self._foreseen: list[int] | None = None  # the memory that it predicts for the next decision

    def __call__(self) -> int:
        """The next action. Simulates, and restores the environment afterwards."""
        root = self._env.snapshot()
        if self._kept == 0 or self._env.memory != self._foreseen:
            # The rest of the old plan, filled up with its last action; first in the list, so that `max` prefers it in ties.
            left = self._plan + self._plan[-1:] * (self._settings.horizon - len(self._plan))
            self._plan = max([left, *self._candidates], key=lambda actions: self._worth(actions, root))
            self._kept = self._settings.keep
        action, *self._plan = self._plan
        self._kept -= 1
        self._env.restore(root)
        # The next call compares the memory with this prediction, if it may still follow the plan.
        if self._kept:
            self._env.advance(action)
            self._foreseen = self._env.memory
            self._env.restore(root)
        return action

    def _worth(self, actions: list[int], root: object) -> float:
        """The discounted score of playing `actions` from `root`, up to the loss of a life; -inf for an empty list."""
        if not actions:
            return float("-inf")
        env, settings = self._env, self._settings
        env.restore(root)
        total, weight, lives = 0.0, 1.0, env.lives
        for action in actions:
            total += weight * env.advance(action)
            # Discounted as well: if a life cannot be saved, losing it later is better.
            if env.lives < lives or env.over:
                return total - weight * settings.life
            weight *= settings.discount
        return total
