"""Lanes that act apart: each does what it does alone, whatever the others do meanwhile."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from generalist.inference.policy import ControlPolicy

LAYOUT = "classic/test"


def episode(seed: int, steps: int) -> list[np.ndarray]:
    return [one.astype(np.float32) for one in np.random.default_rng(seed).normal(size=(steps, 3))]


@pytest.mark.slow
def test_lanes_that_act_apart_act_as_if_they_were_together(make_model: Callable[..., Any]) -> None:
    model = make_model()
    steps = model.layouts[LAYOUT].acting.steps + 5  # the windows slide
    episodes = [episode(seed, steps) for seed in range(3)]
    alone = ControlPolicy(model, [LAYOUT] * 3)
    alone.reset(range(3), ["push", "lift the blue block", ""], [0, 1, 2])
    expected = [list(one) for one in zip(*(alone.act(list(seen)) for seen in zip(*episodes, strict=True)), strict=True)]

    apart = ControlPolicy(model, [LAYOUT] * 3, apart=True, prefix=32)
    apart.assign(1, LAYOUT)
    # The first lane begins an episode that is dropped, and the others begin later.
    apart.reset([0], ["another"], [9])
    for seen in episode(9, 3):
        apart.act([seen, None, None])
    apart.reset([0, 2], ["push", ""], [0, 2])
    given, taken = [0, 0, 0], [[], [], []]
    rng = np.random.default_rng(0)
    while min(given) < steps:
        if given[0] == 4 and not given[1]:
            apart.reset([1], ["lift the blue block"], [1])
        ready = [given[lane] < steps and (lane != 1 or given[0] > 4) and rng.random() < 0.6 for lane in range(3)]
        if not any(ready):
            continue
        actions = apart.act([episodes[lane][given[lane]] if ready[lane] else None for lane in range(3)])
        for lane in np.flatnonzero(ready):
            taken[lane].append(actions[lane])
            given[lane] += 1
    assert taken == expected
    assert len({tuple(one) for one in taken}) > 1, "the lanes act differently, or the test shows nothing"


def test_a_lane_predicts_with_both_an_observation_and_an_action(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, seen = ControlPolicy(make_model(), [LAYOUT] * 2, apart=True), episode(0, 1)[0]
    policy._begun = {0, 1}
    with pytest.raises(ValueError, match="lane 1 has an action but no observation"):
        policy.predict([seen, None], [0, 0])
    with pytest.raises(ValueError, match="lane 0 has an observation but no action"):
        policy.predict([seen, seen], [None, 0])
    acted: list[Any] = []

    def decode(step: Any, fed: np.ndarray, acting: np.ndarray | None = None) -> np.ndarray:
        acted.append(acting)
        policy.logits = jnp.zeros((2, 1, policy.generalist.vocabulary.size))
        return fed

    monkeypatch.setattr(policy, "_decode", decode)
    policy.predict([seen, None], [0, None])
    assert acted[0].tolist() == [True, False], "the other lane stands still"


def test_seeds_may_be_small_numbers_of_numpy(make_model: Callable[..., Any]) -> None:
    policy = ControlPolicy(make_model(), [LAYOUT])
    for seed in (np.uint8(7), np.int16(-1), 2**40 + 7):
        policy._window._fill = lambda rows, prefixes: None  # nothing is computed
        policy.reset([0], [""], [seed])
        assert policy._window._seed[0] == int(seed) % 2**32
