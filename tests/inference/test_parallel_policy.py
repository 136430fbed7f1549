"""Acting with parallel actions: what is decoded from the cache is what a whole pass over the same steps gives."""

import dataclasses
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from flax import nnx

from generalist.config.presets import debug
from generalist.data.batch import Batch
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy, shape_of
from generalist.inference.rows import stack_rows
from generalist.inference.score import log_likelihood
from generalist.model.transformer import create
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.sequence import Sequence
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer

LAYOUT, WIDE = "classic/test", "classic/wide"
OBSERVATION = gym.spaces.Dict(
    {"camera": gym.spaces.Box(0, 255, (84, 84, 3), np.uint8), "state": gym.spaces.Box(-np.inf, np.inf, (3,))}
)
ACTION = gym.spaces.Dict({"move": gym.spaces.Box(-1, 1, (2,)), "grip": gym.spaces.Discrete(3)})
WINDOW = 4


def make_generalist(hidden: bool, temperature: float = 0.0) -> Generalist:
    """Random weights for a layout of two positions per step and three dimensions of actions, and for one of four dimensions."""
    base = debug()
    config = dataclasses.replace(base, tokens=dataclasses.replace(base.tokens, actions="parallel"))
    text = TextTokenizer.train(["push the red block to the left", "lift the blue block"] * 20, 512)
    settings = {"vocabulary": config.tokens.vocabulary(), "text": text}
    acting = Acting(steps=WINDOW, hide_actions=hidden, parallel=True, temperature=temperature)
    seen = SpaceTokenizer.from_space(OBSERVATION, tensors="projected", images="frame", **settings)
    layouts = {
        name: TaskLayout(name, seen, SpaceTokenizer.from_space(action, **settings), acting)
        for name, action in ((LAYOUT, ACTION), (WIDE, gym.spaces.MultiDiscrete([5] * 4)))
    }
    tokenizers = Tokenizers(config=config, text=text, layouts=layouts, projection_width=3)
    assert tokenizers.model_spec().action_dimensions == 4
    graph, params = nnx.split(create(tokenizers.model_spec(), 1), nnx.Param)
    # Larger than at initialisation, so that the choices depend on what was seen.
    return Generalist(tokenizers, graph, jax.tree.map(lambda leaf: leaf * 2.0, nnx.to_pure_dict(params)), 0)


def observe(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "camera": rng.integers(0, 256, (84, 84, 3)).astype(np.uint8),
        "state": rng.normal(size=3).astype(np.float32),
    }


def prefix(generalist: Generalist, rng: np.random.Generator) -> Sequence:
    """An instruction and a demonstration, whose actions are shown."""
    layout = generalist.layouts[LAYOUT]
    seen = layout.observation.stack([observe(rng) for _ in range(2)])
    acted = layout.action.stack([ACTION.sample() for _ in range(2)])
    return generalist.assembler.prefix(layout, "push the red block", [(seen, acted)])


def whole_logits(generalist: Generalist, begun: Sequence, steps: list, actions: list) -> np.ndarray:
    """Logits (A, V) of the last step's action, from the whole sequence at once: as training has it."""
    layout, assembler = generalist.layouts[LAYOUT], generalist.assembler
    hidden = layout.acting.hide_actions
    parts = [begun]
    for index, observation in enumerate(steps):
        parts.append(assembler.step(layout, layout.observation.stack([observation]), hide_actions=hidden))
        if not hidden and index < len(steps) - 1:
            parts.append(assembler.action(layout, actions[index]))
    sequence = assembler.concatenate(parts)
    batch = generalist.on_device(stack_rows([sequence], len(sequence), pad=generalist.vocabulary.pad))

    @jax.jit
    def run(params: Any, batch: Batch) -> jax.Array:
        model = nnx.merge(generalist.graph, params)
        return model.action_logits(model.hidden(batch)[:, -1])[0]

    return np.asarray(run(generalist.params, batch))[:3]


def tokens_of(generalist: Generalist, action: Any) -> np.ndarray:
    layout = generalist.layouts[LAYOUT]
    pieces = layout.action.encode(layout.action.stack([action]))
    return np.concatenate([piece.tokens for piece in pieces])


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [True, False])
def test_acting_equals_the_whole_window(hidden: bool):
    """Also in a lane that begins later, in a row that was used before, behind a demonstration."""
    generalist, rng = make_generalist(hidden), np.random.default_rng(0)
    shape = shape_of(generalist, LAYOUT)
    assert shape.parallel and len(shape.modalities) == 2 and shape.dimensions == 3
    policy, begun = ControlPolicy(generalist, [LAYOUT] * 2), [prefix(generalist, rng) for _ in range(2)]
    policy.reset(range(2), begun, range(2))
    seen: list[list] = [[], []]
    acted: list[list] = [[], []]
    for step in range(WINDOW + 2):
        if step == 2:  # from then on this lane's window fits, while the other one's slides
            begun[1], seen[1], acted[1] = generalist.assembler.instruction("lift the blue block"), [], []
            policy.reset([1], [begun[1]], [7])
        observations = [observe(rng) for _ in range(2)]
        actions = policy.act(observations)
        assert policy.logits is not None and policy.logits.shape == (2, 3, generalist.vocabulary.size)
        for lane in range(2):
            seen[lane].append(observations[lane])
            acted[lane].append(tokens_of(generalist, actions[lane]))
            if len(seen[lane]) in (1, WINDOW):
                expected = whole_logits(generalist, begun[lane], seen[lane], acted[lane])
                np.testing.assert_allclose(policy.logits[lane], expected, atol=2e-4, err_msg=f"{step} {lane}")
    assert len({tuple(ids) for lane in acted for ids in lane}) > 3  # the choices do depend on the input


@pytest.mark.slow
def test_after_the_window_has_slid_its_first_action_is_not_seen():
    """In a model of one layer, in which a step sees nothing but its window, a slid window equals one that begins anew."""
    generalist = make_generalist(False)
    config = generalist.config
    model = dataclasses.replace(config.model, layers=1)
    tokenizers = dataclasses.replace(generalist.tokenizers, config=dataclasses.replace(config, model=model))
    graph, params = nnx.split(create(tokenizers.model_spec(), 1), nnx.Param)
    generalist = Generalist(tokenizers, graph, jax.tree.map(lambda leaf: leaf * 2.0, nnx.to_pure_dict(params)), 0)
    policy, rng = ControlPolicy(generalist, [LAYOUT]), np.random.default_rng(0)
    begun = generalist.assembler.instruction("push the red block")
    policy.reset([0], [begun], [0])
    seen, acted = [], []
    for step in range(2 * WINDOW + 1):
        seen.append(observe(rng))
        acted.append(tokens_of(generalist, policy.act(seen[-1:])[0]))
        if step % WINDOW == 0:
            expected = whole_logits(generalist, begun, seen[-WINDOW:], acted[-WINDOW:])
            np.testing.assert_allclose(policy.logits[0], expected, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [True, False])
def test_predictions_are_the_likelihood_of_the_window(hidden: bool):
    """What `predict` gives of recorded actions is what the training sequence's targets have."""
    generalist, rng = make_generalist(hidden), np.random.default_rng(1)
    ACTION.seed(3)
    layout, steps = generalist.layouts[LAYOUT], [observe(rng) for _ in range(WINDOW)]
    actions = [ACTION.sample() for _ in steps]
    policy = ControlPolicy(generalist, [LAYOUT])
    policy.reset([0], ["push"], [0])
    nats = sum(policy.predict([one], [action])[1].sum() for one, action in zip(steps, actions, strict=True))
    window = generalist.assembler.control(
        layout, "push", layout.observation.stack(steps), layout.action.stack(actions), hide_actions=hidden
    )
    other = generalist.assembler.text("lift the blue block")
    scores = log_likelihood(generalist, [other, window, other], rows=4)
    np.testing.assert_allclose(-scores[1], nats, rtol=1e-4)
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-5)
    np.testing.assert_allclose(scores[0], log_likelihood(generalist, [other], rows=4)[0], rtol=1e-4)


@pytest.mark.slow
def test_sampled_actions_depend_on_the_episode_alone():
    generalist = make_generalist(True, temperature=1.0)
    steps = [observe(np.random.default_rng(step)) for step in range(5)]

    def play(lanes: int, lane: int, seed: int) -> list[tuple]:
        policy = ControlPolicy(generalist, [LAYOUT] * lanes)
        policy.reset(range(lanes), ["push"] * lanes, [seed if one == lane else one for one in range(lanes)])
        return [tuple(tokens_of(generalist, policy.act([step] * lanes)[lane])) for step in steps]

    assert play(1, 0, 5) == play(3, 2, 5) != play(1, 0, 6)


def test_layouts_of_other_numbers_of_dimensions_need_their_own_policy():
    generalist = make_generalist(True)
    with pytest.raises(ValueError, match="have different shapes"):
        ControlPolicy(generalist, [LAYOUT, WIDE])
    policy = ControlPolicy(generalist, [WIDE])
    policy.reset([0], [""], [0])
    action = policy.act([observe(np.random.default_rng(0))])[0]
    assert action.shape == (4,) and action.max() < 5
