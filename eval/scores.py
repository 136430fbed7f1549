"""Scores and how sure they are: percent of the way from random to expert, means, interquartile means, intervals.

Dimension key: R resamples, T tasks, N episodes of a task.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.0f}, {self.high:.0f}]"


def percent(score: float, random: float, expert: float) -> float:
    """Percent of the way from random to expert: 0 is random, 100 the expert; unbounded on both sides.

    Raises:
        ValueError: the two references are equal or not numbers.
    """
    if not np.isfinite([random, expert]).all() or random == expert:
        raise ValueError(f"reference scores must be two different numbers, got random {random} and expert {expert}")
    return 100.0 * (score - random) / (expert - random)


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return np.mean(values, axis=-1)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half over the last axis: robust like a median, and less noisy (Agarwal et al. 2021, section 4.3).

    As in rliable, a quarter of the values, rounded down, is cut off at either end.
    """
    return stats.trim_mean(values, proportiontocut=0.25, axis=-1)


def bootstrap(
    tasks: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray] = mean,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A statistic of the tasks' mean scores, with a stratified bootstrap interval (Agarwal et al. 2021, section 4.1).

    Episodes are resampled within each task, never across tasks, so a hard task stays a hard task; the interval says how
    the number would move with other episodes of the same weights, not with other weights. With one episode a task it has
    no width: that is no certainty, but nothing to resample.

    Args:
        tasks: the episodes' scores of each task, (N,) each; N may differ.
        statistic: tasks' means (R, T) → (R,).
        resamples: R.

    Raises:
        ValueError: there is no task, or one without episodes.
    """
    if not tasks or not all(len(scores) for scores in tasks):
        raise ValueError("every task needs at least one episode")
    rng = np.random.default_rng(seed)
    columns = []
    for scores in tasks:
        drawn = rng.integers(len(scores), size=(resamples, len(scores)))
        columns.append(np.asarray(scores, np.float64)[drawn].mean(axis=1))
    resampled = statistic(np.stack(columns, axis=1))
    means = np.array([np.mean(scores, dtype=np.float64) for scores in tasks])
    low, high = np.percentile(resampled, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Estimate(value=float(statistic(means)), low=float(low), high=float(high))


def proportion(successes: int, trials: int) -> Estimate:
    """A share of independent trials, in percent, with Wilson's interval.

    Raises:
        ValueError: there are no trials.
    """
    if trials < 1:
        raise ValueError(f"a share needs at least one trial, got {trials}")
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(value=100.0 * successes / trials, low=100.0 * interval.low, high=100.0 * interval.high)


def ratio(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> Estimate:
    """Sum over sum, such as nats a token over text windows (N,) (N,), with a bootstrap interval over the windows."""
    drawn = np.random.default_rng(seed).integers(len(numerators), size=(RESAMPLES, len(numerators)))
    resampled = numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1)
    low, high = np.percentile(resampled, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Estimate(value=float(numerators.sum() / denominators.sum()), low=float(low), high=float(high))
