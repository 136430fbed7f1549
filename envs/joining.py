"""Joining with a data set that another tool recorded: RLDS by TFDS in ArrayRecord files."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from generalist.envs import rlds
from generalist.envs.custom_folder import check_length, description, measured_random, undescribed
from generalist.envs.custom_task import (
    DESCRIPTION,
    OwnTask,
    own_task,
)
from generalist.envs.rlds_steps import decisions, is_ours, training_split
from generalist.envs.rlds_steps import instruction as told_in
from generalist.system.console import note
from generalist.system.files import write_json
from generalist.tokenizers.space_values import checked, checked_reward


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
    task, env = undescribed(id, place, id if instruction is None else instruction, max_steps, arguments, noise=0.0)
    with contextlib.closing(env):
        scores = _joined_scores(place, task, (env.observation_space, env.action_space))
        random = measured_random(task, env) if random_score is None else random_score
    expert = float(np.mean(scores))
    if not expert > random:  # NaN as well
        raise ValueError(
            f"the episodes in {place} score {expert:.4g}, no more than uniformly random actions ({random:.4g}): there is "
            "nothing to learn from them"
        )
    described = description(task, random, expert, len(scores))
    write_json(place / DESCRIPTION, described)
    return own_task(place, described)


def _joined_scores(folder: Path, task: OwnTask, spaces: rlds.Spaces) -> list[float]:
    """The score of each recorded episode that has a decision in it; every value is checked.

    Raises:
        ValueError: it is no RLDS, or of other spaces than the environment's.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        features, split = builder.info.features, training_split(builder.info, folder)
        steps = features["steps"].feature
        if "reward" not in steps:
            raise ValueError(
                f"{folder} has no rewards in its steps, without which there is no score: add a part called reward"
            )
        _check_features(folder, steps, spaces)
        source = builder.as_data_source(split=split)
    except (KeyError, AttributeError, NotImplementedError) as error:
        # The last: TFDS, of files that are no ArrayRecord.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{folder} is not RLDS in ArrayRecord files ({reason})") from error
    scores, empty = [], 0
    for index, episode in enumerate(source):
        try:
            played = list(episode["steps"])
            last = [step["is_last"] for step in played] if "is_last" in steps else None
            played = played[: decisions(is_ours(features), last, len(played))]
            if played:
                told_in({**episode, "steps": played}, task.instruction)
                check_length(task, len(played), "it")
        except ValueError as error:
            raise ValueError(f"{folder}, episode {index}: {error}") from error
        empty += not played
        if played:
            scores.append(_joined_score(task, spaces, played, f"{folder}, episode {index}"))
    if not scores:
        raise ValueError(f"{folder} has no episode with a decision in it: give another data set")
    if empty:
        note(f"{empty} of {len(scores) + empty} episodes in {folder} have no decision in them and are left out")
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
