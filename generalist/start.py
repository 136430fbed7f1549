"""What a run begins with: other weights, fitted to its own model."""

from typing import Any

import numpy as np
from flax import nnx
from rich.console import Console

from generalist.model.config import ModelSpec
from generalist.model.embedders import PROJECTION_SPREAD
from generalist.model.transformer import create
from generalist.training.sharding import flat

ADDED = ("/out/", "/down/")  # of a block: what it adds to the residual stream


def fitted(params: Any, spec: ModelSpec, console: Console) -> dict[str, Any]:
    """Weights to begin with, by their paths, as the run's model takes them: tensors of new layouts get fresh columns, a deeper
    model new layers; what the model has besides is drawn, and what it has not is left out.

    Raises:
        ValueError: a parameter has another shape in the run's model.
    """
    _, shapes = nnx.split(nnx.eval_shape(lambda: create(spec, 0)), nnx.Param)
    wanted, given = flat(nnx.to_pure_dict(shapes)), flat(params)
    path = "tensor_embedder/projection/kernel"
    if path in given and path in wanted and (more := wanted[path].shape[0] - given[path].shape[0]) > 0:
        fresh = np.random.default_rng(0).normal(0, PROJECTION_SPREAD, (more, given[path].shape[1]))
        given[path] = np.concatenate([np.asarray(given[path]), fresh.astype(np.float32)])
    layers = len(next(leaf for name, leaf in given.items() if name.startswith("blocks/")))
    if layers < spec.config.layers and spec.config.layers % layers == 0:
        given = deepened(given, spec, spec.config.layers // layers)
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
    before which it stood, if the model has `times` as many layers between them."""
    _, state = nnx.split(create(spec, 0), nnx.Param)
    drawn, result = flat(nnx.to_pure_dict(state)), dict(given)
    for name in (name for name in given if name.startswith("blocks/")):
        if name in drawn and drawn[name].shape[1:] == given[name].shape[1:]:
            result[name] = np.zeros_like(drawn[name]) if any(part in name for part in ADDED) else np.array(drawn[name])
            result[name][::times] = given[name]
    return result
