"""What a layout learns from its recordings, however they are ordered and whatever type they have; what is lost is reported."""

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from generalist.config.presets import debug
from generalist.data.episodes import EpisodeCache, EpisodeReader
from generalist.envs.custom import Demonstration, save_demonstrations
from generalist.experiment.layout_fit import fit_layout, losses, sample, spread
from generalist.tokenizers.continuous import MuLaw, Quantile, Uniform
from generalist.tokenizers.parts import CLIP
from generalist.tokenizers.spaces import TaskLayout


class Still(gym.Env):
    """Nothing happens; what it shows is what its spaces say."""

    def __init__(self, observation: gym.Space, action: gym.Space) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


NUMBER = spaces.Box(-np.inf, np.inf, (1,), np.float32)


def saved(folder: Path, observations: Any, actions: Any, observation: gym.Space = NUMBER,
          action: gym.Space = NUMBER) -> EpisodeReader:  # fmt: skip
    """Recorded episodes."""

    def make() -> gym.Env:
        return Still(observation, action)

    make.__module__ = "__main__"  # no other process is asked whether it knows the id
    gym.register("Still-v0", make, max_episode_steps=100)
    try:
        played = [
            Demonstration(observations=seen, actions=done, rewards=np.ones(len(done)))
            for seen, done in zip(observations, actions, strict=True)
        ]
        task = save_demonstrations("Still-v0", played, folder=folder, instruction="go")
    finally:
        gym.registry.pop("Still-v0")
    return EpisodeReader(task.folder, EpisodeCache(1))


def learnt(tmp_path: Path, observations: list[Any], actions: list[Any], observation: gym.Space = NUMBER,
           action: gym.Space = NUMBER, **tokens: Any) -> tuple[TaskLayout, list[str]]:  # fmt: skip
    """The layout of recorded episodes, and what is reported of it."""
    reader = saved(tmp_path / "still", observations, actions, observation, action)
    config = debug()
    config = dataclasses.replace(config, tokens=dataclasses.replace(config.tokens, **tokens))
    found = sample([reader], observation, action, None)
    layout = fit_layout(config, "own/still", observation, action, 0, None, found)
    return layout, losses(layout, found)


def zeros(count: int) -> list[np.ndarray]:
    return [np.zeros((10, 1)) for _ in range(count)]


def payload(layout: TaskLayout, value: float, dtype: Any = np.float32) -> float:
    return float(layout.observation.encode({"": np.array([[value]], dtype)})[0].payload[0, 0])


def test_sessions_that_differ_are_both_seen(tmp_path: Path):
    rng = np.random.default_rng(0)
    places = [rng.normal(0, 0.01, (10, 1)) for _ in range(8)] + [rng.uniform(1, 2, (10, 1)) for _ in range(32)]
    layout, lost = learnt(tmp_path, places, zeros(40))
    everything = np.concatenate(places)
    assert payload(layout, 1.5) == pytest.approx((1.5 - everything.mean()) / everything.std(), abs=1e-4) and not lost


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.uint8, np.int8])
def test_whole_numbers_are_standardised(tmp_path: Path, dtype: Any):
    most = min(40_000, np.iinfo(dtype).max)
    seen = np.linspace(0, most, 10).astype(dtype)[:, None]
    layout, lost = learnt(tmp_path, [seen], zeros(1), spaces.Box(0, most, (1,), dtype))
    assert (
        payload(layout, most, dtype) - payload(layout, most // 2, dtype) == pytest.approx(1.57, abs=0.05) and not lost
    )


def test_what_is_cut_off_is_reported(tmp_path: Path):
    seen = [np.zeros((10, 1)) for _ in range(99)] + [np.array([[1e6]] + [[0.0]] * 9)]
    seen[3] = seen[3] + np.linspace(-1, 1, 10)[:, None]
    layout, lost = learnt(tmp_path, seen, zeros(100))
    assert payload(layout, 1e6) == CLIP
    assert lost == [
        "own/still, observation part '': 0.10% of its numbers are cut off, 10 standard deviations from their mean"
    ]  # fmt: skip


BIAS = np.random.default_rng(0).normal(size=(40, 10, 1))


@pytest.mark.parametrize(
    ("space", "actions", "codec"),
    [
        (spaces.Box(-1, 1, (1,)), np.tanh(BIAS), Uniform),
        (spaces.Box(-1, 1, (1,)), np.zeros_like(BIAS), Uniform),  # never used, but near enough
        (spaces.Box(-2, 2, (1,)), np.tanh(BIAS), Uniform),
        (spaces.Box(-1, 1, (1,)), 0.5 + 0.001 * np.tanh(BIAS), Quantile),  # a thousandth of its bounds
        (spaces.Box(0, 1e6, (1,)), 565_030 + 5_000 * BIAS, Quantile),
        (spaces.Box(-np.inf, np.inf, (1,)), 1_500 + 15 * BIAS, Quantile),
        (spaces.Box(-np.inf, np.inf, (1,)), 70 + 0.01 * BIAS, Quantile),
        (spaces.Box(-np.inf, np.inf, (1,)), BIAS, MuLaw),
        (spaces.Box(0, 10**6, (1,), np.int64), np.round(565_030 + 5_000 * BIAS).astype(int), Quantile),
    ],
)  # fmt: skip
def test_bins_follow_what_was_done_where_equal_ones_would_lose_it(
    tmp_path: Path, space: gym.Space, actions: np.ndarray, codec: type
):
    layout, lost = learnt(tmp_path, zeros(40), list(actions), action=space)
    (part,) = layout.action.parts
    assert isinstance(part.codec, codec)
    assert bool(lost) == (codec is Quantile) and all("own/still, action part ''" in line for line in lost)
    shown = np.quantile(actions, [0.1, 0.5, 0.9]).astype(space.dtype)[:, None]
    tokens = layout.action.encode({"": shown})[0].tokens
    decoded = np.array([layout.action.decode(tokens[at : at + 1]) for at in range(3)])
    np.testing.assert_allclose(decoded, shown, atol=0.06 * actions.std() + 0.005)


def test_observed_numbers_as_tokens_follow_what_was_seen_too(tmp_path: Path):
    layout, lost = learnt(tmp_path, list(5_000 + BIAS), zeros(40), tensors="tokens")
    assert isinstance(layout.observation.parts[0].codec, Quantile) and "observation part ''" in lost[0]


def test_a_sample_is_spread_over_all(tmp_path: Path):
    assert spread(5, 9).tolist() == [0, 1, 2, 3, 4] and spread(101, 5).tolist() == [0, 25, 50, 75, 100]
    steps = np.arange(4000.0).reshape(40, 100, 1)
    rows = sample([saved(tmp_path / "steps", steps, steps)], NUMBER, NUMBER, None).observations[""]
    assert len(rows) == 4000 and rows.max() == 3999


def test_choices_of_an_integer_action_do_not_merge(tmp_path: Path):
    """Five thrusts of three thousand: equal bins would make one of four of them."""
    shown = np.array([0, 1, 2, 3, 2999])
    layout, lost = learnt(
        tmp_path, zeros(8), [np.tile(shown, 2)[:, None]] * 8, action=spaces.Box(0, 2999, (1,), np.int64)
    )
    tokens = layout.action.encode({"": shown[:, None]})[0].tokens
    assert [int(layout.action.decode(tokens[at : at + 1])[0]) for at in range(5)] == shown.tolist()
    assert len(lost) == 1 and "at most 0" in lost[0]


def test_numbers_of_64_bits_reach_the_model(tmp_path: Path):
    clock = spaces.Box(0, 2**62, (1,), np.int64)
    seen = (1_700_000_000_000_000_000 + 100 * np.arange(10))[:, None]
    layout, lost = learnt(tmp_path, [seen], zeros(1), clock)
    rows = layout.observation.encode({"": seen})[0].payload[:, 0]
    assert not lost and np.ptp(rows) == pytest.approx(3.13, abs=0.01) and (np.diff(rows) > 0.3).all()
    again = type(layout).from_json(layout.to_json())
    np.testing.assert_array_equal(again.observation.encode({"": seen})[0].payload[:, 0], rows)
