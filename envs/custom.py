"""Environments of one's own: recording their demonstrations, and joining with what another tool recorded (docs/environments.md).

    from generalist.envs.custom import record_demonstrations
    record_demonstrations("CliffWalking-v1", policy, folder="demos/cliff", episodes=100, instruction="walk along the cliff")

A folder of demonstrations appears whole or not at all.
"""

import contextlib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.utils.env_checker import data_equivalence

from generalist.envs.custom_folder import free_place, undescribed, write
from generalist.envs.custom_task import (
    DESCRIPTION,
    OwnTask,
    described_task,
    task_name,
)
from generalist.envs.demonstration import Demonstration, as_episode, has_texts
from generalist.envs.episodes import Episode, play_policy
from generalist.envs.joining import join_demonstrations
from generalist.envs.reference import FIRST_SEED
from generalist.envs.registered import importable_id
from generalist.envs.task import EVALUATION_SEED, Policy
from generalist.system.console import note
from generalist.tokenizers.space_values import checked


def record_demonstrations(
    id: str,
    policy: Policy,
    *,
    folder: Path | str,
    episodes: int,
    instruction: str,
    max_steps: int | None = None,
    noise: float = 0.0,
    arguments: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> OwnTask:
    """Plays a policy in an environment and writes the episodes as a data set; measures random actions as well.

    Args:
        id: of Gymnasium; `module:Id-v0` imports the module, which registers the environment.
        policy: observation → action. It is asked in all episodes: what it remembers of one it must drop by itself.
        folder: gets the data set; its name is the task's, `own/<name>`.
        episodes: how many; seeded from 0 on.
        instruction: what the agent is told, unless `info["instruction"]` of `reset` says it.
        max_steps: decisions after which an episode is cut off, here and in evaluation; None takes the environment's own limit.
        noise: strength of noise on the actions of every second episode, which shows how the policy recovers: what is recorded
            is what it chose. Half-ranges of a bounded Box; elsewhere the share of actions that are replaced.
        arguments: what else `gymnasium.make` gets; JSON values.
        replace: put it in the place of demonstrations that are in the folder already.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: Gymnasium can't make the environment, a space can't be learnt, an observation, an action or a reward is not
            what its space says, or the policy is no better than random.
        OSError: the disk is full.
    """
    if not isinstance(episodes, int) or not 0 < episodes < EVALUATION_SEED:
        raise ValueError(f"episodes must be a whole number from 1 to {EVALUATION_SEED - 1}, got {episodes!r}")
    if not isinstance(noise, float | int) or not 0 <= noise <= 1:
        raise ValueError(f"noise must be from 0 to 1, got {noise}")
    place = free_place(folder, replace)
    task, env = undescribed(importable_id(id), place, instruction, max_steps, arguments, noise)

    def act(observation: Any) -> Any:
        return _action(task, env.action_space, policy(observation))

    def play() -> Iterator[Episode]:
        for seed in range(episodes):
            observation, info = env.reset(seed=seed)
            noisy = noise > 0 and seed % 2 == 1
            yield play_policy(
                task, env, act, observation, info["instruction"], seed, noisy=noisy, max_steps=task.max_steps
            )

    with contextlib.closing(env):
        _check_seeds(task, env)
        return write(task, env, play(), episodes, replace)


def save_demonstrations(
    id: str,
    demonstrations: Iterable[Demonstration],
    *,
    folder: Path | str,
    instruction: str,
    max_steps: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> OwnTask:
    """Writes episodes that a human or another agent played. As `record_demonstrations`."""
    demonstrations = [demonstrations] if isinstance(demonstrations, Demonstration) else list(demonstrations)
    if wrong := [one for one in demonstrations if not isinstance(one, Demonstration)]:
        raise ValueError(f"demonstrations must be Demonstration(observations=..., ...), got {type(wrong[0]).__name__}")
    if not demonstrations:
        raise ValueError("there is no demonstration to save")
    place = free_place(folder, replace)
    task, env = undescribed(importable_id(id), place, instruction, max_steps, arguments, noise=0.0)

    def episodes() -> Iterator[Episode]:
        for index, one in enumerate(demonstrations):
            yield as_episode(task, env, one, index)

    with contextlib.closing(env):
        told = env.reset(seed=FIRST_SEED)[1]["instruction"]
        if told != task.instruction and any(
            one.instruction is None and not has_texts(env, one) for one in demonstrations
        ):
            raise ValueError(
                f"{task.id} tells {told!r:.60} of its own, which acting is told too: say in each Demonstration what was told, "
                "instruction=..., or leave the texts in its observations"
            )
        return write(task, env, episodes(), len(demonstrations), replace)


def _check_seeds(task: OwnTask, env: gym.Env) -> None:
    """Notes on standard error that a seed does not decide how an episode begins, so that scores can't be repeated."""
    first, again = (env.reset(seed=FIRST_SEED)[0] for _ in range(2))
    if not data_equivalence(first, again):
        note(
            f"{task.id} begins otherwise each time with the same seed, so that neither its recordings nor its scores can be "
            "repeated: draw everything from self.np_random, and normalise observations outside of the environment"
        )


def _action(task: OwnTask, space: gym.Space, value: Any) -> Any:
    """A policy's action as the environment takes it: plain Python numbers are welcome.

    Raises:
        ValueError: it is not of the space.
    """
    return checked(space, value, f"{task.name}: the action", bounded=True)


def own_tasks(entries: Iterable[str], pattern: str = "*") -> list[OwnTask]:
    """The tasks of folders of demonstrations whose names after the slash match a shell pattern.

    Args:
        entries: a folder each; or `ID=FOLDER`, which describes one that another tool recorded.
        pattern: of the folders' names.

    Raises:
        FileNotFoundError: a folder holds no data set.
        ValueError: a folder is not described or is of another id; two have one name; no name matches.
    """
    found: dict[str, OwnTask] = {}
    names: dict[str, Path] = {}
    for entry in entries:
        id, folder = _id_and_folder(entry)
        name = task_name(folder)
        if name in names:
            raise ValueError(f"{names[name]} and {folder} would both be the task {name}: rename one of the folders")
        names[name] = folder
        if fnmatch.fnmatch(name, f"own/{pattern}"):
            new = id is not None and not (folder / DESCRIPTION).exists()
            found[name] = join_demonstrations(str(id), folder) if new else described_task(folder, id)
    if not found:
        raise ValueError(
            f"no task matches 'own/{pattern}': data.own.demonstrations has {', '.join(names) or 'no folder'}"
        )
    return list(found.values())


def _id_and_folder(entry: str) -> tuple[str | None, Path]:
    id, found, folder = entry.partition("=")
    return (id, Path(folder)) if found and not Path(entry).exists() else (None, Path(entry))
