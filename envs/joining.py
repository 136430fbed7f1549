"""Describing a data set that another tool recorded (RLDS by TFDS in ArrayRecord files), so that it can be trained on."""

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
from generalist.envs.rlds_steps import instruction as stored_instruction
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
    """Checks a data set that another tool recorded and adds a task.json to its folder.

    Args:
        id: the environment's Gymnasium id.
        folder: the data set, with `dataset_info.json`.
        instruction: the agent's instruction in evaluation, and in training for episodes without one; None: the id.
        max_steps: maximum decisions per episode in evaluation; None takes the environment's own limit.
        arguments: further arguments for `gymnasium.make`.
        random_score: mean return of uniformly random actions; None measures it.

    Raises:
        FileNotFoundError: there is no data set in the folder.
        ValueError: it is not RLDS, or its spaces differ from the environment's.
    """
    place = Path(folder)
    if not (place / "dataset_info.json").exists():
        raise FileNotFoundError(f"{place} holds no data set: give the folder with dataset_info.json in it")
    task, env = undescribed(id, place, id if instruction is None else instruction, max_steps, arguments, noise=0.0)
    with contextlib.closing(env):
        scores = _joined_scores(place, task, (env.observation_space, env.action_space))
        random = measured_random(task, env) if random_score is None else random_score
    expert = float(np.mean(scores))
    if not expert > random:  # also refuses NaN
        raise ValueError(
            f"the episodes in {place} score {expert:.4g}, no more than uniformly random actions ({random:.4g}): there is "
            "nothing to learn from them"
        )
    described = description(task, random, expert, len(scores))
    write_json(place / DESCRIPTION, described)
    return own_task(place, described)


def _joined_scores(folder: Path, task: OwnTask, spaces: rlds.Spaces) -> list[float]:
    """The score of each recorded episode with at least one decision; every value is checked.

    Raises:
        ValueError: it is not RLDS, or its spaces differ from the environment's.
    """
    import tensorflow_datasets as tfds

    # Features first: they are in one small file, and a mistake in the id shows there.
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
    # TFDS raises NotImplementedError for files of another format.
    except (KeyError, AttributeError, NotImplementedError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())  # on one line
        raise ValueError(f"{folder} is not RLDS in ArrayRecord files ({reason})") from error
    scores, empty = [], 0
    for index, episode in enumerate(source):
        try:
            played = list(episode["steps"])
            last = [step["is_last"] for step in played] if "is_last" in steps else None
            played = played[: decisions(is_ours(features), last, len(played))]
            if played:
                stored_instruction({**episode, "steps": played}, task.instruction)  # raises if it is no text
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
    """The score of an episode's steps, after checking each of their values."""
    # Now, not in training: there a value outside its space would fail, or be clipped, in the middle of a run.
    for number, step in enumerate(played):
        for name, space in zip(("observation", "action"), spaces, strict=True):
            checked(
                space, rlds.value(space, step[name]), f"{what}, step {number}: the {name}", bounded=name == "action"
            )
    return task.score([checked_reward(step["reward"], f"{what}: the reward") for step in played], [])


def _check_features(folder: Path, steps: Mapping[str, Any], spaces: rlds.Spaces) -> None:
    """Compares the features of recorded steps with the spaces: keys, shapes and kinds of number.

    Raises:
        ValueError: they differ; the message names the first part that does.
    """
    # Kinds, not dtypes: other tools store float32 as float64, or int64 as int32, without any loss.
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
    """Flat key, and shape and kind as text, of each part of a `tfds.features`."""
    if isinstance(feature, Mapping) or hasattr(feature, "items"):  # FeaturesDict is no Mapping
        for name, part in feature.items():
            yield from _leaves(part, f"{key}/{name}" if key else name)
        return
    kinds = {"f": "real numbers", "i": "whole numbers", "u": "whole numbers", "b": "flags"}
    yield key, f"{kinds.get(np.dtype(feature.np_dtype).kind, 'texts')} of shape {tuple(feature.shape)}"
