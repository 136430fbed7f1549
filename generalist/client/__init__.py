"""What talks to a server that `generalist serve` started. It needs neither JAX nor weights."""

from generalist.client.robot import RobotClient, ServerError

__all__ = ["RobotClient", "ServerError"]
