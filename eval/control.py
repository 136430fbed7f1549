"""Control: the policy acts in environments on seeds that no recording used, many environments at once.

All episodes of the tasks that share a layout run side by side, one a *lane*, and the policy acts in all lanes with one call.
Layouts run beside each other in threads, since a layout with few lanes leaves most of a machine idle.
"""

import contextlib
import dataclasses
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from rich.progress import Progress

from generalist.envs.pool import EnvPool
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.eval.scores import Estimate, bootstrap, interquartile_mean, percent

MAX_LANES = 64  # environments alive at once in a group: one of Meta-World takes 35 MB

_STARTING = (
    threading.Lock()
)  # starting a process changes `__main__` for a moment, which two threads must not do at once


class Policy(Protocol):
    """What acts in a fixed number of lanes."""

    def reset(self, instructions: list[str]) -> None:
        """Starts an episode in every lane."""

    def act(self, observations: list[Any], active: np.ndarray) -> list[Any]:
        """One action a lane; those of lanes that are not active (bool (lanes,)) are ignored."""


MakePolicy = Callable[[str, int], Policy]
"""Name of a layout, number of lanes → policy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One played episode."""

    task: str
    seed: int
    score: float
    """In the task's own measure: its return, or success as 0 or 1."""
    steps: int
    cut_off: bool
    """It ended at the task's limit of steps."""


def evaluate_control(
    make_policy: MakePolicy,
    tasks: Sequence[Task],
    episodes: int | Mapping[str, int],
    *,
    workers: int,
    first_seed: int = EVALUATION_SEED,
    progress: Progress | None = None,
) -> list[Episode]:
    """Plays every task's episodes, with the seeds `first_seed`, `first_seed + 1`, ...; sorted by task and seed.

    Args:
        make_policy: makes a policy for each group of lanes.
        tasks: of any layouts.
        episodes: a task, or by the task's name.
        workers: processes that step environments, and layouts that run at once.
        first_seed: recordings use seeds from 0 upwards, so it must be far above.
        progress: gets one bar with the time left.

    Raises:
        RuntimeError: an environment's process died; the message names the task.
    """
    groups = list(_groups(tasks, episodes, first_seed))
    parallel = max(1, min(workers, len(groups)))
    stop = threading.Event()
    advance = _bar(progress, groups)

    def play(group: list[tuple[Task, int]]) -> list[Episode]:
        return _play(make_policy, group, max(1, workers // parallel), advance, stop)

    with ThreadPoolExecutor(parallel) as executor:
        futures = [executor.submit(play, group) for group in groups]
        try:
            played = [episode for future in futures for episode in future.result()]
        except BaseException:  # Ctrl-C as well: the other threads must not play on to the end
            stop.set()
            executor.shutdown(cancel_futures=True)
            raise
    return sorted(played, key=lambda episode: (episode.task, episode.seed))


def _groups(
    tasks: Sequence[Task], episodes: int | Mapping[str, int], first_seed: int
) -> Iterator[list[tuple[Task, int]]]:
    """(task, seed) of each group of lanes: of one layout, of nearly equal sizes, the longest groups first."""
    layouts: dict[str, list[tuple[Task, int]]] = defaultdict(list)
    for task in tasks:
        count = episodes if isinstance(episodes, int) else episodes[task.name]
        layouts[task.layout] += [(task, first_seed + index) for index in range(count)]
    for lanes in sorted(layouts.values(), key=lambda lanes: -max((task.max_steps for task, _ in lanes), default=0)):
        parts = -(-len(lanes) // MAX_LANES)
        yield from (lanes[part::parts] for part in range(parts))


def _bar(progress: Progress | None, groups: list[list[tuple[Task, int]]]) -> Callable[[int], None]:
    """What counts environment steps; an episode that ends early counts its remaining steps as done."""
    if progress is None:
        return lambda steps: None
    lanes = [task for group in groups for task, _ in group]
    names = sorted({task.suite for task in lanes})
    bar = progress.add_task(f"playing {', '.join(names)}", total=sum(task.max_steps for task in lanes))
    return lambda steps: progress.advance(bar, steps)


class _Stopped(Exception):
    """Another thread failed or the user stopped."""


def _play(
    make_policy: MakePolicy,
    group: list[tuple[Task, int]],
    workers: int,
    advance: Callable[[int], None],
    stop: threading.Event,
) -> list[Episode]:
    """One episode in each lane of a group."""
    lanes = [_Lane(task=task, seed=seed) for task, seed in group]
    with _STARTING:
        started = EnvPool(group, workers)
    with contextlib.closing(started) as pool:
        observations, instructions = pool.reset()
        policy = make_policy(group[0][0].layout, len(group))
        policy.reset(instructions)
        active = np.ones((len(group),), bool)
        while active.any():
            if stop.is_set():
                raise _Stopped
            actions = policy.act(observations, active)
            results = pool.step([action if on else None for action, on in zip(actions, active, strict=True)])
            for index in np.flatnonzero(active):
                result = results[index]
                assert result is not None, "an active lane has a result"
                observations[index], reward, done, info = result
                lanes[index].add(reward, info)
                active[index] = not done
                advance(1 if not done else 1 + lanes[index].left)
    return [lane.episode() for lane in lanes]


@dataclasses.dataclass(kw_only=True)
class _Lane:
    """An episode that is being played."""

    task: Task
    seed: int
    rewards: list[float] = dataclasses.field(default_factory=list)
    infos: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, reward: float, info: Mapping[str, Any]) -> None:
        """Keeps what the score is made from."""
        self.rewards.append(float(reward))
        self.infos.append(info)

    @property
    def left(self) -> int:
        """Steps until the limit."""
        return max(0, self.task.max_steps - len(self.rewards))

    def episode(self) -> Episode:
        """The finished episode."""
        score = self.task.score(self.rewards, self.infos)
        return Episode(
            task=self.task.name,
            seed=self.seed,
            score=float(score),
            steps=len(self.rewards),
            cut_off=self.left == 0,
        )


def summarize(tasks: Sequence[Task], episodes: Sequence[Episode]) -> dict[str, Any]:
    """What the results file says of a suite: percent of the way from random to expert, for each task and together."""
    by_task: dict[str, dict[str, Any]] = {}
    percents = []
    for task in tasks:
        own = [episode for episode in episodes if episode.task == task.name]
        scaled = np.array([percent(episode.score, task.random_score, task.expert_score) for episode in own])
        percents.append(scaled)
        by_task[task.name] = {
            "percent": dataclasses.asdict(bootstrap([scaled])),
            "score": float(np.mean([episode.score for episode in own])),
            "random_score": task.random_score,
            "expert_score": task.expert_score,
            "human_score": task.human_score,
            "max_steps": task.max_steps,
            "cut_off": sum(episode.cut_off for episode in own),
            "episodes": [{"seed": one.seed, "score": one.score, "steps": one.steps} for one in own],
        }
    return {
        "percent": dataclasses.asdict(bootstrap(percents)),
        "interquartile_mean": dataclasses.asdict(bootstrap(percents, interquartile_mean)),
        "tasks": by_task,
        "episodes": len(episodes),
        "cut_off": sum(episode.cut_off for episode in episodes),
        "note": "percent of the way from random (0) to expert (100); the mean over tasks of the mean over episodes; "
        "episodes are cut off after max_steps, in the reference scores as well",
    }


def estimate(summary: Mapping[str, Any], name: str = "percent") -> Estimate:
    """A number of a summary with its interval."""
    return Estimate(**summary[name])
