"""A folder of demonstrations, which is written completely or not at all and described by task.json."""

import contextlib
import dataclasses
import glob
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console

from generalist.envs import rlds
from generalist.envs.custom_task import (
    DESCRIPTION,
    FORMAT,
    OwnTask,
    describe_spaces,
    make_env,
    own_task,
    task_name,
)
from generalist.envs.episodes import Episode
from generalist.envs.recording import summary
from generalist.envs.reference import FIRST_SEED, play_random
from generalist.envs.told import Told
from generalist.system.files import write_json
from generalist.system.processes import is_running
from generalist.system.progress import counting
from generalist.tokenizers.space_values import check_text

RANDOM_EPISODES = 30  # whose mean score is 0 percent
EPISODES_PER_FILE = 50  # which are in memory together


def free_place(folder: Path | str, replace: bool) -> Path:
    """The folder's absolute path, if demonstrations can be written there.

    Raises:
        FileExistsError: it exists, and does not hold demonstrations that may be replaced.
    """
    place = Path(folder).resolve()  # through links, and without `..`, since its name becomes the task's
    # Only a folder with our description is ever replaced: `replace=True` with a wrong path must not delete other files.
    if place.exists() and not (replace and (place / DESCRIPTION).exists()):
        remedy = "name another folder" if replace else "name another folder, or pass replace=True"
        raise FileExistsError(
            f"{place} exists already{' and holds no demonstrations of ours' if replace else ''}: {remedy}"
        )
    return place


def undescribed(
    id: str, folder: Path, instruction: str, max_steps: int | None, arguments: Mapping[str, Any] | None, noise: float
) -> tuple[OwnTask, gym.Env]:
    """A task whose scores are not measured yet, and its environment. Arguments are checked as of `record_demonstrations`.

    Raises:
        ValueError: an argument is not valid, Gymnasium can't make the environment, or a space can't be learned.
    """
    if not isinstance(id, str):
        raise ValueError(f"the id must be a text such as CartPole-v1, got {id!r:.60}: register the environment")
    check_text(instruction, "the instruction")
    # They are stored in task.json, from which other processes make the environment.
    try:
        written = json.dumps(dict(arguments or {}), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"arguments must be JSON values, got {arguments} ({error}): register an id without them"
        ) from error
    # JSON silently makes lists of tuples and texts of numbers as keys.
    if json.loads(written) != dict(arguments or {}):
        raise ValueError(
            f"arguments must be JSON values, but of {arguments} JSON would make {written} (lists for tuples, texts for keys)"
            ": register an id without them"
        )
    if max_steps is None:
        with contextlib.closing(make_env(id, json.loads(written))) as env:
            max_steps = env.spec.max_episode_steps if env.spec is not None else None
        if max_steps is None:
            raise ValueError(f"{id} has no limit of steps: set one with max_steps=..., after which an episode ends")
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a whole number of at least 1, got {max_steps!r}")
    name = task_name(folder)
    task = OwnTask(
        name=name,
        suite="own",
        layout=name,
        instruction=instruction,
        max_steps=max_steps,
        record_steps=max_steps,
        episodes=0,
        seconds=1.0,
        noise=noise,
        id=id,
        arguments=written,
        folder=folder,
    )
    # Without recorded spaces `build` compares nothing: they are what this environment has.
    env = task.make()
    try:
        spaces = describe_spaces((env.observation_space, env.action_space), name)
    except ValueError:
        env.close()
        raise
    return dataclasses.replace(task, spaces=spaces), env


def write(task: OwnTask, env: gym.Env, played: Iterator[Episode], count: int, replace: bool) -> OwnTask:
    """Writes the episodes into a folder beside the final one, and renames it when it is complete.

    Args:
        task: from `undescribed`.
        env: its environment.
        played: the episodes, played as they are asked for.
        count: their number.
        replace: whether demonstrations in the final folder may be replaced.

    Raises:
        FileExistsError: something has appeared in the final folder meanwhile.
        ValueError: the demonstrations score no better than random actions.
    """
    spaces = env.observation_space, env.action_space
    work = _working_folder(task.folder)
    work.mkdir(parents=True)
    try:
        random = measured_random(task, env)
        shards, kept = _write_shards(task, spaces, played, count, work)
        clean = [score for score, noisy in zip(kept["scores"], kept["noisy"], strict=True) if not noisy]
        expert = float(np.mean(clean))
        # Percentages divide by the difference. `not >` instead of `<=`: it also refuses NaN.
        if not expert > random:
            texts = ", ".join(map(repr, told_parts(env)))
            given = f", given what the observation part {texts} says as instruction," if texts else ""
            raise ValueError(
                f"the demonstrations of {task.id}{given} score {expert:.4g}, no more than uniformly random actions ({random:.4g}"
                "): there is nothing to learn from them"
            )
        rlds.write_dataset_files(work, task, spaces, shards, kept)
        described = description(task, random, expert, count)
        write_json(work / DESCRIPTION, described)
        # Again, since recording may have taken hours: what has appeared there meanwhile must not be removed.
        free_place(task.folder, replace)
        # A folder cannot be renamed onto another one, so the former one is moved aside first.
        former = work.with_name(f"{work.name}.former")
        if task.folder.exists():
            os.replace(task.folder, former)
        os.replace(work, task.folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return own_task(task.folder, described)


def _working_folder(place: Path) -> Path:
    """The folder in which this process puts a data set together. Those of processes that are gone are removed."""
    # With the process's number, so that two recordings into one place do not write into each other.
    pattern = f".{place.name}.recording."
    for left in place.parent.glob(f"{glob.escape(pattern)}*"):
        if not is_running(left.name.removeprefix(pattern).split(".")[0]):
            shutil.rmtree(left, ignore_errors=True)
    return place.with_name(f"{pattern}{os.getpid()}")


def _write_shards(
    task: OwnTask, spaces: rlds.Spaces, played: Iterator[Episode], count: int, work: Path
) -> tuple[list[tuple[int, int]], dict[str, list]]:
    """Writes the files. Returns (episodes, bytes) of each, and the episodes' entries in metadata.json."""
    serialize, files = rlds.Serializer(task, spaces), -(-count // EPISODES_PER_FILE)  # rounded up
    shards: list[tuple[int, int]] = []
    kept: dict[str, list] = {name: [] for name in ("lengths", "seeds", "scores", "noisy")}
    # On standard error: the caller's own script may print to standard output.
    with counting(Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"recording {task.name}", total=count)
        for index in range(files):
            part: list[Episode] = []
            for episode in itertools.islice(played, EPISODES_PER_FILE):
                part.append(episode)
                progress.advance(bar)
            records = [serialize(episode) for episode in part]
            rlds.write_shard(work / rlds.shard_name(task, index, files), records)
            shards.append((len(part), sum(map(len, records))))
            for name, values in summary(part).items():
                kept[name] += values
    return shards, kept


def check_length(task: OwnTask, steps: int, name: str) -> None:
    """Checks that an episode is not longer than those of an evaluation, whose scores are compared with its score.

    Raises:
        ValueError: it is longer.
    """
    if steps > task.max_steps:
        raise ValueError(
            f"{name} has {steps} decisions, but episodes of {task.id} end after {task.max_steps}, which an evaluation's score "
            f"could not reach: give max_steps={steps}, or cut it off"
        )


def told_parts(env: gym.Env) -> tuple[str, ...]:
    """The keys of the observations' texts, which become the instruction; empty if there are none."""
    # `Told` stands somewhere among the wrappers.
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Told):
            return env.keys
        env = env.env
    return ()


def measured_random(task: OwnTask, env: gym.Env) -> float:
    """Mean score of uniformly random actions over `RANDOM_EPISODES` episodes."""
    return float(np.mean([play_random(task, env, FIRST_SEED + index) for index in range(RANDOM_EPISODES)]))


def description(task: OwnTask, random: float, expert: float, episodes: int) -> dict[str, Any]:
    """The content of task.json, from which `own_task` makes the task."""
    return {
        "format": FORMAT,
        "id": task.id,
        "arguments": json.loads(task.arguments),
        "instruction": task.instruction,
        "max_steps": task.max_steps,
        "noise": task.noise,
        "episodes": episodes,
        "spaces": json.loads(task.spaces),
        "random_score": random,
        "random_episodes": RANDOM_EPISODES,
        "expert_score": expert,
    }
