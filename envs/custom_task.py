"""A task of the user's own: any Gymnasium id with a folder of demonstrations.

    <folder>/dataset_info.json  features.json  *.array_record-*     RLDS, as generalist/envs/rlds.py describes it
             task.json          ours: id, spaces, instruction, max_steps, the scores of random actions and demonstrations

`generalist.envs.custom` writes such folders. A task object contains everything that makes its environment, so that it works in
any process without being registered.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from generalist.envs.rlds import Spaces
from generalist.envs.task import Policy, Task
from generalist.envs.told import with_told
from generalist.system.versions import FormatError, stored_format
from generalist.tokenizers.learnable import check_learnable
from generalist.tokenizers.space_json import space_to_json

DESCRIPTION = "task.json"
FORMAT = 1
"""Format number of task.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnTask(Task):
    """An environment that Gymnasium makes by its id."""

    id: str
    """Gymnasium's id; `module:Id-v0` imports the module, which registers it."""
    # As text: a task must be hashable and comparable, which dictionaries are not.
    arguments: str = "{}"
    """Further arguments for `gymnasium.make`, as a JSON object."""
    folder: Path
    """Folder of the demonstrations."""
    spaces: str = ""
    """Observation and action space when the demonstrations were recorded, as JSON; empty: not compared."""

    def build(self) -> gym.Env:
        """See `Task.build`.

        Raises:
            ValueError: Gymnasium can't make it, or its spaces differ from the recorded ones.
        """
        env = make_env(self.id, json.loads(self.arguments), self.max_steps)
        try:
            now = describe_spaces((env.observation_space, env.action_space), self.name)
        except ValueError:
            env.close()
            raise
        # Another version of the environment's package may have other spaces, in which the weights would act wrongly.
        if self.spaces and now != self.spaces:
            env.close()
            recorded, made = json.loads(self.spaces), json.loads(now)
            name = next(name for name in made if made[name] != recorded.get(name))
            raise ValueError(
                f"{self.folder} was recorded with the {name} space {json.dumps(recorded.get(name))}, but {self.id} now has "
                f"{json.dumps(made[name])}: record it again, or install the version that was recorded"
            )
        return env

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """Raises `ValueError`: the task has no scripted expert, only demonstrations."""
        raise ValueError(f"{self.name} has no scripted expert: its demonstrations are in {self.folder}")

    def disturb(self, action: Any, space: gym.Space, rng: np.random.Generator) -> Any:
        """Like `Task.disturb`; an action that is not a bounded Box of floats is replaced as a whole with probability `noise`."""
        if isinstance(space, gym.spaces.Box) and space.is_bounded() and space.dtype.kind == "f":
            return super().disturb(action, space, rng)
        if rng.random() >= self.noise:
            return action
        # A space draws from its own generator, which must depend on the episode's alone.
        space.seed(int(rng.integers(2**31)))
        return space.sample()


def make_env(id: str, arguments: Mapping[str, Any], max_steps: int | None = None) -> gym.Env:
    """The environment of an id, whose episodes end after `max_steps` or, if that is None, after its own limit.

    Raises:
        ValueError: Gymnasium can't make it; the message has the remedy.
    """
    # Gymnasium's checker looks at the first step only; `Border` checks every one.
    try:
        return with_told(gym.make(id, max_episode_steps=max_steps, disable_env_checker=True, **arguments))
    except ImportError as error:
        remedy = "install it, or put its folder on PYTHONPATH"
        raise ValueError(f"the environment {id} needs a module that can't be imported ({error}): {remedy}") from error
    except gym.error.Error as error:
        remedy = "check the id; one that a module of yours registers is written module:Id-v0"
        raise ValueError(f"Gymnasium can't make the environment {id} ({error}): {remedy}") from error
    except TypeError as error:
        raise ValueError(f"the environment {id} does not take the arguments {dict(arguments)} ({error})") from error


def describe_spaces(spaces: Spaces, name: str) -> str:
    """The observation and the action space of a task as JSON.

    Raises:
        ValueError: one can't be learned or acted in.
    """
    check_learnable(name, *spaces)
    return json.dumps({"observation": space_to_json(spaces[0]), "action": space_to_json(spaces[1])}, sort_keys=True)


def task_name(folder: Path) -> str:
    """`own/` and the folder's name, or that of its parent if the folder is only a version number, as in data sets of TFDS."""
    place = folder.resolve()
    version = re.fullmatch(r"[0-9]+(\.[0-9]+)+", place.name)
    return f"own/{place.parent.name if version else place.name}"


def own_task(folder: Path, description: Mapping[str, Any]) -> OwnTask:
    """The task that the description of a folder (task.json) describes.

    Raises:
        KeyError, TypeError, ValueError: the description is damaged.
    """
    # By today's place, not a stored name: a folder may be renamed or moved.
    name = task_name(folder)
    return OwnTask(
        name=name,
        suite="own",
        layout=name,
        instruction=str(description["instruction"]),
        max_steps=int(description["max_steps"]),
        record_steps=int(description["max_steps"]),
        episodes=int(description["episodes"]),
        seconds=1.0,
        noise=float(description["noise"]),
        random_score=float(description["random_score"]),
        expert_score=float(description["expert_score"]),
        id=str(description["id"]),
        arguments=json.dumps(description["arguments"], sort_keys=True),
        folder=folder,
        spaces=json.dumps(description["spaces"], sort_keys=True),
    )


def described_task(folder: Path, id: str | None = None) -> OwnTask:
    """The task of a folder of demonstrations with a task.json.

    Args:
        folder: the demonstrations.
        id: the id that the user gave with it, which may name another module that registers the environment.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: the description is missing or damaged, of another id, or of a newer format than this version reads.
    """
    if not (folder / "dataset_info.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no data set: record one with generalist.envs.custom.record_demonstrations, or give the folder with "
            "dataset_info.json in it"
        )
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        stored_format(description, FORMAT, path)
        task = own_task(folder, description)
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} does not say which environment it is of: give it as ID={folder}, with the Gymnasium id"
        ) from error
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): record the demonstrations again"
        ) from error
    if id is None or id == task.id:
        return task
    if bare_id(id) != bare_id(task.id):
        raise ValueError(f"{folder} was recorded in {task.id}, not in {id}: leave the id out, or give another folder")
    # The given one: the module that registered it may have moved since the recording.
    return dataclasses.replace(task, id=id)


def bare_id(id: str) -> str:
    """The id without the module that registers it: `module:Id-v0` and `Id-v0` are the same environment."""
    return id.rpartition(":")[2]
