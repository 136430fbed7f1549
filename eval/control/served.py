"""Agents that play through a server: the environments are here, the weights there."""

from collections.abc import Mapping
from typing import Any

from generalist.client import RobotClient
from generalist.eval.control.lanes import Begun


class ServedPolicy:
    """One session per lane; see `lanes.Policy`.

    Args:
        server: its address, as `RobotClient` takes it.
        layouts: the name of each lane's layout.
        token: what the server demands, if it does.

    Raises:
        OSError: there is no such server.
        ServerError: it has not enough lanes, or does not know a layout.
    """

    def __init__(self, server: str, layouts: list[str], token: str | None = None):
        self._robots: list[RobotClient] = []
        try:
            for layout in layouts:
                self._robots.append(RobotClient(server, layout=layout, token=token))
        except BaseException:
            self.close()
            raise

    def start(self, begun: Mapping[int, Begun]) -> None:
        """See `lanes.Policy`."""
        for lane, one in begun.items():
            self._robots[lane].reset(prompt=one.instruction, seed=one.seed)

    def act(self, observations: list[Any]) -> list[Any]:
        """See `lanes.Policy`."""
        # All are sent before the first answer is waited for: the server computes them together.
        for robot, one in zip(self._robots, observations, strict=True):
            if one is not None:
                robot.send(one)
        return [None if one is None else robot.receive() for robot, one in zip(self._robots, observations, strict=True)]

    def close(self) -> None:
        """Ends the sessions."""
        for robot in self._robots:
            robot.close()
