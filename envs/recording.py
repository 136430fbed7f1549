"""Recording experts: worker processes play, and each task's data set is written completely or not at all.

A task's episodes are divided into chunks, each with its own seeds, so that the same settings give the same data set for any
number of workers. Chunks are written into a hidden folder beside the final one, which is renamed when the last chunk is in it.

    <folder>/<suite>/<task>/150_episodes/1.0.0/      other numbers of episodes have other folders, so none replaces another
"""

import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from generalist.envs import rlds
from generalist.envs.episodes import Episode, environment, play_expert
from generalist.envs.registry import get
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.system.processes import run_jobs
from generalist.system.progress import Progress, TimeLeft

CHUNK_SECONDS = 6.0  # of CPU time: short enough to keep all workers busy to the end, long enough for few files
NAMED = 5  # tasks that a message lists; the others are counted
TRIES = 4  # seeds per wanted episode, since failures may be left out
# Packages whose version decides what a suite's episodes contain.
PACKAGES = {
    "metaworld": ("metaworld", "mujoco"),
    "babyai": ("minigrid",),
    "atari": ("ale-py",),
    "classic": ("gymnasium", "box2d", "mujoco"),
    "fetch": ("gymnasium-robotics", "mujoco"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """A part of a task's episodes: one job, one file."""

    task: str
    episodes: int
    first_seed: int
    path: str
    """The file."""

    def __str__(self) -> str:
        return self.task


def record(
    tasks: Sequence[Task], folder: Path, *, episodes: Mapping[str, int], workers: int, console: Console, seed: int = 0
) -> None:
    """Records the experts of those tasks that have no recording with these settings yet.

    Args:
        tasks: the tasks.
        folder: receives the recordings (see `recording_folder`).
        episodes: number of episodes by the task's name.
        workers: maximum number of processes.
        console: shows the progress.
        seed: seed of the first episode of every task.

    Raises:
        MissingExtra: a package of the environments is not installed.
        OSError: the disk is full or can't be written; complete data sets are kept.
        ValueError: an expert succeeds too rarely for that many episodes.
        WorkerError: a worker process died.
    """
    places = {task.name: recording_folder(folder, task, episodes[task.name], seed) for task in tasks}
    missing = [task for task in tasks if not is_recorded(task, folder, episodes[task.name], seed)]
    if len(missing) < len(tasks):
        console.print(
            f"{len(tasks) - len(missing)} of {len(tasks)} tasks are recorded already in {folder}", highlight=False
        )
    if not missing:
        return
    if anew := [
        task.name
        for task in missing
        if any(_is_outdated(place, task, seed) for place in (places[task.name], rlds.dataset_folder(folder, task)))
    ]:
        others = f" and {len(anew) - NAMED} more" if len(anew) > NAMED else ""
        console.print(
            f"recording again, since existing recordings are of other package versions or an older format: "
            f"{', '.join(anew[:NAMED])}{others}",
            highlight=False,
            soft_wrap=True,
        )
    # One task per suite: a missing package fails here, before any worker starts.
    for task in {task.suite: task for task in missing}.values():
        task.make().close()
    plans = {task.name: chunks(task, places[task.name], episodes[task.name], seed) for task in missing}
    for task in missing:
        shutil.rmtree(working_folder(places[task.name]), ignore_errors=True)  # left behind by a killed recording
        working_folder(places[task.name]).mkdir(parents=True)
    # The longest chunks first, so that no worker is left alone with a long one at the end.
    order = sorted(missing, key=lambda task: -task.seconds * plans[task.name][0].episodes)
    jobs = [chunk for task in order for chunk in plans[task.name]]
    try:
        _run(
            jobs,
            plans,
            places,
            workers,
            console,
            settings={task.name: fingerprint(task, episodes[task.name], seed) for task in missing},
        )
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC,
                f"the disk is full: free some space for the recordings in {folder} and run the same command again",
            ) from error
        raise
    finally:
        for task in missing:
            shutil.rmtree(working_folder(places[task.name]), ignore_errors=True)
    for task in missing:
        _remove_outdated(rlds.dataset_folder(folder, task), task, seed)


def _run(
    jobs: list[Chunk],
    plans: Mapping[str, list[Chunk]],
    places: Mapping[str, Path],
    workers: int,
    console: Console,
    settings: Mapping[str, str],
) -> None:
    """Plays all chunks. A data set is finished with its last chunk, so that an interruption loses unfinished tasks only."""
    columns = (
        TextColumn("recording {task.fields[name]:<28}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[done]}"),
    )
    times = (TextColumn("episodes"), TimeElapsedColumn(), TextColumn("left"), TimeLeft())
    # An episode of one task may take a thousand times as long as another's: the bar and the time left are measured in the
    # seconds that each task's episodes are known to take.
    seconds = {name: get(name).seconds for name in plans}
    total, played = sum(chunk.episodes for chunk in jobs), 0
    done: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in plans}
    with Progress(*columns, *times, console=console, refresh_per_second=2) as progress:
        expected = sum(chunk.episodes * seconds[chunk.task] for chunk in jobs)
        bar = progress.add_task("recording", total=expected, name="starting workers", done=f"0/{total}")
        for chunk, result in run_jobs(play_chunk, jobs, workers=workers):
            done[chunk.task][chunk.first_seed] = result
            played += chunk.episodes
            advance = chunk.episodes * seconds[chunk.task]
            progress.update(bar, advance=advance, name=chunk.task, done=f"{played}/{total}")
            if len(done[chunk.task]) == len(plans[chunk.task]):
                # In the order of the files, which chunks do not finish in.
                ordered = [done[chunk.task][planned.first_seed] for planned in plans[chunk.task]]
                finish(get(chunk.task), places[chunk.task], ordered, settings[chunk.task])
        progress.update(bar, completed=expected, name=f"{len(plans)} tasks")  # sums of fractions may end just below


def chunks(task: Task, place: Path, episodes: int, seed: int) -> list[Chunk]:
    """A task's episodes in chunks of about `CHUNK_SECONDS`.

    Args:
        task: the task.
        place: folder of the finished data set.
        episodes: number of episodes.
        seed: seed of the first one.

    Raises:
        ValueError: the seeds would reach those of evaluation.
    """
    if episodes < 1:
        raise ValueError(f"the number of episodes of {task.name} must be at least 1, got {episodes}")
    count = max(1, min(episodes, math.ceil(episodes * task.seconds / CHUNK_SECONDS)))
    sizes = [len(part) for part in np.array_split(np.arange(episodes), count)]
    if seed + TRIES * episodes + count >= EVALUATION_SEED:
        raise ValueError(
            f"{episodes} episodes of {task.name} from seed {seed} would reach the seeds of evaluation, {EVALUATION_SEED}"
        )
    # Each chunk has room for its failures, so that chunks can be played in any order without sharing a seed.
    starts = seed + TRIES * np.cumsum([0, *sizes[:-1]])
    work = working_folder(place)
    return [
        Chunk(
            task=task.name, episodes=size, first_seed=int(start), path=str(work / rlds.shard_name(task, index, count))
        )
        for index, (size, start) in enumerate(zip(sizes, starts, strict=True))
    ]


def play_chunk(chunk: Chunk) -> dict[str, Any]:
    """Plays a chunk's episodes and writes its file, in a worker. Returns the entries for the metadata, and the file's size.

    Raises:
        ValueError: too few of the expert's episodes succeed.
        OSError: the file can't be written.
    """
    task, played = get(chunk.task), []
    for seed in range(chunk.first_seed, chunk.first_seed + TRIES * chunk.episodes):
        # Multiples of the golden ratio are spread evenly modulo 1, so any range of seeds has its share of noisy episodes.
        noisy = (seed * 0.6180339887498949) % 1.0 < task.noisy_share
        episode = play_expert(task, seed, noisy=noisy, max_steps=task.record_steps)
        if episode is not None and (not task.only_successes or episode.score > 0):
            played.append(episode)
        if len(played) == chunk.episodes:
            break
    else:
        raise ValueError(
            f"the expert of {chunk.task} succeeded only {len(played)} times in {TRIES * chunk.episodes} episodes, but "
            f"{chunk.episodes} are needed: record fewer, or other tasks"
        )
    records = [*map(rlds.Serializer(task, _spaces(task)), played)]
    rlds.write_shard(Path(chunk.path), records)
    return {"bytes": sum(map(len, records)), **summary(played)}


def summary(episodes: Sequence[Episode]) -> dict[str, list]:
    """Lengths, seeds, scores and noise flags of episodes, in stored order, for metadata.json."""
    return {
        "lengths": [len(episode.rewards) for episode in episodes],
        "seeds": [episode.seed for episode in episodes],
        "scores": [float(episode.score) for episode in episodes],
        "noisy": [episode.noisy for episode in episodes],
    }


def finish(task: Task, place: Path, parts: Sequence[Mapping[str, Any]], settings: str) -> None:
    """Completes the data set of a task's files and moves it to its final folder.

    Args:
        task: the task.
        place: the final folder.
        parts: the results of `play_chunk`, in the order of the files.
        settings: fingerprint of the settings.
    """
    metadata: dict[str, Any] = {
        name: [value for part in parts for value in part[name]] for name in ("lengths", "seeds", "scores", "noisy")
    }
    # The expert's score is that of undisturbed play.
    clean = [score for score, noisy in zip(metadata["scores"], metadata["noisy"], strict=True) if not noisy]
    metadata |= {
        "expert_score": float(np.mean(clean)) if clean else None,
        "versions": versions(task),
        "fingerprint": settings,
    }
    work = working_folder(place)
    shards = [(len(part["lengths"]), part["bytes"]) for part in parts]
    rlds.write_dataset_files(work, task, _spaces(task), shards, metadata)
    # An outdated recording of as many episodes, kept until its replacement is complete.
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(work, place)


def _spaces(task: Task) -> rlds.Spaces:
    env = environment(task.name)
    return env.observation_space, env.action_space


def recording_folder(folder: Path, task: Task, episodes: int, seed: int = 0) -> Path:
    """The folder of a task's recording with this number of episodes. Each number has its own folder, so that presets with
    different numbers do not replace each other's recordings."""
    # Earlier versions kept one recording per task, here; one that fits is still used.
    former = rlds.dataset_folder(folder, task)
    if _has(former, fingerprint(task, episodes, seed)):
        return former
    return former.with_name(f"{episodes}_episodes") / rlds.VERSION


def working_folder(place: Path) -> Path:
    """The folder in which a data set is put together, on the file system of the final one, so that renaming it is atomic."""
    return place.parent.with_name(f".{place.parent.name}.recording")


def _remove_outdated(former: Path, task: Task, seed: int) -> None:
    """Removes the recording of an earlier version, if it is of other package versions or settings than today's."""
    if _is_outdated(former, task, seed):
        shutil.rmtree(former)


def _is_outdated(place: Path, task: Task, seed: int) -> bool:
    """Whether a recording exists that would come out differently with today's versions and settings."""
    metadata = rlds.read_metadata(place) or {}
    recorded = metadata.get("fingerprint")  # data sets of other tools have none, and are never removed
    return recorded is not None and recorded != fingerprint(task, len(metadata["lengths"]), seed)


def fingerprint(task: Task, episodes: int, seed: int) -> str:
    """A hash of everything that decides what a recording contains."""
    # Stored with recordings: any change here makes all of them outdated.
    settings = {
        **{
            name: getattr(task, name)
            for name in ("name", "record_steps", "max_steps", "noise", "noisy_share", "instruction")
        },
        **{"episodes": episodes, "seed": seed, "format": rlds.FORMAT, "versions": versions(task)},
        # Left out at 0, as in recordings from before revisions existed.
        **({"revision": task.revision} if task.revision else {}),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def versions(task: Task) -> dict[str, str]:
    """Versions of the packages that a suite's episodes depend on; `missing` for a package that is not installed, which `make`
    reports."""
    found = {}
    for package in PACKAGES.get(task.suite, ()):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def is_recorded(task: Task, folder: Path, episodes: int, seed: int = 0) -> bool:
    """Whether a complete data set with these settings exists."""
    return _has(recording_folder(folder, task, episodes, seed), fingerprint(task, episodes, seed))


def _has(place: Path, settings: str) -> bool:
    metadata = rlds.read_metadata(place)
    return metadata is not None and metadata.get("fingerprint") == settings
