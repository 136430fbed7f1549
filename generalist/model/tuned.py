"""Models of which a part stays frozen (`generalist.model.tuning`).

Training has a layout of parameters of its own then. In files there is one stack of layers and no adapter:

    in files                    in training
    blocks/... (N layers)       lower/...  the frozen lower layers, if `trained_layers` is set
                                blocks/... the others
    blocks/M/kernel             blocks/M/kernel, blocks/M/adapter/a, blocks/M/adapter/b

Dimension key: N layers.
"""

import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Float

from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.lora import add_adapters, merged
from generalist.model.params import TRUNK
from generalist.model.transformer import Transformer, create
from generalist.model.tuning import PATHS, Tuning

ADAPTER = re.compile(r"blocks/.+/adapter/[ab]")
"""Paths of the parameters of adapters."""


def create_tuned(spec: ModelSpec, seed: int, tuning: Tuning) -> Transformer:
    """A freshly initialised model as it is trained: with adapters, or with its frozen lower layers apart.

    Raises:
        ValueError: it has fewer layers than are to be trained.
    """
    model, layers = create(spec, seed), spec.config.layers
    if tuning.lora.rank is not None:
        # fold_in: the model's own parameters are drawn as without adapters.
        add_adapters(model.blocks, spec.config, tuning.lora, layers, jax.random.fold_in(jax.random.key(seed), 1))
    if lower := tuning.lower(layers):
        graph, state = nnx.split(model.blocks)
        model.lower, model.blocks = (
            nnx.merge(graph, jax.tree.map(lambda leaf, part=part: leaf[part], state))
            for part in (slice(lower), slice(lower, None))
        )
    return model


def divided(params: Any, config: ModelConfig, tuning: Tuning = Tuning()) -> tuple[Any, Any]:
    """Nested parameters of training as those that are trained and those that are frozen, each nested."""
    # flax's function here, whose paths are tuples: lists of modules have integers for keys, which a joined path would turn into
    # texts, and `divided` must give back what it was given.
    leaves = traverse_util.flatten_dict(params)

    def part(trained: bool) -> dict[str, Any]:
        of_part = {
            path: leaf
            for path, leaf in leaves.items()
            if is_trained("/".join(map(str, path)), config, tuning) == trained
        }
        return traverse_util.unflatten_dict(of_part)

    return part(True), part(False)


def is_trained(path: str, config: ModelConfig, tuning: Tuning) -> bool:
    """Whether a parameter of training is trained."""
    of_trunk = TRUNK.match(path) or (config.trunk_sees and path.startswith("projector/"))
    if not of_trunk or ADAPTER.fullmatch(path):
        return True
    if tuning.lora.rank is not None:
        return False
    if tuning.trained_layers is not None:
        return path.startswith(("blocks/", "final_norm/"))
    return config.trunk == "none" or not config.trunk_frozen


def apart(path: str, array: Any, layers: int, tuning: Tuning) -> dict[str, Any]:
    """A parameter of the files as those of training, by their paths.

    Args:
        layers: N.
    """
    lower = tuning.lower(layers)
    if not lower or not path.startswith("blocks/"):
        return {path: array}
    return {path.replace("blocks/", "lower/", 1): array[:lower], path: array[lower:]}


def together(
    arrays: dict[str, Any], config: ModelConfig, tuning: Tuning
) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    """The parameters of training as those of files, one at a time.

    Args:
        arrays: by their paths; emptied, so that each is in memory only once.
    """
    places = {f"blocks/{path}/kernel": place for place, path in PATHS.items()}
    lower = {path.replace("lower/", "blocks/", 1): path for path in arrays if path.startswith("lower/")}
    for path in [path for path in arrays if not ADAPTER.fullmatch(path) and path not in lower.values()]:
        array = np.asarray(arrays.pop(path))
        if path in lower:
            array = np.concatenate([np.asarray(arrays.pop(lower[path])), array])
        adapter = path.replace("/kernel", "/adapter/")
        if path in places and f"{adapter}a" in arrays:
            a, b = (np.asarray(arrays.pop(adapter + one)) for one in "ab")
            array = merged(array, a, b, config, tuning.lora, places[path])
        yield path, array
