"""Control: the policy acts in environments on seeds that no recording used, many environments at once.

Episodes are played in *lanes*, one environment each. The lanes of a group have steps of one shape, so that the policy acts in all
of them with one call, whatever their tasks; a lane whose episode ends begins the next one of its layout immediately. Groups run
in parallel threads: while one waits for its environments, another one computes. A single group can be divided for that.
"""

import contextlib
import dataclasses
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

import numpy as np
from rich.progress import Progress

from generalist.envs.pool import Act, Acted, EnvPool, Start, Started
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.eval.results.scores import bootstrap, domain, percent

DIVIDED_FROM = 16  # episodes of a single group; fewer act faster in one batch
MAX_LANES = 64  # environments alive at once per group: one of Meta-World takes 35 MB

# Starting a process changes `__main__` for a moment (`processes._without_main`), which two threads must not do at once.
_STARTING = threading.Lock()


class Policy(Protocol):
    """An agent in a fixed number of lanes."""

    def start(self, begun: Mapping[int, "Begun"]) -> None:
        """Episodes begin in these lanes."""

    def act(self, observations: list[Any]) -> list[Any]:
        """One action per lane. The observation of an idle lane is None, and its action is ignored."""

    def close(self) -> None:
        """Its lanes are needed no more."""


@dataclasses.dataclass(frozen=True)
class Begun:
    """An episode that has just begun."""

    task: Task
    seed: int
    instruction: str


Word = Callable[[Begun, Any], str]
"""An episode that begins and its first observation → the instruction that the agent is given."""


def as_given(begun: Begun, observation: Any) -> str:
    """The task's own instruction."""
    return begun.instruction


MakePolicy = Callable[[list[str]], Policy]
"""The name of each lane's layout → policy. Lanes of one layout are adjacent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One played episode."""

    task: str
    seed: int
    score: float
    """In the task's own units: its return, or success as 0 or 1."""
    steps: int
    cut_off: bool
    """Whether it lasted until the task's limit of steps."""


def evaluate_control(
    make_policy: MakePolicy,
    tasks: Sequence[Task],
    episodes: int | Mapping[str, int],
    *,
    workers: int,
    parallel: int | None = None,
    shape_of: Callable[[Task], Hashable] = lambda task: task.layout,
    lanes: int = MAX_LANES,
    overlap: bool = False,
    first_seed: int = EVALUATION_SEED,
    word: Word = as_given,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> list[Episode]:
    """Plays every task's episodes, with the seeds `first_seed`, `first_seed + 1`, ...; sorted by task and seed.

    Args:
        make_policy: makes a policy for each group of lanes.
        tasks: of any layouts.
        episodes: per task, or by the task's name.
        workers: processes that step environments.
        parallel: maximum number of groups that run in parallel; None: as many as `workers`.
        shape_of: tasks of one shape may share a group.
        lanes: maximum number of environments per group.
        overlap: make two groups where all tasks have one shape.
        first_seed: recordings use seeds from 0 upwards, so it must be far above.
        word: words the instructions.
        progress: gets one bar with the time left and the percent so far.
        stop: once it is set, running episodes are finished and no further ones are begun.

    Raises:
        RuntimeError: an environment's process died; the message names the task.
    """
    groups = _groups(tasks, episodes, first_seed, shape_of, lanes)
    if overlap and len(groups) == 1 and len(groups[0]) >= DIVIDED_FROM:
        groups = [groups[0][::2], groups[0][1::2]]
    parallel = max(1, min(parallel or workers, len(groups)))
    # `stop` ends an evaluation with results, so its episodes are finished: the quick ones, often the successes, must not stand
    # for all. What kills the pools throws them away.
    stop, pools = stop or threading.Event(), _Pools()
    bar = _Bar(progress, [one for group in groups for one in group])

    def play(group: list[Start]) -> list[Episode]:
        return _Group(make_policy, group, lanes, max(1, workers // parallel), word, bar, stop, pools).play()

    with ThreadPoolExecutor(parallel) as executor:
        futures = [executor.submit(play, group) for group in groups]
        try:
            played = [episode for future in as_completed(futures) for episode in future.result()]
        except BaseException:
            # Also Ctrl-C: leaving the executor would wait until the other threads have played to the end, which an environment
            # that hangs never lets them.
            pools.kill()
            executor.shutdown(cancel_futures=True)
            raise
    # In an order that does not depend on which episode ended first.
    return sorted(played, key=lambda episode: (episode.task, episode.seed))


def _groups(
    tasks: Sequence[Task],
    episodes: int | Mapping[str, int],
    first_seed: int,
    shape_of: Callable[[Task], Hashable],
    lanes: int,
) -> list[list[Start]]:
    """The episodes of each shape, the longest groups first; within a group, one seed of every task before the next seed. Tasks of
    one shape are divided where they have more layouts than there are lanes, of which each layout needs one."""
    shapes: dict[Hashable, dict[str, list[Task]]] = defaultdict(lambda: defaultdict(list))
    for task in tasks:
        shapes[shape_of(task)][task.layout].append(task)
    divided = [
        list(itertools.chain(*list(by_layout.values())[at : at + lanes]))
        for by_layout in shapes.values()
        for at in range(0, len(by_layout), lanes)
    ]
    groups = []
    for several in divided:
        counts = {task: episodes if isinstance(episodes, int) else episodes[task.name] for task in several}
        rounds = range(max(counts.values(), default=0))
        # Seed by seed, so that an evaluation that is stopped has about as many episodes of each task.
        groups.append([Start(task, first_seed + index) for index in rounds for task in several if index < counts[task]])
    # The longest first, so that no long group is left for the end, when nothing runs beside it.
    return sorted((group for group in groups if group), key=lambda group: -sum(one.task.max_steps for one in group))


class _Bar:
    """Counts environment steps; an episode that ends early counts its remaining steps as done. Shows the percent so far."""

    def __init__(self, progress: Progress | None, episodes: list[Start]):
        self._progress, self._total = progress, len(episodes)
        self._percents: dict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()  # groups in several threads report to one bar
        if progress is not None:
            suites = ", ".join(sorted({one.task.suite for one in episodes}))
            self._text = f"playing {suites}"
            self._bar = progress.add_task(self._text, total=sum(one.task.max_steps for one in episodes))

    def advance(self, steps: int) -> None:
        if self._progress is not None:
            self._progress.advance(self._bar, steps)

    def finished(self, task: Task, score: float) -> None:
        with self._lock:
            self._percents[task.name].append(percent(score, task.random_score, task.expert_score))
            done = sum(map(len, self._percents.values()))
            if self._progress is not None and (done % 10 == 0 or done == self._total):
                # Every task counts the same, as in the results: tasks with short episodes are ahead.
                sofar = np.mean([np.mean(own) for own in self._percents.values()])
                self._progress.update(
                    self._bar, description=f"{self._text}: {done}/{self._total} episodes, {sofar:z.1f}%"
                )


class _Aborted(Exception):
    """Another thread failed, or the user interrupted."""


class _Pools:
    """The environments of all groups."""

    def __init__(self) -> None:
        self._open: list[EnvPool] = []
        self.killed = False

    @contextlib.contextmanager
    def opened(self, lanes: int, workers: int) -> Iterator[EnvPool]:
        """Those of a group."""
        with _STARTING:
            if self.killed:
                raise _Aborted
            pool = EnvPool(lanes, workers)
            self._open.append(pool)
        # Closed on errors as well: no environment's process outlives the evaluation.
        with contextlib.closing(pool):
            yield pool

    def kill(self) -> None:
        """Ends them at once, also one that hangs; their groups then fail."""
        with _STARTING:
            self.killed = True
            for pool in self._open:
                pool.kill()


class _Group:
    """The lanes of one group; arguments as of `evaluate_control`."""

    def __init__(
        self,
        make_policy: MakePolicy,
        episodes: list[Start],
        lanes: int,
        workers: int,
        word: Word,
        bar: _Bar,
        stop: threading.Event,
        pools: _Pools,
    ):
        self._make_policy, self._workers, self._bar, self._stop, self._pools = make_policy, workers, bar, stop, pools
        self._word = word
        # By layout: a lane keeps its layout, since its policy encodes and decodes by it.
        self._waiting: dict[str, list[Start]] = defaultdict(list)
        for episode in episodes:
            self._waiting[episode.task.layout].append(episode)
        self._layouts = list(_shared(self._waiting, min(lanes, len(episodes))))
        self._lanes: list[_Lane | None] = [None] * len(self._layouts)
        self._before: list[Task | None] = [None] * len(self._layouts)  # the task whose environment each lane holds
        self._played: list[Episode] = []

    def play(self) -> list[Episode]:
        """Plays every waiting episode, unless a stop is requested."""
        opened = self._pools.opened(len(self._layouts), self._workers)
        # The policy as well: a server's lanes are for the next group then.
        with opened as pool, contextlib.closing(self._make_policy(self._layouts)) as policy:
            # Lanes play on independently: one that begins an episode acts in the same call as one in the middle of its own.
            observations = self._begin(pool, policy, [None] * len(self._layouts))
            while any(lane is not None for lane in self._lanes):
                if self._pools.killed:
                    raise _Aborted
                actions = policy.act(observations)
                acted = pool.run({at: Act(actions[at]) for at, lane in enumerate(self._lanes) if lane is not None})
                for at, result in acted.items():
                    observations[at] = self._took(at, result)
                observations = self._begin(pool, policy, observations)
        return self._played

    def _begin(self, pool: EnvPool, policy: Policy, observations: list[Any]) -> list[Any]:
        """Gives every idle lane an episode of its layout, preferably of the task whose environment it holds."""
        starts = {}
        for at, lane in enumerate(self._lanes):
            waiting = self._waiting[self._layouts[at]]
            if lane is None and waiting and not self._stop.is_set():
                # Making another task's environment would cost up to a second.
                own = (index for index, one in enumerate(waiting) if one.task == self._before[at])
                starts[at] = waiting.pop(next(own, 0))
                self._before[at] = starts[at].task
        if not starts:
            return observations
        begun = {}
        for at, started in pool.run(starts).items():
            assert isinstance(started, Started)
            observations[at], start = started.observation, starts[at]
            self._lanes[at] = _Lane(task=start.task, seed=start.seed)
            one = Begun(start.task, start.seed, started.instruction)
            begun[at] = dataclasses.replace(one, instruction=self._word(one, started.observation))
        policy.start(begun)
        return observations

    def _took(self, at: int, result: Started | Acted) -> Any:
        """Records an action's result. Returns the lane's next observation, None if its episode is over."""
        lane = self._lanes[at]
        assert lane is not None and isinstance(result, Acted), "a lane that plays has a result"
        lane.add(result.reward, result.info)
        self._bar.advance(1 if not result.done else 1 + lane.left)
        if not result.done:
            return result.observation
        episode = lane.episode()
        self._played.append(episode)
        self._bar.finished(lane.task, episode.score)
        self._lanes[at] = None
        return None


def _shared(waiting: Mapping[str, Sequence[Start]], lanes: int) -> Iterator[str]:
    """The layout of each lane. Layouts get lanes in proportion to their waiting steps: at least one, at most one per episode."""
    steps = {layout: sum(one.task.max_steps for one in several) for layout, several in waiting.items()}
    shares = dict.fromkeys(waiting, 1)
    # Each further lane goes where a lane would have most to do: the group is done when its slowest layout is.
    while sum(shares.values()) < lanes:
        open_ = [layout for layout in waiting if shares[layout] < len(waiting[layout])]
        if not open_:
            break
        shares[max(open_, key=lambda layout: steps[layout] / shares[layout])] += 1
    # Lanes of one layout are adjacent, which policies rely on to encode them together.
    for layout, share in shares.items():
        yield from [layout] * share


@dataclasses.dataclass(kw_only=True)
class _Lane:
    """A running episode."""

    task: Task
    seed: int
    rewards: list[float] = dataclasses.field(default_factory=list)
    infos: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, reward: float, info: Mapping[str, Any]) -> None:
        """Keeps what the score is computed from."""
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


def summarize(
    tasks: Sequence[Task], episodes: Sequence[Episode], clipped: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """A suite's section of the results file: percent of the way from random to expert, per task and together. Tasks without an
    episode (in an evaluation that was stopped) are left out.

    Args:
        tasks: those of the suite.
        episodes: their episodes.
        clipped: share of the observed numbers beyond their range by layout, also of other suites; None if it was not measured.
    """
    by_task: dict[str, dict[str, Any]] = {}
    percents = []
    layouts = {task.layout for task in tasks}
    for task in tasks:
        own = [episode for episode in episodes if episode.task == task.name]
        if not own:
            continue
        scaled = np.array([percent(episode.score, task.random_score, task.expert_score) for episode in own])  # (N,)
        percents.append(scaled)
        by_task[task.name] = {
            "percent": dataclasses.asdict(bootstrap([scaled])),
            "score": float(np.mean([episode.score for episode in own])),
            # The references of today, with which the file can be checked and compared whatever later versions measure.
            "random_score": task.random_score,
            "expert_score": task.expert_score,
            "human_score": task.human_score,
            "max_steps": task.max_steps,
            "cut_off": sum(episode.cut_off for episode in own),
            "episodes": [{"seed": one.seed, "score": one.score, "steps": one.steps} for one in own],
        }
    return {
        **domain(percents),
        "tasks": by_task,
        "episodes": len(episodes),
        "cut_off": sum(episode.cut_off for episode in episodes),
        **({} if clipped is None else {"clipped": {name: clipped[name] for name in clipped if name in layouts}}),
        "note": "percent of the way from random (0) to expert (100); the mean over tasks of the mean over episodes; "
        "episodes are cut off after max_steps, in the reference scores as well",
    }
