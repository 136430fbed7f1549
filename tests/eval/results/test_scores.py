"""Scores against values worked out by hand."""

import numpy as np
import pytest

from generalist.eval.results.scores import (
    bootstrap,
    domain,
    episode_profile,
    interquartile_mean,
    percent,
    proportion,
    ratio,
    share_above,
    task_profile,
)


@pytest.mark.parametrize(
    ("score", "random", "expert", "expected"),
    [
        (20.0, -20.0, 20.0, 100.0),
        (0.0, -20.0, 20.0, 50.0),
        (-24.0, -20.0, 20.0, -10.0),
        (30.0, -20.0, 20.0, 125.0),  # better than the expert
        (-94.0, -500.0, -94.0, 100.0),
    ],
)
def test_percent(score: float, random: float, expert: float, expected: float) -> None:
    assert percent(score, random, expert) == pytest.approx(expected)


@pytest.mark.parametrize(("random", "expert"), [(1.0, 1.0), (float("nan"), 1.0)])
def test_percent_without_references(random: float, expert: float) -> None:
    with pytest.raises(ValueError, match="two different numbers"):
        percent(0.0, random, expert)


def test_interquartile_mean() -> None:
    #                                    cut  cut |    the middle half    | cut  cut
    assert interquartile_mean(np.array([-100, 0.0, 10.0, 20.0, 30.0, 40.0, 90.0, 900])) == 25.0
    assert interquartile_mean(np.array([1.0, 2.0, 3.0])) == 2.0, "a quarter of three is none"
    np.testing.assert_allclose(interquartile_mean(np.array([[0, 1, 3, 9], [5, 5, 5, 5]])), [2.0, 5.0])


def test_bootstrap_stays_within_tasks() -> None:
    certain = [np.full(5, 0.0), np.full(3, 100.0)]
    estimate = bootstrap(certain)
    assert (estimate.value, estimate.low, estimate.high) == (50.0, 50.0, 50.0), "across tasks it would have a width"


def test_bootstrap_interval_of_a_fair_coin() -> None:
    estimate = bootstrap([np.array([0.0, 100.0] * 50)])
    # Normal approximation: 50 ± 1.96 · 50 / √100.
    assert estimate.value == 50.0
    assert estimate.low == pytest.approx(40.2, abs=1.5) and estimate.high == pytest.approx(59.8, abs=1.5)
    assert bootstrap([np.array([0.0, 100.0] * 50)]) == estimate, "the same numbers give the same interval"


def test_bootstrap_of_the_interquartile_mean_of_tasks() -> None:
    tasks = [np.array([value]) for value in (-1000.0, 10.0, 20.0, 1000.0)]
    assert bootstrap(tasks, interquartile_mean).value == 15.0


@pytest.mark.parametrize("tasks", [[], [np.zeros(0)]])
def test_bootstrap_of_nothing(tasks: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one episode"):
        bootstrap(tasks)


def test_wilson() -> None:
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = 0.8, n = 10, z = 1.96
    estimate = proportion(8, 10)
    assert estimate.value == 80.0
    assert estimate.low == pytest.approx(49.02, abs=0.02) and estimate.high == pytest.approx(94.33, abs=0.02)
    assert proportion(0, 10).low == 0.0
    with pytest.raises(ValueError, match="at least one trial"):
        proportion(0, 0)


def test_ratio() -> None:
    estimate = ratio(np.array([2.0, 6.0]), np.array([1.0, 3.0]))
    assert (estimate.value, estimate.low, estimate.high) == (2.0, 2.0, 2.0)
    wide = ratio(np.array([1.0, 9.0] * 20), np.ones(40))
    assert wide.value == 5.0 and 3.0 < wide.low < 4.5 and 5.5 < wide.high < 7.0
    assert str(wide).startswith("5.0 [")


def test_profiles_by_hand() -> None:
    tasks = [np.array([0.0, 100.0]), np.array([40.0, 50.0, 60.0, 90.0])]  # means 50 and 60
    #                                thresholds:  -1     0     50     55     60    100
    episodes = episode_profile(tasks, thresholds=[-1.0, 0.0, 50.0, 55.0, 60.0, 100.0])
    # above:  first task   2/2   1/2    1/2    1/2    1/2     0
    #        second task   4/4   4/4    2/4    2/4    1/4     0
    assert episodes.value == [100.0, 75.0, 50.0, 50.0, 37.5, 0.0], "every task counts the same; at is not above"
    whole = task_profile(tasks, thresholds=[-1.0, 0.0, 50.0, 55.0, 60.0, 100.0])
    assert whole.value == [100.0, 100.0, 50.0, 50.0, 0.0, 0.0]
    for profile in (episodes, whole):
        bands = zip(profile.low, profile.value, profile.high, strict=True)
        assert all(low <= value <= high for low, value, high in bands)
        assert profile.low[0] == profile.high[0] == 100.0 and profile.low[-1] == profile.high[-1] == 0.0


def test_a_profile_band_is_that_of_a_fair_coin() -> None:
    (low,), (high,) = (getattr(episode_profile([np.array([0.0, 100.0] * 50)], [50.0]), end) for end in ("low", "high"))
    assert low == pytest.approx(40.2, abs=1.5) and high == pytest.approx(59.8, abs=1.5)


def test_share_of_tasks_above_half_of_the_expert() -> None:
    tasks = [np.full(4, 51.0), np.full(4, 50.0), np.full(4, 10.0), np.array([0.0, 120.0] * 50)]  # the last: mean 60
    estimate = bootstrap(tasks, share_above)
    assert estimate.value == 50.0
    assert (estimate.low, estimate.high) == (25.0, 50.0), "only the last one's mean can fall to 50 or below"
    assert domain(tasks)["tasks_above_half"]["value"] == 50.0


def test_intervals_do_not_depend_on_the_order_of_tasks() -> None:
    rng = np.random.default_rng(0)
    tasks = [rng.normal(50, 30, size=size) for size in (4, 9, 4, 20)]
    assert domain(tasks) == domain(tasks[::-1])
