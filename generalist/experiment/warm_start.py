"""What a run begins with: other weights, fitted to its own model."""

from typing import Any

import numpy as np
from flax import nnx
from rich.console import Console

from generalist.inference.generalist import Generalist
from generalist.model.config import ModelSpec
from generalist.model.embedders import PROJECTION_SPREAD
from generalist.model.params import flat
from generalist.model.transformer import create

ADDED = ("/out/", "/down/")  # of a block: what it adds to the residual stream


def fitted(start: Generalist, spec: ModelSpec, console: Console) -> dict[str, Any]:
    """Weights to begin with, by their paths, as the run's model takes them: tensors of new layouts get fresh columns, a deeper
    model new layers; what the model has besides is drawn, and what it has not is left out.

    Raises:
        ValueError: a parameter has another shape in the run's model, or a deeper one could not compute the same.
    """
    _, shapes = nnx.split(nnx.eval_shape(lambda: create(spec, 0)), nnx.Param)
    wanted, given = flat(nnx.to_pure_dict(shapes)), flat(start.params)
    path = "tensor_embedder/projection/kernel"
    if path in given and path in wanted and (more := wanted[path].shape[0] - given[path].shape[0]) > 0:
        fresh = np.random.default_rng(0).normal(0, PROJECTION_SPREAD, (more, given[path].shape[1]))
        given[path] = np.concatenate([np.asarray(given[path]), fresh.astype(np.float32)])
    layers = start.config.model.layers
    if layers < spec.config.layers and spec.config.layers % layers == 0:
        times, every = spec.config.layers // layers, start.config.model.vision.every
        if spec.channels and spec.config.vision.every != times * every:
            raise ValueError(
                f"model.vision.every is {spec.config.vision.every}: {times} times as many layers as those of training.start need "
                f"{times * every}, so that gated layers stay where they are"
            )
        if spec.config.window:
            raise ValueError(
                "training.start: which layers have a window depends on their number, so that weights with model.window can't "
                f"be deepened: use their {layers} layers"
            )
        given = deepened(given, spec, times)
        console.print(f"{layers} layers become {spec.config.layers}; the new ones add nothing yet", highlight=False)
    for name in given.keys() & wanted.keys():
        if given[name].shape != wanted[name].shape:
            raise ValueError(
                f"training.start: {name} has the shape {given[name].shape} there and {wanted[name].shape} in this run: use the "
                "model's and the tokens' settings of those weights"
            )
    for what, names in (("drawn", wanted.keys() - given.keys()), ("left out", given.keys() - wanted.keys())):
        if names:
            console.print(f"{what}: {', '.join(sorted(names))}", highlight=False)
    return {name: given[name] for name in given.keys() & wanted.keys()}


def deepened(given: dict[str, Any], spec: ModelSpec, times: int) -> dict[str, Any]:
    """Weights, by their paths, with `times` as many layers that compute the same (Net2Net, Chen et al. 2016): each is followed
    by new ones, drawn as for a fresh model but for what they add, which is nothing yet. A gated layer stays before the layer
    before which it stood, as there are `times` as many layers between them."""
    _, state = nnx.split(create(spec, 0), nnx.Param)
    drawn, result = flat(nnx.to_pure_dict(state)), dict(given)
    for name in (name for name in given if name.startswith("blocks/")):
        if name in drawn and drawn[name].shape[1:] == given[name].shape[1:]:
            result[name] = np.zeros_like(drawn[name]) if any(part in name for part in ADDED) else np.array(drawn[name])
            result[name][::times] = given[name]
    return result
