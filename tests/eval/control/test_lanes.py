"""Control: real environments, policies that are easy to foresee."""

import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress
from troubled import Troubled

from generalist.envs.registry import get
from generalist.envs.task import EVALUATION_SEED
from generalist.eval.control.lanes import DIVIDED_FROM, Begun, Episode, evaluate_control, summarize


class Balance:
    """Balances CartPole: pushes to where the pole falls."""

    def __init__(self, layouts: list[str]):
        assert set(layouts) == {"classic/cartpole"}
        self.lanes = len(layouts)
        self.begun: list[Begun] = []

    def start(self, begun: Mapping[int, Begun]) -> None:
        assert all(0 <= lane < self.lanes for lane in begun) and all(one.instruction for one in begun.values())
        self.begun += begun.values()

    def act(self, observations: list[Any]) -> list[Any]:
        assert len(observations) == self.lanes and any(one is not None for one in observations)
        return [None if observation is None else self.push(observation) for observation in observations]

    def push(self, observation: np.ndarray) -> int:
        """Right if the pole falls to the right."""
        return int(3 * observation[2] + observation[3] > 0)

    def close(self) -> None:
        """See `lanes.Policy`; there is nothing to end."""


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


def test_two_groups_of_one_shape_play_the_same_episodes() -> None:
    made: list[int] = []

    def push_left(layouts: list[str]) -> PushLeft:
        made.append(len(layouts))
        return PushLeft(layouts)

    task = get("classic/cartpole")
    played = evaluate_control(push_left, [task], DIVIDED_FROM + 1, workers=2, overlap=True)
    assert sorted(made) == [DIVIDED_FROM // 2, DIVIDED_FROM // 2 + 1]
    assert evaluate_control(push_left, [task], DIVIDED_FROM + 1, workers=2) == played
    assert made[2:] == [DIVIDED_FROM + 1]


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
        def act(self, observations: list[Any]) -> list[Any]:
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
    assert "clipped" not in summary, "nobody measured it"
    clipped = {task.layout: 0.25, "babyai": 0.5}
    assert summarize([task], episodes, clipped)["clipped"] == {task.layout: 0.25}, "of its own layouts"


@pytest.mark.slow
def test_lanes_are_used_again_and_tasks_of_one_shape_share_a_batch() -> None:
    """Six episodes of two tasks in two lanes: what each scores does not depend on where or beside whom it is played."""
    tasks, made = [get("babyai/GoToObj"), get("babyai/GoToRedBall")], []

    class Forward(Balance):
        def __init__(self, layouts: list[str]):
            assert set(layouts) == {"babyai"}
            self.lanes, self.begun = len(layouts), []
            made.append(self)

        def push(self, observation: np.ndarray) -> int:
            return int(observation.sum()) % 3  # turns and steps

    played = evaluate_control(Forward, tasks, 3, workers=1, lanes=2)
    assert len(played) == 6 and len(made) == 1 and made[0].lanes == 2
    assert {(one.task.name, one.seed) for one in made[0].begun} == {(one.task, one.seed) for one in played}
    assert evaluate_control(Forward, tasks, 3, workers=2, lanes=6) == played


def test_a_stop_finishes_what_is_being_played() -> None:
    """All three lanes end their episodes, and none begins another; the rest are not missing by their length."""
    stop = threading.Event()

    class Stopping(PushLeft):
        def act(self, observations: list[Any]) -> list[Any]:
            stop.set()
            return super().act(observations)

    task = get("classic/cartpole")
    played = evaluate_control(Stopping, [task], 9, workers=1, lanes=3, stop=stop)
    assert [episode.seed for episode in played] == [EVALUATION_SEED + index for index in range(3)]
    assert summarize([task, get("classic/pendulum")], played)["tasks"].keys() == {task.name}


class Idle(Balance):
    """Does nothing, in any task; fails in that of Balance."""

    def __init__(self, layouts: list[str]):
        self.lanes, self.begun, self.layouts = len(layouts), [], layouts

    def push(self, observation: np.ndarray) -> int:
        if self.layouts == ["classic/cartpole"]:
            raise FloatingPointError("no finite logits")
        return 0


@pytest.mark.parametrize("error", [FloatingPointError, KeyboardInterrupt])
def test_an_environment_that_hangs_does_not_keep_an_evaluation(tmp_path: Path, error: type[BaseException]) -> None:
    """It ends at once when another group fails or the user interrupts."""
    hanging = Troubled(name="hangs", folder=tmp_path, max_steps=1000)  # the longest group is waited for first

    def interrupt() -> None:
        while not (tmp_path / "hangs began").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    tasks = [hanging] if error is KeyboardInterrupt else [hanging, get("classic/cartpole")]
    started = time.monotonic()
    # As in a command: the processes of pytest-xdist ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if error is KeyboardInterrupt:
            threading.Thread(target=interrupt).start()
        with pytest.raises(error):
            evaluate_control(Idle, tasks, 1, workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 150


def test_a_group_with_more_layouts_than_lanes_is_divided(tmp_path: Path) -> None:
    made: list[list[str]] = []

    def idle(layouts: list[str]) -> Idle:
        made.append(layouts)
        return Idle(layouts)

    tasks = [Troubled(name=f"plain {layout}", layout=layout, folder=tmp_path) for layout in "abc"]
    played = evaluate_control(idle, tasks, 2, workers=1, lanes=2, shape_of=lambda task: "one shape")
    assert made == [["a", "b"], ["c", "c"]] and len(played) == 6
