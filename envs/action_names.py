"""What the numbers of a task's actions mean, for those who watch."""

from typing import Any

import gymnasium as gym

from generalist.envs.task import Task

_HAND = ("x", "y", "z", "gripper")
# By the beginning of a layout's name: of a choice one name per value, of an array one per number, as their packages document it.
_NAMES: dict[str, tuple[str, ...]] = {
    "babyai": ("turn left", "turn right", "forward", "pick up", "drop", "toggle", "done"),
    "classic/acrobot": ("torque -1", "no torque", "torque +1"),
    "classic/cartpole": ("push left", "push right"),
    "classic/half-cheetah": ("back thigh", "back shin", "back foot", "front thigh", "front shin", "front foot"),
    "classic/hopper": ("thigh", "leg", "foot"),
    "classic/inverted-double-pendulum": ("force on the cart",),
    "classic/inverted-pendulum": ("force on the cart",),
    "classic/lunar-lander-continuous": ("main engine", "side engines"),
    "classic/lunar-lander": ("nothing", "left engine", "main engine", "right engine"),
    "classic/mountain-car-continuous": ("force",),
    "classic/mountain-car": ("push left", "no push", "push right"),
    "classic/pendulum": ("torque",),
    "classic/reacher": ("shoulder", "elbow"),
    "classic/swimmer": ("first joint", "second joint"),
    "fetch/": _HAND,
    "metaworld": _HAND,
}


def action_names(task: Task, env: gym.Env) -> tuple[str, ...]:
    """The names of a choice's values, or of an array's numbers; none if they are not known.

    Args:
        env: what `make` returned: games name their own actions.
    """
    own: Any = env.unwrapped
    if hasattr(own, "get_action_meanings"):  # ALE
        return tuple(name.lower() for name in own.get_action_meanings())
    return next((names for begin, names in _NAMES.items() if task.layout.startswith(begin)), ())
