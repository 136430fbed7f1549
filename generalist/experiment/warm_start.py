"""Warm starts: other weights, fitted to the model of a run that begins with them.

Dimension key: F columns of the tensor projection, E its width, N layers of a stack.
"""

from typing import Any

import numpy as np
from flax import nnx
from rich.console import Console

from generalist.inference.generalist import Generalist
from generalist.model.config import ModelSpec
from generalist.model.embedders import PROJECTION_SPREAD
from generalist.model.params import flat
from generalist.model.transformer import create

ADDED = ("/out/", "/down/")  # the maps of a block whose outputs are added to the residual stream


def fitted(start: Generalist, spec: ModelSpec, console: Console) -> dict[str, Any]:
    """The parameters of other weights as a run's model takes them, by their paths.

    New layouts get new columns in the tensor projection, parallel actions of more dimensions new rows in the action head, and a
    deeper model gets new layers. Parameters that only one of the two models has are reported: the run's own are left to be drawn,
    those of the weights are left out.

    Args:
        spec: of the run's model.

    Raises:
        ValueError: a parameter has another shape in the run's model, or a deeper model could not compute the same.
    """
    _, shapes = nnx.split(nnx.eval_shape(lambda: create(spec, 0)), nnx.Param)
    wanted, given = flat(nnx.to_pure_dict(shapes)), dict(start.arrays())
    path = "tensor_embedder/projection/kernel"
    if path in given and path in wanted and (more := wanted[path].shape[0] - given[path].shape[0]) > 0:
        # Drawn as for a new model (see `TensorEmbedder`). Old columns keep their places, in front.
        fresh = np.random.default_rng(0).normal(0, PROJECTION_SPREAD, (more, given[path].shape[1]))  # (F, E)
        given[path] = np.concatenate([given[path], fresh.astype(np.float32)])
    path = "action_head/dimensions"
    if path in given and path in wanted and (more := wanted[path].shape[0] - given[path].shape[0]) > 0:
        # New dimensions, drawn as for a new model (see `ActionHead`), come behind the old ones.
        fresh = np.random.default_rng(1).normal(0, 1, (more, given[path].shape[1]))  # (A, F)
        given[path] = np.concatenate([given[path], fresh.astype(np.float32)])
    layers = start.config.model.layers
    if layers < spec.config.layers and spec.config.layers % layers == 0:
        times, every = spec.config.layers // layers, start.config.model.vision.every
        if spec.crossed and spec.config.vision.every != times * every:
            raise ValueError(
                f"model.vision.every is {spec.config.vision.every}: {times} times as many layers as training.start has need "
                f"{times * every}, so that the gated layers stay in place"
            )
        if spec.crossed and spec.config.vision.first != times * start.config.model.vision.first:
            raise ValueError(
                f"model.vision.first is {spec.config.vision.first}: {times} times as many layers as training.start has need "
                f"{times * start.config.model.vision.first}, so that the gated layers stay in place"
            )
        if spec.config.window:
            raise ValueError(
                "training.start: weights with model.window can't be deepened, since the number of a layer decides whether it "
                f"has a window: use their {layers} layers"
            )
        given = deepened(given, spec, times)
        console.print(f"{layers} layers become {spec.config.layers}; the new ones add nothing yet", highlight=False)
    for name in given.keys() & wanted.keys():
        if given[name].shape != wanted[name].shape:
            raise ValueError(
                f"training.start: {name} has the shape {given[name].shape} there and {wanted[name].shape} in this run: use the "
                "settings of model and tokens of those weights"
            )
    for what, names in (("drawn", wanted.keys() - given.keys()), ("left out", given.keys() - wanted.keys())):
        if names:
            console.print(f"{what}: {', '.join(sorted(names))}", highlight=False)
    return {name: given[name] for name in given.keys() & wanted.keys()}


def deepened(given: dict[str, Any], spec: ModelSpec, times: int) -> dict[str, Any]:
    """Parameters, by their paths, of a model with `times` as many layers that computes the same (Net2Net, Chen et al., 2016).

    Args:
        given: parameters of the shallow model.
        spec: of the deep model.
    """
    # Each old layer is followed by new ones. These are drawn as for a new model, except that the maps to the residual stream are
    # zero: they add nothing yet, but their gradient is not zero. Gated layers stay before the same old layers, since `every` is
    # `times` as large too.
    _, state = nnx.split(create(spec, 0), nnx.Param)
    drawn, result = flat(nnx.to_pure_dict(state)), dict(given)
    for name in (name for name in given if name.startswith("blocks/")):
        if name in drawn and drawn[name].shape[1:] == given[name].shape[1:]:
            # (N, ...), the layers in order: every `times`-th is an old one.
            result[name] = np.zeros_like(drawn[name]) if any(part in name for part in ADDED) else np.array(drawn[name])
            result[name][::times] = given[name]
    return result
