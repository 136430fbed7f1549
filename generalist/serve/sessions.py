"""Sessions of agents: each plays its episodes in a lane of a policy, together with the others whose steps have the same shape.

Dimension key: A numbers of an action, V vocabulary.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from generalist.inference.policy import ControlPolicy, StepShape, shape_of, some_value
from generalist.inference.weights import Weights
from generalist.tokenizers.sequence import Sequence

QUIET = 0.001
"""Seconds after which no more steps of other agents are expected to be just coming."""


class Refused(ValueError):
    """An agent's message that cannot be answered; its text is for the client."""


class Taken(Refused):
    """All lanes are taken now."""


@dataclasses.dataclass(eq=False)
class Session:
    """An agent's place in a pool."""

    layout: str
    lane: int
    pool: "Pool"
    playing: bool = False
    """Whether an episode has begun."""
    answered: float = 0.0
    """When it last got an action, on the monotonic clock."""


@dataclasses.dataclass(frozen=True)
class Acted:
    """An action and what it was chosen from."""

    action: Any
    logits: Float[np.ndarray, "A V"]
    """Of all ids, for each of the action's numbers."""


@dataclasses.dataclass(eq=False)
class Step:
    """An observation that waits for its action."""

    session: Session
    observation: Any
    begin: tuple[str | Sequence, int] | None
    """Instruction, or what else precedes the first step, and seed of an episode that begins with this step; None: the episode
    goes on."""
    give: Callable[[Any], None]
    """Takes the action, or an exception; called by the engine's thread."""
    deadline: float = float("inf")
    """On the monotonic clock; an observation that is older is refused and not seen."""
    looks: bool = False
    """Whether an `Acted` is given instead of the action alone."""
    asked: float = dataclasses.field(default_factory=time.monotonic)


class Pool:
    """Lanes for agents whose steps have one shape.

    Args:
        layouts: those with this shape.
        lanes: how many agents can play at the same time.
        prefix: positions that an instruction may take.
        patience: seconds that a step waits for those of the other agents, to be computed together.
    """

    def __init__(self, weights: Weights, layouts: list[str], lanes: int, prefix: int, patience: float):
        self.layouts, self.prefix, self._patience = layouts, prefix, patience
        self._free = list(range(lanes))
        self._sessions: list[Session] = []
        self.waiting: list[Step] = []
        self._lanes = lanes
        self.turnaround = 0.0
        """Seconds from the last actions to the next observations, of the quickest agent."""
        self._came, self._took = 0, 0.0  # steps since the last ones were computed, and how long these took
        self.exchange(weights)

    def exchange(self, weights: Weights) -> None:
        """Takes other weights of the same shapes. Episodes that have begun are over: their caches are of the old weights."""
        self._weights = weights
        self.policy = ControlPolicy(weights, [self.layouts[0]] * self._lanes, apart=True, prefix=self.prefix)
        for session in self._sessions:
            session.playing = False

    def open(self, layout: str) -> Session:
        """A new session.

        Raises:
            Taken: all lanes are.
        """
        if not self._free:
            raise Taken(f"all {self._lanes} lanes for steps of this shape are taken: try again later")
        session = Session(layout, self._free.pop(), self)
        self._sessions.append(session)
        return session

    def close(self, session: Session) -> None:
        """Ends a session; its lane can be taken by another. Steps of it that wait are dropped."""
        self.waiting[:] = [step for step in self.waiting if step.session is not session]
        self._came = len(self.waiting)
        self._sessions.remove(session)
        self._free.append(session.lane)

    @property
    def used(self) -> int:
        """Number of open sessions."""
        return len(self._sessions)

    def check(self, step: Step) -> None:
        """Checks what a client sent before it is shared with others.

        Raises:
            Refused, ValueError: see `check_prefix`.
            ValueError: the observation is not of the layout's space.
        """
        layout = self._weights.layouts[step.session.layout]
        step.observation = layout.observation.checked(step.observation, f"{layout.name}: the observation")
        if step.begin is not None:
            self.check_prefix(step.begin[0])

    def check_prefix(self, prefix: str | Sequence) -> None:
        """Checks what is to precede an episode.

        Args:
            prefix: an instruction, or one with demonstrations.

        Raises:
            Refused: it is too long.
            ValueError: an instruction has half characters (lone surrogates), which no tokenizer takes, or places that these
                weights have no ids for.
        """
        if isinstance(prefix, str):
            self._weights.assembler.check_places(prefix)
        size = len(self._weights.assembler.instruction(prefix) if isinstance(prefix, str) else prefix)
        if size > self.prefix:
            raise Refused(f"the prompt takes {size} positions, but an instruction may take {self.prefix}: shorten it")

    def came(self) -> bool:
        """Counts a step that came, with the engine's lock. Returns whether the engine should look: it is the first one, or all
        that are expected have come."""
        self._came += 1
        return self._came == 1 or self._came >= self._playing

    def ready(self, now: float) -> bool:
        """Whether the steps that wait should be computed now: all that are expected have come, or it was waited enough."""
        expected = {id(step.session) for step in self.waiting}
        return bool(expected) and (len(expected) >= self._playing or now >= self.due)

    @property
    def due(self) -> float:
        """When the steps that wait are computed without the others. As long as more are coming, a step for all is worth the time
        that it takes itself."""
        first, last = self.waiting[0].asked, self.waiting[-1].asked
        return max(first + self._patience, min(last + QUIET, first + self._took))

    @property
    def _playing(self) -> int:
        return sum(session.playing for session in self._sessions)

    def act(self) -> int:
        """Answers the steps that wait, at most one per session. Returns how many. If computing fails, those that have no answer
        wait still."""
        now, steps = time.monotonic(), []
        self._came = 0
        seen: set[int] = set()
        for step in list(self.waiting):
            if id(step.session) in seen:
                continue
            if now > step.deadline:
                self._give(step, Refused("the deadline passed before the observation was seen"))
            elif step.begin is None and not step.session.playing:
                reason = "no episode is being played (the weights were exchanged, or none began): send reset"
                self._give(step, Refused(reason))
            else:
                seen.add(id(step.session))
                steps.append(step)
        if steps:
            self.turnaround = min(step.asked - step.session.answered for step in steps)
            self._answer(steps)
            end = time.monotonic()
            self._took = end - now
            for step in steps:
                step.session.answered = end
        return len(steps)

    def _answer(self, steps: list[Step]) -> None:
        begun = [(step.session, *step.begin) for step in steps if step.begin is not None]
        for session, _, _ in begun:
            self.policy.assign(session.lane, session.layout)
            session.playing = True
        self.policy.reset(
            [one.lane for one, _, _ in begun], [text for _, text, _ in begun], [seed for *_, seed in begun]
        )
        observations: list[Any] = [None] * self._lanes
        for step in steps:
            observations[step.session.lane] = step.observation
        actions = self.policy.act(observations, checked=True)  # by `check`
        # Taken apart on the host: an index on the device would be a program of its own.
        logits = np.asarray(self.policy.logits) if any(step.looks for step in steps) else None
        for step in steps:
            action = actions[step.session.lane]
            self._give(step, action if logits is None or not step.looks else Acted(action, logits[step.session.lane]))

    def _give(self, step: Step, answer: Any) -> None:
        self.waiting.remove(step)
        step.give(answer)


def pools(weights: Weights, layouts: list[str], lanes: int, prefix: int, patience: float) -> list[Pool]:
    """One pool for each shape of the layouts' steps."""
    shapes: dict[StepShape, list[str]] = {}
    for name in layouts:
        shapes.setdefault(shape_of(weights, name), []).append(name)
    return [Pool(weights, names, lanes, prefix, patience) for names in shapes.values()]


def playable(weights: Weights) -> list[str]:
    """The layouts that a policy can act in."""
    found = []
    for name in sorted(weights.layouts):
        try:
            shape_of(weights, name)
        except ValueError:
            continue  # steps of varying length
        found.append(name)
    return found


def some_observation(weights: Weights, layout: str) -> Any:
    """A valid observation, for a step before the first client's."""
    return some_value(weights.layouts[layout].observation.space)
