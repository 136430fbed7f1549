"""Episodes to watch: images with instruction and score, for any player.

Dimension key: H, W height and width of a picture, h and w with its caption.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import UInt8

from generalist.envs import video
from generalist.envs.rendering import frame
from generalist.envs.task import GaveUp, Policy, Task, random_actions, stream
from generalist.system.time_limit import OutOfTime, time_limit

Begin = Callable[[Task, gym.Env, str, int], Policy]
"""Task, environment after `reset`, instruction, seed → the policy of this episode."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """The state before the first action, or after one."""

    instruction: str
    picture: UInt8[np.ndarray, "H W 3"]
    step: int
    """Number of actions so far."""
    reward: float
    """Sum of the rewards so far."""
    score: float | None
    """Score of the episode; None until it is over."""

    def captioned(self) -> UInt8[np.ndarray, "h w 3"]:
        """The picture over its caption."""
        end = "" if self.score is None else f"   over, score {self.score:z.4g}"
        return video.captioned(self.picture, self.instruction, f"step {self.step}   reward {self.reward:z.4g}{end}")


def episode(
    task: Task, env: gym.Env, begin: Begin, seed: int, *, every: int = 1, steps: int | None = None
) -> Iterator[Moment]:
    """Plays an episode and yields every `every`-th moment of it, always including the first and the last.

    Args:
        task: the task.
        env: the result of the task's `make`.
        begin: makes the policy.
        seed: the episode's seed.
        every: moments between two that are yielded: rendering is slow.
        steps: maximum number of decisions; None: the task's limit.
    """
    observation, info = env.reset(seed=seed)
    instruction, rewards, infos, done = info["instruction"], [], [], False

    def moment(score: float | None) -> Moment:
        return Moment(
            instruction=instruction, picture=frame(env), step=len(rewards), reward=float(np.sum(rewards)), score=score
        )

    # Begun after `reset`: an expert reads the environment's state.
    policy = begin(task, env, instruction, seed)
    yield moment(None)
    # `steps` may be None, which equals no number: then the environment ends the episode.
    while not done and len(rewards) != steps:
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        rewards.append(float(reward))
        infos.append(info)
        done = terminated or truncated
        if done or len(rewards) % every == 0 or len(rewards) == steps:
            yield moment(task.score(rewards, infos) if done else None)


def expert(task: Task, env: gym.Env, instruction: str, seed: int) -> Policy:
    """The task's own expert.

    Raises:
        ValueError: raised by the policy if it exceeds its time limit or has no answer.
    """
    policy = task.expert(env, stream(seed, "expert"))

    def act(observation: Any) -> Any:
        try:
            with time_limit(task.time_limit):
                return policy(observation)
        except (OutOfTime, GaveUp) as error:
            raise ValueError(f"the expert of {task.name} gave up on seed {seed}: try another --seed") from error

    return act


def chance(task: Task, env: gym.Env, instruction: str, seed: int) -> Policy:
    """Uniformly random actions."""
    return random_actions(env.action_space, seed)
