"""Recorded actions of held-out episodes: how likely the model finds them, and how far from them what it would do is, against
doing the last action again and always doing the mean one. No environment is needed.

Dimension key: N episodes, T steps of one, A tokens of an action, D its numbers, L lanes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from rich.progress import Progress

from generalist.data.episodes import BrokenEpisode, Episode
from generalist.data.recorded import ActionNumbers, RecordedEpisodes, actions_of
from generalist.eval.results.scores import ratio

LANES = 16


class Predictor(Protocol):
    """What is scored: `ControlPolicy` or the like."""

    def reset(self, lanes: Sequence[int], prefixes: Sequence[str], seeds: Sequence[int]) -> None: ...

    def predict(
        self, observations: Sequence[Any], actions: Sequence[Any]
    ) -> tuple[list[Any], Float[np.ndarray, "B A"]]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """An episode's steps."""

    nats: Float[np.ndarray, "T A"]
    """Negative log-likelihood of each token of the recorded action."""
    predicted: Float[np.ndarray, "T D"]
    recorded: Float[np.ndarray, "T D"]


def evaluate_actions(
    reader: RecordedEpisodes,
    open_predictor: Callable[[int], Predictor],
    numbers: ActionNumbers,
    *,
    count: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Nats and errors over held-out episodes, with intervals over episodes.

    The error of a number is how far the prediction is off, in deviations of that number over the data set; of a choice it is
    whether another one is taken. Numbers that never change are left out of the means.

    Args:
        reader: the held-out episodes.
        open_predictor: opens a predictor of so many lanes.
        numbers: of an action, over the data set.
        count: episodes at most.
        progress: gets one bar.

    Raises:
        ValueError: no held-out episode can be read.
    """
    chosen = list(range(min(count, len(reader))))
    bar = progress.add_task("scoring held-out episodes", total=len(chosen)) if progress else None
    scored: list[Scored] = []
    predictor = open_predictor(min(LANES, len(chosen)))
    for group in _groups(chosen):
        episodes = [*_readable(reader, group)]
        scored += _score(episodes, predictor, min(LANES, len(chosen)))
        if progress and bar is not None:
            progress.advance(bar, len(group))
    if not scored:
        raise ValueError(f"no held-out episode of {reader.dataset.path} can be read")
    return _summary(scored, numbers)


def _groups(numbers: Sequence[int]) -> Iterable[Sequence[int]]:
    return (numbers[start : start + LANES] for start in range(0, len(numbers), LANES))


def _readable(reader: RecordedEpisodes, numbers: Iterable[int]) -> Iterable[tuple[Episode, Any, Any]]:
    """The episodes with their observations and actions; those that can't be read are left out and counted."""
    for number in numbers:
        try:
            episode = reader.parse(number)
            yield episode, *episode.window(0, len(episode))
        except BrokenEpisode as error:
            reader.leave_out(error)


def _score(episodes: Sequence[tuple[Episode, Any, Any]], predictor: Predictor, lanes: int) -> list[Scored]:
    """Steps through some episodes side by side."""
    if not episodes:
        return []
    used = range(len(episodes))
    predictor.reset(used, [episode.instruction for episode, _, _ in episodes], [0] * len(episodes))
    nats: list[list[np.ndarray]] = [[] for _ in episodes]
    predicted: list[list[np.ndarray]] = [[] for _ in episodes]
    recorded: list[list[np.ndarray]] = [[] for _ in episodes]
    for step in range(max(len(episode) for episode, _, _ in episodes)):
        now = [_step(one, step) if step < len(one[0]) else (None, None) for one in episodes]
        now += [(None, None)] * (lanes - len(now))
        actions, found = predictor.predict([seen for seen, _ in now], [done for _, done in now])
        for lane in used:
            if now[lane][1] is not None:
                nats[lane].append(found[lane])
                predicted[lane].append(actions_of(actions[lane]))
                recorded[lane].append(actions_of(now[lane][1]))
    return [
        Scored(nats=np.stack(nats[lane]), predicted=np.stack(predicted[lane]), recorded=np.stack(recorded[lane]))
        for lane in used
    ]


def _step(one: tuple[Episode, Any, Any], step: int) -> tuple[Any, Any]:
    """Observation and action of a step, as values of their spaces."""
    _, observations, actions = one
    seen = {name: column[step] for name, column in observations.items()}
    return seen, actions[""][step] if "" in actions else {name: column[step] for name, column in actions.items()}


def _summary(scored: Sequence[Scored], numbers: ActionNumbers) -> dict[str, Any]:
    counts = np.array([len(one.recorded) for one in scored], np.float64)
    varies = numbers.deviation > 0
    scale = np.where(varies, numbers.deviation, 1.0)
    off: dict[str, list[np.ndarray]] = {"model": [], "last_action": [], "mean_action": []}  # (D,) sums of each episode
    for one in scored:
        mean = numbers.mean[None]
        last = np.concatenate([mean, one.recorded[:-1, numbers.executed]])  # there is none before the first
        for name, guess in (("model", one.predicted), ("last_action", last), ("mean_action", mean)):
            error = np.where(numbers.choice, guess != one.recorded, np.abs(guess - one.recorded) / scale)
            off[name].append(error.sum(axis=0))
    errors = {name: np.stack(several) for name, several in off.items()}  # (N, D)
    of_episodes = {
        name: several[:, varies].mean(axis=1) if varies.any() else np.zeros(len(scored))
        for name, several in errors.items()
    }
    better = {name: of_episodes[name] - of_episodes["model"] for name in ("last_action", "mean_action")}
    return {
        "episodes": len(scored),
        "steps": int(counts.sum()),
        "nats_per_action": _ratio(np.array([one.nats.sum() for one in scored]), counts),
        "error": {name: _ratio(several, counts) for name, several in of_episodes.items()},
        "better_than": {name: _ratio(several, counts) for name, several in better.items()},
        "nats": np.concatenate([one.nats for one in scored]).mean(axis=0).tolist(),
        "dimensions": [
            {
                "name": name,
                "varies": bool(varies[index]),
                "choice": bool(numbers.choice[index]),
                "deviation": float(numbers.deviation[index]),
                **{which: float(several[:, index].sum() / counts.sum()) for which, several in errors.items()},
            }
            for index, name in enumerate(numbers.names)
        ],
    }


def _ratio(sums: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    return dataclasses.asdict(ratio(sums, counts))
