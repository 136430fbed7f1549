"""The border between an environment and the rest: whatever crosses it is checked and copied, so that an environment or a policy
that goes on writing into its own array changes nothing that it handed over."""

import traceback
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from generalist.tokenizers.space_values import checked, checked_flag, checked_reward, copied


class Border(gym.Wrapper):
    """Checks every observation, reward and termination flag against the environment's spaces, and copies in both directions.

    Args:
        env: the environment.
        name: the task's name, for messages.
    """

    def __init__(self, env: gym.Env, name: str) -> None:
        super().__init__(env)
        self._name = name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets the environment; observation and info are checked.

        Raises:
            ValueError: the observation does not belong to its space; the message names the part.
        """
        try:
            result = self.env.reset(seed=seed, options=options)
        except TypeError as error:
            # Python's message about a call with other parameters; any other TypeError is the environment's own mistake.
            if "argument" not in str(error) or _entered(error):
                raise
            raise ValueError(
                f"{self._name}: reset must take seed and options, as in Gymnasium's interface ({error})"
            ) from error
        # A custom environment in the interface of old gym returns the observation alone.
        observation, info = self._pair(result)
        instruction = info.get("instruction", "")
        if not isinstance(instruction, str):
            raise ValueError(f'{self._name}: info["instruction"] of reset is {instruction!r:.80}: it must be a string')
        return self._observed(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes an action; everything that it returns is checked.

        Raises:
            ValueError: the observation does not belong to its space, the reward is not a finite number, or a flag is not one.
        """
        # A copy of the action too: an environment may clip it in place, and the recording keeps what was chosen.
        result = self.env.step(copied(action))
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], Mapping):
            raise ValueError(
                f"{self._name}: step() must return observation, reward, terminated, truncated and a dictionary of information, "
                "as in Gymnasium's interface"
            )
        observation, reward, terminated, truncated, info = result
        # `checked` copies as well: an environment may return the same array at every step.
        return (
            self._observed(observation),
            checked_reward(reward, f"{self._name}: the reward"),
            checked_flag(terminated, f"{self._name}: terminated"),
            checked_flag(truncated, f"{self._name}: truncated"),
            dict(info),
        )

    def _observed(self, observation: Any) -> Any:
        # `self.env.observation_space`, not `self.observation_space`: the space of the wrapped environment is what it promises.
        return checked(self.env.observation_space, observation, f"{self._name}: the observation")

    def _pair(self, result: Any) -> tuple[Any, dict[str, Any]]:
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
            raise ValueError(
                f"{self._name}: reset() must return an observation and a dictionary of information, as in Gymnasium's interface"
            )
        return result[0], dict(result[1])


def _entered(error: TypeError) -> bool:
    """Whether an environment's own code was reached, which the call itself then did: only Gymnasium's wrappers stand between."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(module.partition(".")[0] not in ("generalist", "gymnasium") for module in modules)
