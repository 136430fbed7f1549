"""Control: real environments, policies that are easy to foresee."""

import math
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from generalist.envs.task import EVALUATION_SEED, get
from generalist.eval.control import Episode, evaluate_control, summarize


class Balance:
    """Balances CartPole: pushes to where the pole falls."""

    def __init__(self, layout: str, lanes: int):
        assert layout == "classic/cartpole"
        self.lanes = lanes
        self.seen_active: list[np.ndarray] = []

    def reset(self, instructions: list[str]) -> None:
        assert len(instructions) == self.lanes and all(instructions)

    def act(self, observations: list[Any], active: np.ndarray) -> list[Any]:
        assert len(observations) == self.lanes and active.any()
        return [self.push(observation) for observation in observations]

    def push(self, observation: np.ndarray) -> int:
        """Right if the pole falls to the right."""
        return int(3 * observation[2] + observation[3] > 0)


class PushLeft(Balance):
    """Falls over at once."""

    def push(self, observation: np.ndarray) -> int:
        return 0


def test_episodes_on_unseen_seeds_are_the_same_again() -> None:
    task = get("classic/cartpole")
    played = evaluate_control(PushLeft, [task], 3, workers=2)
    assert [episode.seed for episode in played] == [EVALUATION_SEED + index for index in range(3)]
    assert all(8 <= episode.steps <= 11 and not episode.cut_off for episode in played)
    assert [episode.score for episode in played] == [episode.steps for episode in played]
    assert evaluate_control(PushLeft, [task], 3, workers=1) == played


def test_a_policy_that_balances_is_cut_off_and_the_bar_is_full() -> None:
    task = get("classic/cartpole")
    progress = Progress(disable=True)
    played = evaluate_control(Balance, [task], {task.name: 2}, workers=1, progress=progress)
    summary = summarize([task], played)
    assert summary["cut_off"] == 2 and summary["episodes"] == 2
    assert summary["percent"]["value"] == pytest.approx(100, abs=5)
    (bar,) = progress.tasks
    assert bar.completed == bar.total == 2 * task.max_steps


def test_an_error_of_the_policy_ends_the_evaluation() -> None:
    class Broken(Balance):
        def act(self, observations: list[Any], active: np.ndarray) -> list[Any]:
            raise FloatingPointError("no finite logits")

    with pytest.raises(FloatingPointError, match="no finite logits"):
        evaluate_control(Broken, [get("classic/cartpole")], 2, workers=1)


def test_summary_by_hand() -> None:
    task = get("classic/cartpole")
    scores = [task.random_score, task.expert_score, task.expert_score, task.expert_score]
    episodes = [
        Episode(task=task.name, seed=seed, score=score, steps=10, cut_off=seed == 0)
        for seed, score in enumerate(scores)
    ]
    summary = summarize([task], episodes)
    assert summary["percent"]["value"] == pytest.approx(75.0)
    own = summary["tasks"][task.name]
    assert own["score"] == pytest.approx(np.mean(scores)) and own["cut_off"] == 1
    assert own["percent"]["low"] < 75.0 < own["percent"]["high"]
    assert [row["score"] for row in own["episodes"]] == scores
    assert math.isclose(own["random_score"], task.random_score)
