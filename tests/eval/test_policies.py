"""What plays, beside the model: the nearest neighbour."""

import weakref
from typing import Any

from generalist.envs.task import Task, get
from generalist.eval.control import Begun
from generalist.eval.policies import NearestNeighbour


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
