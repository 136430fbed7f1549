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
DECODED = 16
"""Steps of an episode that are decoded at once."""


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
        scored += _score(reader, episodes, predictor, min(LANES, len(chosen)))
        if progress and bar is not None:
            progress.advance(bar, len(group))
    if not scored:
        raise ValueError(f"no held-out episode of {reader.dataset.path} can be read")
    return _summary(scored, numbers)


def _groups(numbers: Sequence[int]) -> Iterable[Sequence[int]]:
    return (numbers[start : start + LANES] for start in range(0, len(numbers), LANES))


def _readable(reader: RecordedEpisodes, numbers: Iterable[int]) -> Iterable[Episode]:
    """The episodes; those that can't be read are left out and counted."""
    for number in numbers:
        try:
            yield reader.parse(number)
        except BrokenEpisode as error:
            reader.leave_out(error)


class _Steps:
    """The steps of an episode, a few decoded at once: whole episodes of camera images would take gigabytes.

    Args:
        episode: T steps.
    """

    def __init__(self, episode: Episode):
        self.episode = episode
        self._start, self._window = 0, episode.window(0, DECODED)

    def at(self, step: int) -> tuple[Any, Any]:
        """Observation and action of a step, as values of their spaces; (None, None) after the end.

        Raises:
            BrokenEpisode: an image can't be read.
        """
        if step >= len(self.episode):
            return None, None
        if step >= self._start + DECODED:
            self._start, self._window = step, self.episode.window(step, step + DECODED)
        observations, actions = self._window
        row = step - self._start
        seen = {name: column[row] for name, column in observations.items()}
        return seen, actions[""][row] if "" in actions else {name: column[row] for name, column in actions.items()}


class _Lane:
    """What was predicted in an episode so far."""

    def __init__(self, episode: Episode):
        self.steps: _Steps | None = _Steps(episode)
        self.nats: list[np.ndarray] = []
        self.predicted: list[np.ndarray] = []
        self.recorded: list[np.ndarray] = []

    def scored(self) -> Scored:
        """All of it."""
        return Scored(nats=np.stack(self.nats), predicted=np.stack(self.predicted), recorded=np.stack(self.recorded))


def _score(reader: RecordedEpisodes, episodes: Sequence[Episode], predictor: Predictor, count: int) -> list[Scored]:
    """Steps through some episodes side by side; one with an image that can't be read is left out as a whole."""
    lanes = []
    for episode in episodes:
        try:
            lanes.append(_Lane(episode))
        except BrokenEpisode as error:
            reader.leave_out(error)
    if not lanes:
        return []
    told = [lane.steps.episode.instruction for lane in lanes if lane.steps is not None]
    predictor.reset(range(len(lanes)), told, [0] * len(lanes))
    for step in range(max(len(episode) for episode in episodes)):
        now = [_at(reader, lane, step) for lane in lanes] + [(None, None)] * (count - len(lanes))
        actions, nats = predictor.predict([seen for seen, _ in now], [done for _, done in now])
        for number, lane in enumerate(lanes):
            if now[number][1] is not None:
                lane.nats.append(nats[number])
                lane.predicted.append(actions_of(actions[number]))
                lane.recorded.append(actions_of(now[number][1]))
    return [lane.scored() for lane in lanes if lane.steps is not None]


def _at(reader: RecordedEpisodes, lane: _Lane, step: int) -> tuple[Any, Any]:
    """A lane's step; a lane whose episode can't be read any further is given up."""
    if lane.steps is None:
        return None, None
    try:
        return lane.steps.at(step)
    except BrokenEpisode as error:
        reader.leave_out(error)
        lane.steps = None
        return None, None


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
