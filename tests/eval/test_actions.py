"""Held-out actions: nats and errors against the last and the mean action, by predictors whose answers are known."""

from typing import Any

import numpy as np
import pytest

from generalist.data.episodes import BrokenEpisode, Episode
from generalist.data.formats.columns import Frames
from generalist.data.formats.faults import BrokenRecord
from generalist.data.recorded import ActionNumbers
from generalist.eval.held_out import actions
from generalist.eval.held_out.actions import evaluate_actions

LENGTHS = (3, 5, 2)


class Reader:
    """Three episodes whose actions count upwards; the last one can't be read."""

    dataset = None

    def __init__(self) -> None:
        self.left_out: list[int] = []

    def __len__(self) -> int:
        return 4

    def parse(self, index: int) -> Episode:
        if index == 3:
            raise BrokenEpisode(3, "broken")
        steps = np.arange(LENGTHS[index], dtype=np.float32)
        acted = np.stack([steps, steps % 2, np.full_like(steps, 7)], axis=1)
        return Episode(
            instruction=f"episode {index}",
            observations={"state": np.stack([np.full_like(steps, index), steps], axis=1)},
            actions={"": acted},
            nbytes=0,
            number=index,
        )

    def leave_out(self, error: BrokenEpisode) -> None:
        self.left_out.append(error.number)


class Predictor:
    """Is off by one in the first number, right in the second; finds every token `nats` nats unlikely."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        self.told: list[str] = []

    def reset(self, lanes: Any, prefixes: Any, seeds: Any) -> None:
        self.told = list(prefixes)

    def predict(self, observations: Any, done: Any) -> tuple[list[Any], np.ndarray]:
        assert len(observations) == len(done) == self.lanes
        for lane, seen in enumerate(observations):
            if seen is not None:
                assert self.told[lane] == f"episode {int(seen['state'][0])}"
        guessed = [np.zeros(3) if one is None else one + np.array([1.0, 0.0, 0.0]) for one in done]
        return guessed, np.tile(np.array([0.5, 0.25, 0.25]), (self.lanes, 1))


NUMBERS = ActionNumbers(
    names=("counting", "parity", "constant"),
    choice=np.array([False, True, False]),
    mean=np.array([2.0, 0.0, 7.0]),
    deviation=np.array([2.0, 1.0, 0.0]),
    executed=np.arange(3),
)


@pytest.mark.parametrize("lanes", [1, 2, 16])
def test_errors_by_hand(monkeypatch: pytest.MonkeyPatch, lanes: int) -> None:
    monkeypatch.setattr(actions, "LANES", lanes)
    reader = Reader()
    found = evaluate_actions(reader, Predictor, NUMBERS, count=10)  # type: ignore[arg-type]
    assert reader.left_out == [3]
    assert (found["episodes"], found["steps"]) == (3, 10)
    assert found["nats_per_action"]["value"] == pytest.approx(1.0)
    counting, parity, constant = found["dimensions"]
    assert counting["model"] == pytest.approx(0.5)  # off by one of a deviation of two
    # Last action: 2 in the first step (the mean), then one too few: (2 + 1 + 1 + 2 + 4·1 + 2 + 1) / 2 / 10.
    assert counting["last_action"] == pytest.approx(0.65)
    assert counting["mean_action"] == pytest.approx(((2 + 1 + 0) + (2 + 1 + 0 + 1 + 2) + (2 + 1)) / 2 / 10)
    assert (parity["model"], parity["mean_action"]) == (0.0, pytest.approx(0.4))
    assert parity["last_action"] == pytest.approx(0.7)  # the first guess of each episode is right
    assert not constant["varies"]
    assert found["error"]["model"]["value"] == pytest.approx(0.25)  # the constant one is left out
    assert found["better_than"]["last_action"]["value"] == pytest.approx((0.65 + 0.7) / 2 - 0.25)


class Camera(Frames):
    """Images that count how many are decoded at once; some can't be read."""

    most = 0

    def __init__(self, steps: range, broken: int | None):
        self.steps, self.broken = steps, broken

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, steps: slice) -> "Camera":
        return Camera(self.steps[steps], self.broken)

    def decode(self) -> np.ndarray:
        Camera.most = max(Camera.most, len(self))
        if self.broken in self.steps:
            raise BrokenRecord(f"frame {self.broken} is broken")
        return np.zeros((len(self), 2, 2, 3), np.uint8)


class Filmed(Reader):
    """Two episodes of 40 steps with a camera; of the second one a late frame is broken."""

    def __len__(self) -> int:
        return 2

    def parse(self, index: int) -> Episode:
        steps = np.arange(40, dtype=np.float32)
        seen = {
            "camera": Camera(range(40), 35 if index else None),
            "state": np.stack([np.full(40, index), steps], axis=1),
        }
        acted = {"": np.stack([steps] * 3, axis=1)}
        return Episode(instruction=f"episode {index}", observations=seen, actions=acted, nbytes=0, number=index)


def test_few_images_are_decoded_at_once_and_a_broken_one_costs_its_episode() -> None:
    reader = Filmed()
    found = evaluate_actions(reader, Predictor, NUMBERS, count=2)  # type: ignore[arg-type]
    assert (found["episodes"], found["steps"], reader.left_out) == (1, 40, [1])
    assert Camera.most == actions.DECODED
