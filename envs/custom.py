"""Environments of one's own: recording their demonstrations, and joining with what another tool recorded (docs/environments.md).

    from generalist.envs.custom import record_demonstrations
    record_demonstrations("CliffWalking-v1", policy, folder="demos/cliff", episodes=100, instruction="walk along the cliff")

A folder of demonstrations appears whole or not at all.
"""

import contextlib
import dataclasses
import fnmatch
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    described_task,
    make_env,
    own_task,
    task_name,
)
from generalist.envs.episodes import Episode, play_policy
from generalist.envs.recording import summary
from generalist.envs.reference import FIRST_SEED, play_random
from generalist.envs.registered import importable_id
from generalist.envs.rlds_steps import OURS, decisions, training_split
from generalist.envs.task import EVALUATION_SEED, Policy
from generalist.envs.told import Told
from generalist.system.files import write_json
from generalist.system.progress import counting
from generalist.tokenizers.space_values import checked, checked_reward, steps_of

RANDOM_EPISODES = 30  # for the lower end of every percentage
EPISODES_A_FILE = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstration:
    """An episode that somebody played, of T decisions."""

    observations: Any
    """T values of the observation space, or their array (T, ...); of a Dict or Tuple also a Dict or tuple of arrays (T, ...), as
    Minari has them. One more is left out: nothing was decided on it."""
    actions: Any
    """T values of the action space, in the same forms."""
    rewards: Sequence[float]
    """T rewards."""
    terminated: bool = False
    """It ended by itself, not by a limit."""


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
    if not 0 < episodes < EVALUATION_SEED:
        raise ValueError(f"episodes must be from 1 to {EVALUATION_SEED - 1}, got {episodes}")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must be from 0 to 1, got {noise}")
    place = _free_place(folder, replace)
    task, env = _undescribed(importable_id(id), place, instruction, max_steps, arguments, noise)

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
        return _write(task, env, play(), episodes)


def save_demonstrations(
    id: str,
    demonstrations: Sequence[Demonstration],
    *,
    folder: Path | str,
    instruction: str,
    max_steps: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> OwnTask:
    """Writes episodes that a human or another agent played. As `record_demonstrations`."""
    if not demonstrations:
        raise ValueError("there is no demonstration to save")
    place = _free_place(folder, replace)
    task, env = _undescribed(importable_id(id), place, instruction, max_steps, arguments, noise=0.0)

    def episodes() -> Iterator[Episode]:
        for index, one in enumerate(demonstrations):
            yield _episode(task, env, one, index)

    with contextlib.closing(env):
        return _write(task, env, episodes(), len(demonstrations))


def _episode(task: OwnTask, env: gym.Env, one: Demonstration, index: int) -> Episode:
    """A demonstration as an episode, every value checked and copied.

    Raises:
        ValueError: it is not of the environment's spaces, or the numbers of its values differ.
    """
    name = f"{task.name}: demonstration {index}"
    seen = steps_of(env.observation_space, one.observations, f"{name}: the observations")
    done = steps_of(env.action_space, one.actions, f"{name}: the actions")
    steps = len(done)
    if not steps or len(one.rewards) != steps or len(seen) not in (steps, steps + 1):
        raise ValueError(
            f"demonstration {index} has {len(seen)} observations, {steps} actions and {len(one.rewards)} rewards: as many of "
            "each are needed, at least one, and the last observation may be left in"
        )
    rewards = [
        checked_reward(reward, f"{name}, step {step}: the reward") for step, reward in enumerate(one.rewards)
    ]  # fmt: skip
    actions = [
        checked(env.action_space, action, f"{name}, step {step}: the action", bounded=True)
        for step, action in enumerate(done)
    ]
    return Episode(
        seed=index,
        noisy=False,
        instruction=task.instruction,
        score=task.score(rewards, []),
        observations=[
            checked(env.observation_space, value, f"{name}, step {step}: the observation")
            for step, value in enumerate(seen[:steps])
        ],
        actions=actions,
        executed=actions,
        rewards=np.asarray(rewards, np.float32),
        terminated=one.terminated,
    )


def join_demonstrations(
    id: str,
    folder: Path | str,
    *,
    instruction: str | None = None,
    max_steps: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    random_score: float | None = None,
) -> OwnTask:
    """Describes a data set that another tool recorded: RLDS by TFDS in ArrayRecord files. It gets a file task.json.

    Args:
        id: of Gymnasium.
        folder: the data set, with `dataset_info.json`.
        instruction: what the agent is told in evaluation, and in training where the episodes have none; None: the id.
        max_steps: decisions after which an episode is cut off in evaluation; None takes the environment's own limit.
        arguments: what else `gymnasium.make` gets.
        random_score: mean return of uniformly random actions; None measures it.

    Raises:
        FileNotFoundError: there is no data set in the folder.
        ValueError: it is no RLDS, or of other spaces than the environment's.
    """
    place = Path(folder)
    if not (place / "dataset_info.json").exists():
        raise FileNotFoundError(f"{place} holds no data set: give the folder with dataset_info.json in it")
    task, env = _undescribed(id, place, id if instruction is None else instruction, max_steps, arguments, noise=0.0)
    with contextlib.closing(env):
        scores = _joined_scores(place, task, (env.observation_space, env.action_space))
        random = _random_score(task, env) if random_score is None else random_score
    described = _description(task, random, float(np.mean(scores)), len(scores))
    write_json(place / DESCRIPTION, described)
    return own_task(place, described)


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


def _free_place(folder: Path | str, replace: bool) -> Path:
    """The folder, if nothing is there, or demonstrations that may be replaced."""
    place = Path(folder)
    if place.exists() and not (replace and (place / DESCRIPTION).exists()):
        remedy = "name another folder" if replace else "name another folder, or say replace=True"
        raise FileExistsError(f"{place} exists already{' and is none of ours' if replace else ''}: {remedy}")
    return place


def _undescribed(
    id: str, folder: Path, instruction: str, max_steps: int | None, arguments: Mapping[str, Any] | None, noise: float
) -> tuple[OwnTask, gym.Env]:
    """A task whose scores are not known yet, and its environment."""
    try:
        written = json.dumps(dict(arguments or {}), sort_keys=True)
    except TypeError as error:
        raise ValueError(
            f"arguments must be JSON values, got {arguments} ({error}): register an id without them"
        ) from error
    if max_steps is None:
        with contextlib.closing(make_env(id, json.loads(written))) as env:
            max_steps = env.spec.max_episode_steps if env.spec is not None else None
        if max_steps is None:
            raise ValueError(
                f"{id} has no limit of steps of its own: say after how many an episode ends, max_steps=..."
            )
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
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


def _write(task: OwnTask, env: gym.Env, played: Iterator[Episode], count: int) -> OwnTask:
    """Writes the episodes beside the folder's place, and moves them there when they are whole."""
    spaces = env.observation_space, env.action_space
    work = task.folder.with_name(f".{task.folder.name}.recording")
    shutil.rmtree(work, ignore_errors=True)  # of a recording that was killed
    work.mkdir(parents=True)
    try:
        random = _random_score(task, env)
        shards, kept = _write_shards(task, spaces, played, count, work)
        clean = [score for score, noisy in zip(kept["scores"], kept["noisy"], strict=True) if not noisy]
        expert = float(np.mean(clean))
        if not expert > random:
            told = (
                f", told what the observation part {', '.join(map(repr, texts))} says,"
                if (texts := _texts(env))
                else ""
            )
            raise ValueError(
                f"the demonstrations of {task.id}{told} score {expert:.4g}, no more than uniformly random actions ({random:.4g}"
                "): there is nothing to learn from them"
            )
        rlds.write_dataset_files(work, task, spaces, shards, kept)
        described = _description(task, random, expert, count)
        write_json(work / DESCRIPTION, described)
        shutil.rmtree(task.folder, ignore_errors=True)
        os.replace(work, task.folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return own_task(task.folder, described)


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


def _action(task: OwnTask, space: gym.Space, value: Any) -> Any:
    """A policy's action as the environment takes it: plain Python numbers are welcome.

    Raises:
        ValueError: it is not of the space.
    """
    return checked(space, value, f"{task.name}: the action", bounded=True)


def _texts(env: gym.Env) -> tuple[str, ...]:
    """The parts of the observations that are told as the instruction."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Told):
            return env.keys
        env = env.env
    return ()


def _random_score(task: OwnTask, env: gym.Env) -> float:
    """Mean score of uniformly random actions."""
    return float(np.mean([play_random(task, env, FIRST_SEED + index) for index in range(RANDOM_EPISODES)]))


def _description(task: OwnTask, random: float, expert: float, episodes: int) -> dict[str, Any]:
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


def _joined_scores(folder: Path, task: OwnTask, spaces: rlds.Spaces) -> list[float]:
    """The score of each recorded episode that has a decision in it; every value is checked.

    Raises:
        ValueError: it is no RLDS, or of other spaces than the environment's.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        steps, split = builder.info.features["steps"].feature, training_split(builder.info, folder)
        _check_features(folder, steps, spaces)
        source = builder.as_data_source(split=split)
        scores, empty = [], 0
        for index, episode in enumerate(source):
            played = list(episode["steps"])
            last = [step["is_last"] for step in played] if "is_last" in steps else None
            played = played[: decisions(OURS in steps, last, len(played))]
            empty += not played
            if played:
                scores.append(_joined_score(task, spaces, played, f"{folder}, episode {index}"))
    except (KeyError, AttributeError, NotImplementedError) as error:
        # The last: TFDS, of files that are no ArrayRecord.
        raise ValueError(f"{folder} is not RLDS in ArrayRecord files ({type(error).__name__}: {error})") from error
    if not scores:
        raise ValueError(f"{folder} has no episode with a decision in it: give another data set")
    if empty:
        Console(stderr=True).print(
            f"note: {empty} of {len(scores) + empty} episodes in {folder} have no decision in them and are left out",
            highlight=False,
            markup=False,
        )
    return scores


def _joined_score(task: OwnTask, spaces: rlds.Spaces, played: Sequence[Mapping[str, Any]], what: str) -> float:
    """The score of an episode's steps, once each of their values has been checked."""
    for number, step in enumerate(played):
        for name, space in zip(("observation", "action"), spaces, strict=True):
            checked(
                space, rlds.value(space, step[name]), f"{what}, step {number}: the {name}", bounded=name == "action"
            )
    return task.score([checked_reward(step["reward"], f"{what}: the reward") for step in played], [])


def _check_features(folder: Path, steps: Mapping[str, Any], spaces: rlds.Spaces) -> None:
    """Whether recorded steps are of these spaces: keys, shapes and kinds of number.

    Raises:
        ValueError: they are not; the message names the first part that differs.
    """
    for name, space in zip(("observation", "action"), spaces, strict=True):
        recorded, wanted = dict(_leaves(steps[name])), dict(_leaves(rlds.feature(space)))
        for key in sorted(recorded.keys() | wanted.keys()):
            has, needs = (side.get(key, "nothing") for side in (recorded, wanted))
            if has != needs:
                raise ValueError(
                    f"{folder} has {has} as the {name} part {key!r}, but the environment has {needs}: give the id and the "
                    "arguments of the environment that was recorded"
                )


def _leaves(feature: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Flat key, and shape and kind in words, of each part of a `tfds.features`."""
    if isinstance(feature, Mapping) or hasattr(feature, "items"):
        for name, part in feature.items():
            yield from _leaves(part, f"{key}/{name}" if key else name)
        return
    kinds = {"f": "real numbers", "i": "whole numbers", "u": "whole numbers", "b": "flags"}
    yield key, f"{kinds.get(np.dtype(feature.np_dtype).kind, 'texts')} of shape {tuple(feature.shape)}"
