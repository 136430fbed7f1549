"""What an environment tells in words within its observation, such as the mission of MiniGrid: told once, as the instruction."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

LEARNT = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
COMPOSED = (gym.spaces.Dict, gym.spaces.Tuple, gym.spaces.Sequence, gym.spaces.Graph, gym.spaces.OneOf)


def with_told(env: gym.Env) -> gym.Env:
    """The environment, its texts moved into `info["instruction"]` if its observations are a Dict that has some."""
    keys = text_keys(env.observation_space)
    return Told(env, keys) if keys else env


def text_keys(space: gym.Space) -> tuple[str, ...]:
    """The keys of a Dict under which texts stand; none if all that is observed is text."""
    if not isinstance(space, gym.spaces.Dict):
        return ()
    keys = tuple(key for key, part in space.spaces.items() if _is_text(part))
    return keys if len(keys) < len(space.spaces) else ()


def _is_text(space: gym.Space) -> bool:
    """A Text, or a space of an environment's own whose values are texts (MiniGrid's MissionSpace)."""
    if isinstance(space, gym.spaces.Text):
        return True
    return not isinstance(space, LEARNT + COMPOSED) and isinstance(space.sample(), str)


class Told(gym.ObservationWrapper):
    """Takes texts out of the observations of a Dict; what they say at `reset` is the episode's instruction, after what the
    environment's own `info["instruction"]` says.

    Args:
        env: whose observation space is a Dict.
        keys: of the texts.
    """

    def __init__(self, env: gym.Env, keys: tuple[str, ...]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gym.spaces.Dict)
        kept = {key: part for key, part in env.observation_space.spaces.items() if key not in keys}
        self.observation_space = gym.spaces.Dict(kept)
        self.keys = keys
        self._told: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets; the info has the key `instruction`."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._told = self._texts(observation)
        own = info.get("instruction", "")
        if isinstance(own, str):  # anything else is for the border to refuse
            info = info | {"instruction": " ".join(text for text in (own, *self._told) if text)}
        return self.observation(observation), info

    def observation(self, observation: Any) -> Any:
        """The observation without its texts.

        Raises:
            ValueError: they are others than at `reset`.
        """
        now = self._texts(observation)
        for key, before, after in zip(self.keys, self._told, now, strict=True):
            if before != after:
                raise ValueError(
                    f"the observation part {key!r} is a text that changes within an episode, from {before!r:.60} to {after!r:.60}"
                    ": acting takes steps of one length, so give it as a MultiDiscrete in a wrapper"
                )
        return {key: value for key, value in observation.items() if key not in self.keys}

    def _texts(self, observation: Any) -> list[str]:
        if not isinstance(observation, Mapping):
            raise ValueError(f"the observation is {observation!r:.60}, not a dictionary")
        texts = []
        for key in self.keys:
            if not isinstance(text := observation.get(key), str):
                raise ValueError(f"the observation part {key!r} is {text!r:.60}, not a text")
            texts.append(text)
        return texts
