"""What plays, beside the model: the nearest neighbour."""

import weakref
from typing import Any

import gymnasium as gym
import numpy as np

from generalist.data.episodes import Episode
from generalist.envs.registry import get
from generalist.envs.task import Task
from generalist.eval.control.lanes import Begun
from generalist.eval.control.policies import Memory, NearestNeighbour
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.vocabulary import Vocabulary


class Steps:
    """Stands for a task's steps, which may be many."""


def test_demonstrations_are_let_go_when_nobody_plays_their_task():
    made: list[weakref.ref] = []

    def memory(task: Task) -> Any:
        steps = Steps()
        made.append(weakref.ref(steps))
        return steps

    policy = NearestNeighbour({}, 2, memory)
    first, second = (Begun(task=get(name), seed=0, instruction="go") for name in ("babyai/GoToObj", "classic/cartpole"))
    policy.start({0: first, 1: first})
    policy.start({0: second})
    assert [one() is None for one in made] == [True, False, False]


def test_lanes_that_act_together_act_as_if_alone():
    rng, task, vocabulary = np.random.default_rng(0), get("classic/cartpole"), Vocabulary()
    spaces = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), gym.spaces.Discrete(5)
    layout = TaskLayout(
        task.layout, *(SpaceTokenizer.from_space(space, vocabulary=vocabulary, images="frame") for space in spaces)
    )
    shown = rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    chosen = rng.integers(0, 5, 40)
    episodes: Any = [
        Episode(instruction=told, observations={"": shown[part]}, actions={"": chosen[part]}, nbytes=0)
        for told, part in (("go", slice(0, 20)), ("stop", slice(20, 40)))
    ]
    memory = Memory(layout, episodes)
    lanes = [Begun(task=task, seed=0, instruction=told) for told in ("go", "stop", "go")]
    seen = [[shown[5], shown[25], None], [shown[6], shown[26], shown[9]], [shown[3], None, shown[10]]]

    def played(several: list[int]) -> list[list[Any]]:
        policy = NearestNeighbour({task.layout: layout}, len(several), lambda _: memory)
        policy.start({at: lanes[lane] for at, lane in enumerate(several)})
        return [policy.act([step[lane] for lane in several]) for step in seen]

    together, alone = played([0, 1, 2]), [played([lane]) for lane in range(3)]
    assert together == [[actions[step][0] for actions in alone] for step in range(3)]
    assert together[1][:2] == [chosen[6], chosen[26]] and together[2][2] == chosen[10]
