"""A task of one's own: any Gymnasium id with a folder of demonstrations.

    <folder>/dataset_info.json  features.json  *.array_record-*     RLDS, as generalist/envs/rlds.py has it
             task.json          ours: id, spaces, instruction, max_steps, the scores of random actions and demonstrations

`generalist.envs.custom` writes such folders. A task is found again from what it carries, in any process: nothing is registered.
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
"""Of what task.json says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnTask(Task):
    """An environment that Gymnasium makes by its id."""

    id: str
    """Gymnasium's id; `module:Id-v0` imports the module, which registers it."""
    arguments: str = "{}"
    """What else `gymnasium.make` gets, as a JSON object."""
    folder: Path
    """The demonstrations."""
    spaces: str = ""
    """What was observed and done when the demonstrations were recorded, as JSON."""

    def build(self) -> gym.Env:
        """See `Task.build`.

        Raises:
            ValueError: Gymnasium can't make it, or it observes or does something else than what was recorded.
        """
        env = make_env(self.id, json.loads(self.arguments), self.max_steps)
        try:
            now = describe_spaces((env.observation_space, env.action_space), self.name)
        except ValueError:
            env.close()
            raise
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
        """There is none: the demonstrations are all that is known of it."""
        raise ValueError(f"{self.name} has no scripted expert: its demonstrations are in {self.folder}")

    def disturb(self, action: Any, space: gym.Space, rng: np.random.Generator) -> Any:
        """As `Task.disturb`; an action that is no bounded Box is replaced as a whole."""
        if isinstance(space, gym.spaces.Box) and space.is_bounded() and space.dtype.kind == "f":
            return super().disturb(action, space, rng)
        if rng.random() >= self.noise:
            return action
        space.seed(int(rng.integers(2**31)))
        return space.sample()


def make_env(id: str, arguments: Mapping[str, Any], max_steps: int | None = None) -> gym.Env:
    """The environment of an id, in which episodes end after `max_steps`, or after its own limit.

    Raises:
        ValueError: Gymnasium can't make it; the message says how to.
    """
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
    """Both spaces of a task as JSON.

    Raises:
        ValueError: one can't be learnt or acted with.
    """
    check_learnable(name, *spaces)
    return json.dumps({"observation": space_to_json(spaces[0]), "action": space_to_json(spaces[1])}, sort_keys=True)


def task_name(folder: Path) -> str:
    """`own/` and the folder's name; that of the folder above where it is but a version's number, as TFDS has it."""
    place = folder.resolve()
    version = re.fullmatch(r"[0-9]+(\.[0-9]+)+", place.name)
    return f"own/{place.parent.name if version else place.name}"


def own_task(folder: Path, description: Mapping[str, Any]) -> OwnTask:
    """The task that a folder's description says.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
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
    """The task of a folder of demonstrations, whose task.json is there.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: it is not described, is of another id, or of a newer format than this version reads.
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
    return dataclasses.replace(task, id=id)


def bare_id(id: str) -> str:
    """The id without the module that registers it: `module:Id-v0` and `Id-v0` are one environment."""
    return id.rpartition(":")[2]
