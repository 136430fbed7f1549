"""The user's own environments: recording demonstrations, and using data sets of other tools (docs/environments.md).

    from generalist.envs.custom import record_demonstrations
    record_demonstrations("CliffWalking-v1", policy, folder="demos/cliff", episodes=100, instruction="walk along the cliff")

A folder of demonstrations is written completely or not at all.
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
    """Plays a policy in an environment and writes the episodes as a data set, with the score of random actions.

    Args:
        id: the environment's Gymnasium id; `module:Id-v0` imports the module, which registers it.
        policy: observation → action. It plays all episodes: a policy with memory must reset it by itself.
        folder: receives the data set; its name becomes the task's name, `own/<name>`.
        episodes: number of episodes, with the seeds 0, 1, ...
        instruction: the agent's instruction, unless `info["instruction"]` of `reset` gives one.
        max_steps: maximum decisions per episode, here and in evaluation; None takes the environment's own limit.
        noise: strength of action noise in every second episode, which shows how the policy recovers; the policy's own choice is
            recorded. In half-ranges for a bounded Box; otherwise the share of actions that are replaced.
        arguments: further arguments for `gymnasium.make`; JSON values.
        replace: replace demonstrations that are in the folder already.

    Raises:
        FileExistsError: the folder exists already.
        ValueError: Gymnasium can't make the environment, a space can't be learned, an observation, an action or a reward does
            not belong to its space, or the policy scores no better than random actions.
        OSError: the disk is full.
    """
    # Seeds of evaluation must stay unseen.
    if not isinstance(episodes, int) or not 0 < episodes < EVALUATION_SEED:
        raise ValueError(f"episodes must be a whole number from 1 to {EVALUATION_SEED - 1}, got {episodes!r}")
    if not isinstance(noise, float | int) or not 0 <= noise <= 1:
        raise ValueError(f"noise must be from 0 to 1, got {noise}")
    place = free_place(folder, replace)
    task, env = undescribed(importable_id(id), place, instruction, max_steps, arguments, noise)

    def act(observation: Any) -> Any:
        # Plain Python numbers are accepted, and converted to the space's type.
        return checked(env.action_space, policy(observation), f"{task.name}: the action", bounded=True)

    # A generator, so that episodes are written file by file and need not all be in memory.
    def play() -> Iterator[Episode]:
        for seed in range(episodes):
            observation, info = env.reset(seed=seed)
            # Every second one is without noise: their scores are the expert's.
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
    """Writes episodes that a human or another agent played as a data set.

    Args:
        id: the environment's Gymnasium id.
        demonstrations: the episodes.
        folder, instruction, max_steps, arguments, replace: as of `record_demonstrations`.

    Raises:
        FileExistsError: the folder exists already.
        ValueError: as `record_demonstrations`; a message about an episode gives its number.
        OSError: the disk is full.
    """
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
        # An environment with instructions of its own gives them to acting agents: training on another one would mislead.
        given = env.reset(seed=FIRST_SEED)[1]["instruction"]
        if given != task.instruction and any(
            one.instruction is None and not has_texts(env, one) for one in demonstrations
        ):
            raise ValueError(
                f"{task.id} gives its own instruction, {given!r:.60}, also to acting agents: give each Demonstration the one "
                "that it was played with, instruction=..., or leave the texts in its observations"
            )
        return write(task, env, episodes(), len(demonstrations), replace)


def _check_seeds(task: OwnTask, env: gym.Env) -> None:
    """Prints a note on standard error if a seed does not decide how an episode begins."""
    first, again = (env.reset(seed=FIRST_SEED)[0] for _ in range(2))
    # Only a note: such an environment can be learned, but its scores are not comparable.
    if not data_equivalence(first, again):
        note(
            f"{task.id} begins differently each time with the same seed, so that neither its recordings nor its scores can be "
            "repeated: draw everything from self.np_random, and normalise observations outside the environment"
        )


def own_tasks(entries: Iterable[str], pattern: str = "*") -> list[OwnTask]:
    """The tasks of folders of demonstrations whose names after the slash match a shell pattern.

    Args:
        entries: folders, or `ID=FOLDER`, which also describes a data set of another tool.
        pattern: for the part of the names after `own/`.

    Raises:
        FileNotFoundError: a folder holds no data set.
        ValueError: a folder has no description or is of another id; two folders have the same name; no name matches.
    """
    found: dict[str, OwnTask] = {}
    names: dict[str, Path] = {}
    for entry in entries:
        id, folder = _id_and_folder(entry)
        # Among all entries, also those that the pattern leaves out: another pattern must not meet a new conflict.
        name = task_name(folder)
        if name in names:
            raise ValueError(f"{names[name]} and {folder} would both be the task {name}: rename one of the folders")
        names[name] = folder
        if fnmatch.fnmatch(name, f"own/{pattern}"):
            # Joining reads every episode and plays random actions, so it is done once, and kept in task.json.
            new = id is not None and not (folder / DESCRIPTION).exists()
            found[name] = join_demonstrations(str(id), folder) if new else described_task(folder, id)
    if not found:
        raise ValueError(
            f"no task matches 'own/{pattern}': data.own.demonstrations has {', '.join(names) or 'no folder'}"
        )
    return list(found.values())


def _id_and_folder(entry: str) -> tuple[str | None, Path]:
    """The parts of `ID=FOLDER`; no id for a folder, even one with an equals sign in its name."""
    id, found, folder = entry.partition("=")
    return (id, Path(folder)) if found and not Path(entry).exists() else (None, Path(entry))
