"""A folder of demonstrations: made in one piece or not at all, and described by task.json."""

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

FORMAT = 1
RANDOM_EPISODES = 30  # for the lower end of every percentage
EPISODES_A_FILE = 50


def free_place(folder: Path | str, replace: bool) -> Path:
    """The folder, if nothing is there, or demonstrations that may be replaced."""
    place = Path(folder).resolve()  # through links, and without `..`
    if place.exists() and not (replace and (place / DESCRIPTION).exists()):
        remedy = "name another folder" if replace else "name another folder, or say replace=True"
        raise FileExistsError(f"{place} exists already{' and is none of ours' if replace else ''}: {remedy}")
    return place


def undescribed(
    id: str, folder: Path, instruction: str, max_steps: int | None, arguments: Mapping[str, Any] | None, noise: float
) -> tuple[OwnTask, gym.Env]:
    """A task whose scores are not known yet, and its environment."""
    if not isinstance(id, str):
        raise ValueError(f"the id must be a text such as CartPole-v1, got {id!r:.60}: register the environment")
    check_text(instruction, "the instruction")
    try:
        written = json.dumps(dict(arguments or {}), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"arguments must be JSON values, got {arguments} ({error}): register an id without them"
        ) from error
    if json.loads(written) != dict(arguments or {}):
        raise ValueError(
            f"arguments must be JSON values, got {arguments}, of which {written} would be left (lists for tuples, texts for keys)"
            ": register an id without them"
        )
    if max_steps is None:
        with contextlib.closing(make_env(id, json.loads(written))) as env:
            max_steps = env.spec.max_episode_steps if env.spec is not None else None
        if max_steps is None:
            raise ValueError(
                f"{id} has no limit of steps of its own: say after how many an episode ends, max_steps=..."
            )
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
    env = task.make()
    try:
        spaces = describe_spaces((env.observation_space, env.action_space), name)
    except ValueError:
        env.close()
        raise
    return dataclasses.replace(task, spaces=spaces), env


def write(task: OwnTask, env: gym.Env, played: Iterator[Episode], count: int, replace: bool) -> OwnTask:
    """Writes the episodes beside the folder's place, and moves them there when they are whole.

    Raises:
        FileExistsError: something has appeared in that place meanwhile.
    """
    spaces = env.observation_space, env.action_space
    work = _working_folder(task.folder)
    work.mkdir(parents=True)
    try:
        random = measured_random(task, env)
        shards, kept = _write_shards(task, spaces, played, count, work)
        clean = [score for score, noisy in zip(kept["scores"], kept["noisy"], strict=True) if not noisy]
        expert = float(np.mean(clean))
        if not expert > random:
            texts = ", ".join(map(repr, told_parts(env)))
            told = f", told what the observation part {texts} says," if texts else ""
            raise ValueError(
                f"the demonstrations of {task.id}{told} score {expert:.4g}, no more than uniformly random actions ({random:.4g}"
                "): there is nothing to learn from them"
            )
        rlds.write_dataset_files(work, task, spaces, shards, kept)
        described = description(task, random, expert, count)
        write_json(work / DESCRIPTION, described)
        free_place(task.folder, replace)  # what has appeared there meanwhile is not ours to remove
        former = work.with_name(f"{work.name}.former")
        if task.folder.exists():
            os.replace(task.folder, former)
        os.replace(work, task.folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return own_task(task.folder, described)


def _working_folder(place: Path) -> Path:
    """Where this process puts a data set together; what processes that are gone left there is removed."""
    pattern = f".{place.name}.recording."
    for left in place.parent.glob(f"{glob.escape(pattern)}*"):
        if not is_running(left.name.removeprefix(pattern).split(".")[0]):
            shutil.rmtree(left, ignore_errors=True)
    return place.with_name(f"{pattern}{os.getpid()}")


def _write_shards(
    task: OwnTask, spaces: rlds.Spaces, played: Iterator[Episode], count: int, work: Path
) -> tuple[list[tuple[int, int]], dict[str, list]]:
    """Writes the files; (episodes, bytes) of each, and what metadata.json says of the episodes."""
    serialize, files = rlds.Serializer(task, spaces), -(-count // EPISODES_A_FILE)
    shards: list[tuple[int, int]] = []
    kept: dict[str, list] = {name: [] for name in ("lengths", "seeds", "scores", "noisy")}
    with counting(Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"recording {task.name}", total=count)
        for index in range(files):
            part: list[Episode] = []
            for episode in itertools.islice(played, EPISODES_A_FILE):
                part.append(episode)
                progress.advance(bar)
            records = [serialize(episode) for episode in part]
            rlds.write_shard(work / rlds.shard_name(task, index, files), records)
            shards.append((len(part), sum(map(len, records))))
            for name, values in summary(part).items():
                kept[name] += values
    return shards, kept


def check_length(task: OwnTask, steps: int, name: str) -> None:
    """Scores are of episodes that are cut off alike.

    Raises:
        ValueError: the episode is longer than those of an evaluation.
    """
    if steps > task.max_steps:
        raise ValueError(
            f"{name} has {steps} decisions, but episodes of {task.id} end after {task.max_steps}, which an evaluation's score "
            f"could not reach: give max_steps={steps}, or cut it off"
        )


def told_parts(env: gym.Env) -> tuple[str, ...]:
    """The parts of the observations that are told as the instruction."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Told):
            return env.keys
        env = env.env
    return ()


def measured_random(task: OwnTask, env: gym.Env) -> float:
    """Mean score of uniformly random actions."""
    return float(np.mean([play_random(task, env, FIRST_SEED + index) for index in range(RANDOM_EPISODES)]))


def description(task: OwnTask, random: float, expert: float, episodes: int) -> dict[str, Any]:
    """What task.json says; `own_task` reads it."""
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
