"""Where an environment meets the rest: what crosses is checked and copied, so that an environment or a policy that goes on using
its own array changes nothing that was handed over."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from generalist.tokenizers.space_values import checked, checked_flag, checked_reward, copied


class Border(gym.Wrapper):
    """Checks every observation, reward and end against the environment's spaces, and copies in both directions.

    Args:
        env: the environment.
        name: of the task, for messages.
    """

    def __init__(self, env: gym.Env, name: str) -> None:
        super().__init__(env)
        self._name = name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets.

        Raises:
            ValueError: the observation is not of its space; the message names the part.
        """
        try:
            result = self.env.reset(seed=seed, options=options)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise ValueError(f"{self._name}: reset must take seed and options, as Gymnasium asks ({error})") from error
        observation, info = self._pair(result)
        told = info.get("instruction", "")
        if not isinstance(told, str):
            raise ValueError(f'{self._name}: info["instruction"] of reset is {told!r:.80}: it must be a text')
        return self._observed(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes an action.

        Raises:
            ValueError: the observation is not of its space, the reward is no finite number, or an end is no flag.
        """
        result = self.env.step(copied(action))
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], Mapping):
            raise ValueError(
                f"{self._name}: step() must return observation, reward, terminated, truncated and a dictionary of information, "
                "as Gymnasium asks"
            )
        observation, reward, terminated, truncated, info = result
        return (
            self._observed(observation),
            checked_reward(reward, f"{self._name}: the reward"),
            checked_flag(terminated, f"{self._name}: terminated"),
            checked_flag(truncated, f"{self._name}: truncated"),
            dict(info),
        )

    def _observed(self, observation: Any) -> Any:
        return checked(self.env.observation_space, observation, f"{self._name}: the observation")

    def _pair(self, result: Any) -> tuple[Any, dict[str, Any]]:
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
            raise ValueError(
                f"{self._name}: reset() must return an observation and a dictionary of information, as Gymnasium asks"
            )
        return result[0], dict(result[1])
