"""Scores and their uncertainty: percent of the way from random to expert, means, performance profiles, intervals.

Dimension key: R resamples, T tasks, N episodes of a task (or items of a sum), K thresholds, Q queries, S seeds.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000  # with another seed, the ends of a normal statistic's interval then move by about 1.5% of its width
HALF = 50.0  # percent of the expert: Gato's threshold (Reed et al. 2022, section 4.1)
THRESHOLDS = tuple(float(threshold) for threshold in range(0, 125, 5))  # of stored profiles, in percent

Reduced = Float[np.ndarray, "*R"] | np.floating
"""A statistic of each resample, or a scalar for one set of values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        # `z` writes no minus before a number that rounds to zero.
        return f"{self.value:z.1f} [{self.low:z.0f}, {self.high:z.0f}]"


def percent(score: float, random: float, expert: float) -> float:
    """Percent of the way from random to expert: 0 is random, 100 the expert; unbounded on both sides.

    Raises:
        ValueError: the two references are equal or not finite.
    """
    if not np.isfinite([random, expert]).all() or random == expert:
        raise ValueError(f"reference scores must be two different numbers, got random {random} and expert {expert}")
    return 100.0 * (score - random) / (expert - random)


# These work on the tasks' means (T,) and on all of their resamples (R, T) at once.


def mean(values: Num[np.ndarray, "*R T"]) -> Reduced:
    """Mean over the last axis."""
    return np.mean(values, axis=-1)


def interquartile_mean(values: Num[np.ndarray, "*R T"]) -> Reduced:
    """Mean of the middle half over the last axis: robust like a median, and less noisy (Agarwal et al. 2021, section 4.3).

    As in rliable, a quarter of the values, rounded down, is cut off at either end.
    """
    return stats.trim_mean(values, proportiontocut=0.25, axis=-1)


def bootstrap(
    tasks: Sequence[Float[np.ndarray, "_N"]], statistic: Callable[[np.ndarray], Reduced] = mean, seed: int = 0
) -> Estimate:
    """A statistic of the tasks' mean scores, with a stratified bootstrap interval (Agarwal et al. 2021, section 4.1).

    Episodes are resampled within each task, never across tasks, so that a hard task stays a hard task. The interval says how the
    number would vary with other episodes of the same weights, not with other weights. With one episode per task it has no width,
    which means no certainty: there is nothing to resample. The interval does not depend on the order of the tasks.

    Args:
        tasks: the episodes' scores of each task; their number N may differ.
        statistic: tasks' means (R, T) → (R,), symmetric in the tasks.
        seed: of the resampling.

    Raises:
        ValueError: there is no task, or one without episodes.
    """
    resampled = statistic(np.stack([scores.mean(axis=1) for scores in _resampled(tasks, seed)], axis=1))  # (R,)
    means = np.array([np.mean(scores, dtype=np.float64) for scores in tasks])  # (T,)
    low, high = between(np.asarray(resampled))
    # The statistic of what was played, not the mean of the resamples, which is biased for statistics that are not linear.
    return Estimate(value=float(statistic(means)), low=float(low), high=float(high))


def _resampled(tasks: Sequence[Float[np.ndarray, "_N"]], seed: int) -> Iterator[Float[np.ndarray, "R N"]]:
    """Each task's episodes, drawn again with replacement."""
    if not tasks or not all(len(scores) for scores in tasks):
        raise ValueError("every task needs at least one episode")
    rng = np.random.default_rng(seed)
    # Sorted by their scores: the draws of one generator go from task to task, and must not depend on how tasks are listed.
    for scores in sorted(
        (np.asarray(scores, np.float64) for scores in tasks), key=lambda one: (len(one), one.tolist())
    ):
        yield scores[rng.integers(len(scores), size=(RESAMPLES, len(scores)))]


def between(resampled: Float[np.ndarray, "R *K"]) -> Float[np.ndarray, "2 *K"]:
    """The interval of resampled values: low and high."""
    # The percentile bootstrap: the middle 95% of the resamples.
    return np.percentile(resampled, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)], axis=0)


def share_above(values: Num[np.ndarray, "*R T"], threshold: float = HALF) -> Reduced:
    """Percent of the values along the last axis that are above the threshold (not at it)."""
    return 100.0 * np.mean(values > threshold, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """A performance profile: the percentage (K,) that scores above each threshold, with pointwise 95% bands."""

    thresholds: list[float]
    value: list[float]
    low: list[float]
    high: list[float]


def episode_profile(
    tasks: Sequence[Float[np.ndarray, "_N"]], thresholds: Sequence[float] = THRESHOLDS, seed: int = 0
) -> Profile:
    """The share of episodes above each threshold, every task counting the same: the run-score distribution of Agarwal et al.
    2021, section 4.2, with a stratified bootstrap band.

    Args:
        tasks: percents of each task's episodes.
        thresholds: in percent.
        seed: of the resampling.

    Raises:
        ValueError: there is no task, or one without episodes.
    """
    at = np.asarray(thresholds, np.float64)
    # (R, K) per task; averaged over tasks last, so that a task with many episodes weighs no more.
    resampled = [np.stack([share_above(drawn, one) for one in at], axis=-1) for drawn in _resampled(tasks, seed)]
    value = np.mean([[share_above(np.asarray(scores), one) for one in at] for scores in tasks], axis=0)  # (K,)
    return _profile(at, value, np.mean(resampled, axis=0))


def task_profile(
    tasks: Sequence[Float[np.ndarray, "_N"]], thresholds: Sequence[float] = THRESHOLDS, seed: int = 0
) -> Profile:
    """The share of tasks with a mean above each threshold (the average-score distribution of the same section); Gato's figure 5.

    Arguments and errors as of `episode_profile`.
    """
    at = np.asarray(thresholds, np.float64)
    resampled = np.stack([drawn.mean(axis=1) for drawn in _resampled(tasks, seed)], axis=1)  # (R, T)
    means = np.array([np.mean(scores, dtype=np.float64) for scores in tasks])  # (T,)
    shares = [np.stack([share_above(of, one) for one in at], axis=-1) for of in (means, resampled)]  # (K,), (R, K)
    return _profile(at, *shares)


def _profile(
    thresholds: Float[np.ndarray, "K"], value: Float[np.ndarray, "K"], resampled: Float[np.ndarray, "R K"]
) -> Profile:
    low, high = between(resampled)
    return Profile(thresholds=thresholds.tolist(), value=value.tolist(), low=low.tolist(), high=high.tolist())


def domain(tasks: Sequence[Float[np.ndarray, "_N"]]) -> dict[str, Any]:
    """The numbers of several tasks together in a results file, all from the percents of their episodes.

    Raises:
        ValueError: there is no task, or one without episodes.
    """
    # JSON values, by the keys of the results file: writing and checking a file both call this.
    return {
        "percent": dataclasses.asdict(bootstrap(tasks)),
        "interquartile_mean": dataclasses.asdict(bootstrap(tasks, interquartile_mean)),
        "tasks_above_half": dataclasses.asdict(bootstrap(tasks, share_above)),
        "episode_profile": dataclasses.asdict(episode_profile(tasks)),
        "task_profile": dataclasses.asdict(task_profile(tasks)),
    }


def proportion(successes: int, trials: int) -> Estimate:
    """A share of independent trials, in percent, with Wilson's interval.

    Raises:
        ValueError: there are no trials.
    """
    if trials < 1:
        raise ValueError(f"a share needs at least one trial, got {trials}")
    # Wilson's, since the bootstrap of all successes, or none, would have no width.
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(value=100.0 * successes / trials, low=100.0 * interval.low, high=100.0 * interval.high)


def grouped_proportion(successes: Bool[np.ndarray, "N"], groups: Int[np.ndarray, "N"]) -> Estimate:
    """A share of trials in percent, of which those of one group, such as questions about one image, depend on each other: with a
    bootstrap interval over the groups or, where that has no width, as of all successes, with Wilson's.

    Raises:
        ValueError: there are no trials.
    """
    independent = proportion(int(successes.sum()), len(successes))
    group = np.unique(groups, return_inverse=True)[1]
    found = ratio(100.0 * np.bincount(group, weights=successes), np.bincount(group).astype(np.float64))
    return dataclasses.replace(found, value=independent.value) if found.low < found.high else independent


def ratio(numerators: Float[np.ndarray, "N"], denominators: Float[np.ndarray, "N"], seed: int = 0) -> Estimate:
    """Sum over sum, such as nats per token over N windows of text, with a bootstrap interval over the windows."""
    # Numerator and denominator of a window are drawn together: long windows have both large.
    drawn = np.random.default_rng(seed).integers(len(numerators), size=(RESAMPLES, len(numerators)))
    resampled = numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1)  # (R,)
    low, high = between(resampled)
    return Estimate(value=float(numerators.sum() / denominators.sum()), low=float(low), high=float(high))


def area_under_curve(scores: Float[np.ndarray, "*S Q"], positive: Bool[np.ndarray, "Q"]) -> Reduced:
    """Area under the ROC curve in percent: how likely a positive query scores above a negative one; a tie counts half.

    Args:
        scores: of the queries.
        positive: which queries are positive.

    Raises:
        ValueError: all are positive, or none is.
    """
    # By the rank sum of the positive ones (Mann and Whitney, 1947), in which ranks of ties are averaged.
    count = int(positive.sum())
    if not 0 < count < len(positive):
        raise ValueError(
            f"the area under the curve needs both kinds of queries, got {count} of {len(positive)} positive"
        )
    ranks = stats.rankdata(scores, axis=-1)[..., positive].sum(axis=-1)
    return 100.0 * (ranks - count * (count + 1) / 2) / (count * (len(positive) - count))


def area(scores: Float[np.ndarray, "S Q"], positive: Bool[np.ndarray, "Q"], seed: int = 0) -> Estimate:
    """The mean over seeds of the area under the curve, with a bootstrap interval over the queries of either kind."""
    # Resampled within either kind: a resample without a positive query would have no area.
    rng, kinds = np.random.default_rng(seed), [np.flatnonzero(positive), np.flatnonzero(~positive)]
    order = np.concatenate([np.ones(len(kinds[0]), bool), np.zeros(len(kinds[1]), bool)])
    resampled = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        resampled.append(area_under_curve(scores[:, drawn], order).mean())
    low, high = between(np.array(resampled))
    return Estimate(value=float(area_under_curve(scores, positive).mean()), low=float(low), high=float(high))
