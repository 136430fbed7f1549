"""Agents that play through a server: the environments are here, the weights there."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from generalist.client import RobotClient
from generalist.eval.control.lanes import Begun
from generalist.eval.control.policies import Prompt

SHOWN = 8
"""Seeds of an expert's episodes that are shown: as many as a server takes at a time, and few enough that it remembers them."""
PATIENCE = 600.0
"""Seconds that an answer may take: the server's experts play one episode after the other, each of them for a minute at most."""


class ServedPolicy:
    """One session per lane; see `lanes.Policy`.

    Args:
        server: its address, as `RobotClient` takes it.
        layouts: the name of each lane's layout.
        token: what the server demands, if it does.
        prompt: what is shown before each episode: episodes of the task's expert, which plays on the server. An episode's seed
            decides which ones.

    Raises:
        OSError: there is no such server.
        ServerError: it has not enough lanes, or does not know a layout.
    """

    def __init__(self, server: str, layouts: list[str], token: str | None = None, prompt: Prompt | None = None):
        self._prompt = prompt or Prompt()
        if self._prompt.demonstrations > SHOWN:
            raise ValueError(f"a server shows {SHOWN} demonstrations at most, got {self._prompt.demonstrations}")
        self._robots: list[RobotClient] = []
        try:
            for layout in layouts:
                self._robots.append(RobotClient(server, layout=layout, token=token, patience=PATIENCE))
        except BaseException:
            self.close()
            raise

    def start(self, begun: Mapping[int, Begun]) -> None:
        """See `lanes.Policy`."""
        for lane, one in begun.items():
            self._robots[lane].reset(prompt=one.instruction, seed=one.seed, demonstration=self._shown(one))

    def act(self, observations: list[Any]) -> list[Any]:
        """See `lanes.Policy`."""
        # All are sent before the first answer is waited for: the server computes them together.
        for robot, one in zip(self._robots, observations, strict=True):
            if one is not None:
                robot.send(one)
        return [None if one is None else robot.receive() for robot, one in zip(self._robots, observations, strict=True)]

    def _shown(self, begun: Begun) -> list[dict[str, Any]] | None:
        """The demonstrations before an episode, as `RobotClient.reset` takes them."""
        if not self._prompt.demonstrations:
            return None
        # By the seed alone, so that it does not matter in which lane or order episodes are played.
        seeds = np.random.default_rng(begun.seed).choice(SHOWN, self._prompt.demonstrations, replace=False)
        return [{"task": begun.task.name, "seed": int(seed), "goal": self._prompt.goal} for seed in seeds]

    def close(self) -> None:
        """Ends the sessions, if they have not ended yet."""
        while self._robots:
            self._robots.pop().close()
