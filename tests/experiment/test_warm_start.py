"""Runs that begin with other weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from generalist.cli.average import average
from generalist.data.batch import Batch
from generalist.experiment.warm_start import fitted
from generalist.inference.generalist import Generalist
from generalist.inference.rows import stack_rows
from generalist.model.config import ModelSpec
from generalist.model.params import flat, nested
from generalist.model.transformer import create, create_separate
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.spaces import SpaceTokenizer


def example(generalist: Generalist) -> Batch:
    """An image, a text about it, and steps of a task."""
    assembler, layout = generalist.assembler, generalist.layouts["classic/test"]
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    observed = layout.observation.stack([np.arange(3, dtype=np.float32)])
    parts = [
        assembler.document([image, "push the red block"], is_open=True),
        assembler.step(layout, observed, hide_actions=True),
    ]
    row = assembler.concatenate(parts)
    return generalist.on_device(stack_rows([row], len(row), pad=generalist.vocabulary.pad))


def deeper(spec: ModelSpec, times: int) -> ModelSpec:
    config = spec.config
    vision = dataclasses.replace(config.vision, every=config.vision.every * times)
    return dataclasses.replace(spec, config=dataclasses.replace(config, layers=config.layers * times, vision=vision))


@pytest.mark.slow
def test_a_deeper_model_begins_as_the_shallower_one(make_model: Callable[..., Any]):
    generalist = make_model("encoder")
    spec = generalist.tokenizers.model_spec()
    deep = deeper(spec, 3)
    params = fitted(generalist, deep, Console(quiet=True))
    batch = example(generalist)

    def logits(spec: ModelSpec, params: Any) -> np.ndarray:
        graph, _ = nnx.split(create(spec, 0), nnx.Param)
        model = nnx.merge(graph, jax.tree.map(jnp.asarray, params))
        return np.asarray(model.logits(model.hidden(batch)))

    shallow = logits(spec, nested(dict(generalist.arrays())))
    np.testing.assert_allclose(logits(deep, nested(params)), shallow, atol=1e-5)
    moved = {name: leaf + 0.1 if "feed_forward/down" in name else leaf for name, leaf in params.items()}
    assert np.abs(logits(deep, nested(moved)) - shallow).max() > 0.1  # what is new can learn


def test_gated_layers_that_would_move_are_refused(make_model: Callable[..., Any]):
    generalist = make_model("encoder")
    deep = deeper(generalist.tokenizers.model_spec(), 3)
    vision = dataclasses.replace(deep.config.vision, every=deep.config.vision.every - 1)
    moved = dataclasses.replace(deep, config=dataclasses.replace(deep.config, vision=vision))
    with pytest.raises(
        ValueError, match=rf"model\.vision\.every is {vision.every}: 3 times .* need {vision.every + 1}"
    ):
        fitted(generalist, moved, Console(quiet=True))


def test_layers_that_do_not_divide_are_named(make_model: Callable[..., Any]):
    generalist = make_model("frame")
    spec = generalist.tokenizers.model_spec()
    config = dataclasses.replace(spec.config, layers=2 * spec.config.layers - 1)
    layers = f"\\({spec.config.layers}, .*\\({config.layers}, "
    with pytest.raises(ValueError, match=rf"training\.start: blocks/.*{layers}"):
        fitted(generalist, dataclasses.replace(spec, config=config), Console(quiet=True))
    assert dict(generalist.arrays()).keys() == fitted(generalist, spec, Console(quiet=True)).keys()


def test_weights_of_other_shapes_have_no_mean_but_may_be_kept(make_model: Callable[..., Any]):
    old = make_model("frame")
    new = old.with_arrays(dict(old.arrays()) | {"final_norm/scale": np.ones(7, np.float32)})
    with pytest.raises(
        ValueError, match=r"final_norm/scale has the shape \(32,\) in OLD and \(7,\) in NEW, .* --keep final_"
    ):
        average(old, new, 0.5, [])
    assert dict(average(old, new, 0.5, ["final_norm/scale"]).arrays())["final_norm/scale"].shape == (7,)


def parallel(generalist: Generalist, dimensions: int) -> Generalist:
    """The same weights with a head for parallel actions of so many dimensions, and a layout that has them."""
    known = generalist.layouts["classic/test"]
    action = SpaceTokenizer.from_space(
        gym.spaces.MultiDiscrete([5] * dimensions), vocabulary=known.action.vocabulary, text=generalist.tokenizers.text
    )
    layout = dataclasses.replace(known, name="classic/wide", action=action, acting=Acting(parallel=True))
    layouts = {"classic/test": known, "classic/wide": layout}
    tokenizers = dataclasses.replace(generalist.tokenizers, layouts=layouts)
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 2), nnx.Param)
    drawn = flat(nnx.to_pure_dict(params)) | flat(generalist.params)
    return dataclasses.replace(generalist, tokenizers=tokenizers, graph=graph, params=nested(drawn))


def test_a_parallel_run_begins_with_sequential_weights_and_a_fresh_head(make_model: Callable[..., Any]):
    start = make_model("frame")
    spec = parallel(start, 3).tokenizers.model_spec()
    assert spec.action_dimensions == 3
    console = Console(record=True, width=300)
    taken = fitted(start, spec, console)
    given = dict(start.arrays())
    for name, leaf in given.items():
        np.testing.assert_array_equal(taken[name], leaf)
    assert len(taken) == len(given)
    drawn = "action_head/dimensions, action_head/down/kernel, action_head/up/kernel"
    assert console.export_text() == f"drawn: {drawn}\n"


def test_actions_of_more_dimensions_get_new_rows_behind_the_old_ones(make_model: Callable[..., Any]):
    start = parallel(make_model("frame"), 2)
    more = parallel(make_model("frame"), 5)
    taken = fitted(start, more.tokenizers.model_spec(), Console(quiet=True))
    path = "action_head/dimensions"
    old = np.asarray(flat(start.params)[path])
    assert taken[path].shape == (5, old.shape[1])
    np.testing.assert_array_equal(taken[path][:2], old)
    assert np.asarray(taken[path][2:]).std() > 0.5
    new = more.with_arrays(taken)
    new = dataclasses.replace(new, params=jax.tree.map(lambda leaf: leaf + 1.0, new.params))
    mean = flat(average(start, new, 0.5, []).params)[path]
    np.testing.assert_allclose(mean[:2], old + 0.5, atol=1e-6)
    np.testing.assert_allclose(mean[2:], np.asarray(taken[path][2:]) + 1, atol=1e-6)
