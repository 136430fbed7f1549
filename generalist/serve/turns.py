"""Whose turn it is: texts are written between the steps of agents.

A robot takes its time between two steps, and texts use it. A simulation answers at once; for it agents come first for a while
after each step of the texts, which then come in any case:

    texts  | a step of agents | a step of agents |  texts  | a step ...
           |<- at least ROUNDS of them, and SHARE times as long as the texts took
"""

import math

ANSWERS = 0.008
"""Seconds within which an agent's next observation is expected. A robot takes longer, and the texts go on meanwhile."""
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

    def acted(self, now: float) -> None:
        """Agents got their actions."""
        self._acted, self._rounds = now, self._rounds + 1

    def wrote(self, began: float, now: float) -> None:
        """A step of the texts, or of anything else that is not an agent's, was computed."""
        self._texts_from, self._rounds = now + SHARE * (now - began), 0

    def of_texts(self, now: float) -> bool:
        """Whether texts come before an agent's step that may be expected."""
        return now >= self._acted + ANSWERS or (self._rounds >= ROUNDS and now >= self._texts_from)

    def texts_from(self) -> float:
        """When texts come if no agent does."""
        return min(self._acted + ANSWERS, self._texts_from if self._rounds >= ROUNDS else math.inf)
