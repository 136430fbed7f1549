"""What a step of decoding costs: no copy of a cache, no second copy of the weights, no float32 copy of weights in 16 bits."""

import dataclasses
import gc
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from generalist.config.presets import debug
from generalist.data.sources.control import Classic
from generalist.inference import cached_rows, step_window
from generalist.inference.fingerprint import fingerprint
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.inference.score import log_likelihood
from generalist.model.config import LayerKind
from generalist.model.transformer import create, create_separate
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer

LAYOUT = "classic/test"
LAYERS = 11  # as texts, the numbers of more than ten layers would not be in order


def make(*, in_turn: bool = True, separate: bool = True, **model: Any) -> Generalist:
    """Random weights for one layout of a tensor and a continuous action of three numbers."""
    base = debug()
    data = base.data.with_sources(classic=Classic(steps=4, hide_actions=float(not in_turn)))
    config = dataclasses.replace(base, data=data, model=dataclasses.replace(base.model, **model))
    text = TextTokenizer.train(["push the red block to the left", "lift the blue block"] * 20, 512)
    settings = {"vocabulary": config.tokens.vocabulary(), "text": text}
    observation = SpaceTokenizer.from_space(gym.spaces.Box(-np.inf, np.inf, (3,)), tensors="projected", **settings)
    action = SpaceTokenizer.from_space(gym.spaces.Box(-1, 1, (3,)), **settings)
    layout = TaskLayout(LAYOUT, observation, action, config.data.suite_of(LAYOUT).acting)
    tokenizers = Tokenizers(config=config, text=text, layouts={LAYOUT: layout}, projection_width=3)
    model_of = create_separate if separate else create
    graph, params = nnx.split(model_of(tokenizers.model_spec(), 1), nnx.Param)
    return Generalist(tokenizers, graph, jax.tree.map(lambda leaf: leaf * 2.0, nnx.to_pure_dict(params)), 0)


def compiled(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[int, str]]:
    """A list that collects the size of a cache and the compiled text of each call of a function from now on."""
    function, found = getattr(module, name), []

    def collecting(*arguments: Any, **named: Any) -> Any:
        # Lowering fills a `Batch` with descriptions of its arrays, which are none of the types that it has.
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        text = function.lower(*arguments, **named).compile().as_text()
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", False)
        found.append((arguments[2][0].key.size, text))
        return function(*arguments, **named)

    monkeypatch.setattr(module, name, collecting)
    return found


def copies(cache: int, text: str) -> list[str]:
    """The instructions that copy or transpose an array of a cache's size, also within fusions."""
    pattern = re.compile(r"= \w+\[([\d,]+)\]\S* (?:copy|transpose|concatenate|pad)\(")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if (m := pattern.search(line)) and math.prod(map(int, m[1].split(","))) == cache]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("in_turn", [False, True])
def test_a_step_of_acting_copies_no_cache(monkeypatch: pytest.MonkeyPatch, rows: int, in_turn: bool):
    generalist = make(in_turn=in_turn, width=32, heads=2, kv_heads=2, head_size=64, hidden=32, layers=2)
    found = compiled(monkeypatch, step_window, "act_in_turn" if in_turn else "extend")
    policy = ControlPolicy(generalist, [LAYOUT] * rows)
    policy.reset(range(rows), ["push the red block to the left"] * rows, range(rows))
    policy.act([np.zeros(3, np.float32)] * rows)
    ((cache, text),) = found
    assert text.count("dynamic-update-slice(") >= 4, "keys and values of both layers"
    assert copies(cache, text) == []


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["full", "window"])
def test_a_step_of_writing_copies_no_cache(monkeypatch: pytest.MonkeyPatch, rows: int, kind: LayerKind):
    shape = {"width": 32, "heads": 2, "kv_heads": 2, "head_size": 64, "hidden": 32, "layers": 2}
    generalist = make(**shape, window=9, layer_kinds=(kind,))  # in rings of 16 slots
    found = compiled(monkeypatch, cached_rows, "write_in_turn")
    generalist.prompt([["push"]] * rows, tokens=64)
    cache, text = found[0]
    assert text.count("dynamic-update-slice(") >= 4
    assert copies(cache, text) == []


@pytest.mark.slow
def test_what_is_fed_back_may_be_given():
    generalist, rng = make(), np.random.default_rng(0)
    acting, told = ControlPolicy(generalist, [LAYOUT] * 2), ControlPolicy(generalist, [LAYOUT] * 2)
    for policy in (acting, told):
        policy.reset(range(2), ["push", "lift the blue block"], range(2))
    for _ in range(7):  # a window has 4
        observations = [rng.normal(size=3).astype(np.float32) for _ in range(2)]
        actions = acting.act(observations)
        chosen, nats = told.predict(observations, actions)
        np.testing.assert_array_equal(chosen, actions)
        np.testing.assert_allclose(told.logits, acting.logits, atol=1e-5)
        assert nats.shape == (2, 3) and (nats > 0).all()


@pytest.mark.slow
def test_texts_do_not_depend_on_how_many_ids_are_computed_at_once(make_model: Callable[..., Generalist]):
    generalist = make_model()
    prompts = [["push the"], ["lift"], ["the red block to the"]]
    for settings in ({}, {"temperature": 1.5, "seed": 3}, {"stop": (" block", "l")}):
        alone = [generalist.prompt(parts, tokens=20, **settings) for parts in prompts]
        assert ["".join(generalist.stream(parts, tokens=20, **settings)) for parts in prompts] == alone
        if "temperature" not in settings:  # what is drawn depends on the row's number
            assert generalist.prompt(prompts, tokens=20, **settings) == alone
    assert len(set(generalist.prompt(prompts, tokens=20))) > 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model"
    make(layers=LAYERS, width=64, hidden=64, heads=2, kv_heads=1).save(path, ml_dtypes.bfloat16)
    return path


@pytest.mark.slow
def test_the_weights_are_in_memory_once(folder: Path):
    gc.collect()
    before = {id(one) for one in jax.live_arrays()}
    generalist = Generalist.load(folder)
    generalist.prompt(["push the red block"], tokens=4)
    log_likelihood(generalist, [generalist.assembler.document(["lift the blue block"])], rows=2)
    gc.collect()
    held = sum(one.nbytes for one in jax.live_arrays() if id(one) not in before)
    assert held <= 1.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(generalist.params))


@pytest.mark.slow
def test_weights_in_16_bits_stay_so_and_compute_in_float32(folder: Path, tmp_path: Path):
    generalist = Generalist.load(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(generalist.params)} == {jnp.dtype(jnp.bfloat16)}
    wide = dataclasses.replace(
        generalist, params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), generalist.params)
    )
    assert fingerprint(wide) == fingerprint(generalist), "the same numbers"
    documents = [generalist.assembler.document(["lift the blue block to the left"])]
    scores = [log_likelihood(one, documents, rows) for one in (generalist, wide) for rows in (1, 4)]
    np.testing.assert_allclose(scores[1:], [scores[0]] * 3, rtol=1e-5)
    assert generalist.prompt(["push the"], tokens=12) == wide.prompt(["push the"], tokens=12)


@pytest.mark.slow
def test_separate_layers_compute_what_stacked_ones_do_also_from_a_folder(tmp_path: Path):
    """With more than ten layers, whose numbers are not in order as texts."""
    shape = {"layers": LAYERS, "width": 64, "hidden": 64, "heads": 2, "kv_heads": 1}
    stacked, separate = make(separate=False, **shape), make(**shape)
    separate.save(tmp_path / "model")
    loaded = Generalist.load(tmp_path / "model")
    assert fingerprint(stacked) == fingerprint(separate) == fingerprint(loaded)
    documents = [separate.assembler.document(["lift the blue block to the left"])]
    scores = [log_likelihood(one, documents, rows=2) for one in (stacked, separate, loaded)]
    np.testing.assert_allclose(scores[1:], [scores[0]] * 2, rtol=1e-5)
    assert len({one.prompt(["push the"], tokens=8) for one in (stacked, separate, loaded)}) == 1
