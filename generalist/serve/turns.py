"""Whose turn it is: texts are written between the steps of agents.

A robot takes its time between two steps, and texts use it. A simulation answers at once; for it agents come first for a while
after each step of the texts, which then come in any case:

    texts  | a step of agents | a step of agents |  texts  | a step ...
           |<- at least ROUNDS of them, and SHARE times as long as the texts took
"""

import math

ANSWERS = 0.008
"""Seconds within which an agent's next observation is expected. A robot takes longer, and the texts go on meanwhile."""
LATEST = 0.025
"""The same for an agent that lately took longer than that, but no longer than this: on a busy machine a simulation does."""
SHARE = 2.0
"""Seconds for agents alone after each second for texts, if agents answer at once."""
ROUNDS = 3
"""Steps of agents after each step of the texts, if agents answer at once: most of them then wait for no text, however short the
steps of both are."""


class Turns:
    """Times on the monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._acted = -math.inf
        self._texts_from = -math.inf
        self._rounds = ROUNDS
        self._answers = ANSWERS

    def acted(self, now: float, took: float = 0.0) -> None:
        """Agents got their actions.

        Args:
            took: from their actions before to these observations, of the quickest of them.
        """
        self._acted, self._rounds = now, self._rounds + 1
        self._answers = min(max(ANSWERS, 1.5 * took), LATEST) if took <= LATEST else ANSWERS

    def wrote(self, began: float, now: float) -> None:
        """A step of the texts, or of anything else that is not an agent's, was computed."""
        self._texts_from, self._rounds = now + SHARE * (now - began), 0

    def of_texts(self, now: float) -> bool:
        """Whether texts come before an agent's step that may be expected."""
        return now >= self._acted + self._answers or (self._rounds >= ROUNDS and now >= self._texts_from)

    def texts_from(self) -> float:
        """When texts come if no agent does."""
        return min(self._acted + self._answers, self._texts_from if self._rounds >= ROUNDS else math.inf)
