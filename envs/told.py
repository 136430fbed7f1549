"""Texts within observations, such as the mission of MiniGrid, become the episode's instruction."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

LEARNT = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
COMPOSED = (gym.spaces.Dict, gym.spaces.Tuple, gym.spaces.Sequence, gym.spaces.Graph, gym.spaces.OneOf)


def with_told(env: gym.Env) -> gym.Env:
    """The environment with its texts moved into `info["instruction"]`, if its observations are a Dict that contains texts."""
    keys = text_keys(env.observation_space)
    return Told(env, keys) if keys else env


def text_keys(space: gym.Space) -> tuple[str, ...]:
    """The keys of a Dict's texts; empty if all of its parts are texts."""
    if not isinstance(space, gym.spaces.Dict):
        return ()
    keys = tuple(key for key, part in space.spaces.items() if _is_text(part))
    # Without any other part nothing would be left to observe: then the space is refused as it is.
    return keys if len(keys) < len(space.spaces) else ()


def _is_text(space: gym.Space) -> bool:
    """Whether a space is a Text, or a custom space whose values are texts (MiniGrid's MissionSpace)."""
    if isinstance(space, gym.spaces.Text):
        return True
    # A custom space has no type to test for: one of its values tells.
    return not isinstance(space, LEARNT + COMPOSED) and isinstance(space.sample(), str)


class Told(gym.ObservationWrapper):
    """Removes texts from the observations of a Dict. Their values at `reset` are the episode's instruction, after the
    environment's own `info["instruction"]`.

    Args:
        env: an environment whose observation space is a Dict.
        keys: keys of the texts.
    """

    def __init__(self, env: gym.Env, keys: tuple[str, ...]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gym.spaces.Dict)
        # The space must lose the keys too: tokenizers and `Border` go by it.
        kept = {key: part for key, part in env.observation_space.spaces.items() if key not in keys}
        self.observation_space = gym.spaces.Dict(kept)
        self.keys = keys
        self._told: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets; the info has the key `instruction`."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._told = self._texts(observation)
        own = info.get("instruction", "")
        if isinstance(own, str):  # `Border` reports anything else
            info = info | {"instruction": " ".join(text for text in (own, *self._told) if text)}
        return self.observation(observation), info

    def observation(self, observation: Any) -> Any:
        """The observation without its texts.

        Raises:
            ValueError: the texts differ from those at `reset`.
        """
        now = self._texts(observation)
        for key, before, after in zip(self.keys, self._told, now, strict=True):
            if before != after:
                raise ValueError(
                    f"the observation part {key!r} is a text that changes within an episode, from {before!r:.60} to {after!r:.60}"
                    ": acting needs steps of one length, so encode it as a MultiDiscrete in a wrapper"
                )
        return {key: value for key, value in observation.items() if key not in self.keys}

    def _texts(self, observation: Any) -> list[str]:
        if not isinstance(observation, Mapping):
            raise ValueError(f"the observation is {observation!r:.60}, not a dictionary")
        texts = []
        for key in self.keys:
            if not isinstance(text := observation.get(key), str):
                raise ValueError(f"the observation part {key!r} is {text!r:.60}, not a string")
            texts.append(text)
        return texts
