"""How the layers are run: what the backward pass recomputes, and how many layers stand in one round of the loop over them."""

from collections.abc import Callable

import jax

from generalist.system.platforms import target_platform

_PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(
        "attention"
    ),  # results of attention kernels, which are not plain products
)
UNROLLED = 12
"""Layers up to which an accelerator's program has no loop over them: kernels are then fused across layers' borders, stacked
parameters are not sliced in every round, and what the backward pass needs is not copied into arrays of all layers and back. A
program of more layers takes long to compile."""


def recomputed(layer: Callable, kind: str, *, looped: bool) -> Callable:
    """The layer, with activations kept or recomputed by `model.remat`.

    Args:
        looped: whether the layers run in a loop, which separates forward and backward pass; barriers against merging them would
            then only prevent fusions. Without a loop they keep the compiler from reusing what is to be recomputed.
    """
    if kind == "none":
        return layer
    return jax.checkpoint(layer, policy=_PRODUCTS if kind == "products" else None, prevent_cse=not looped)


def layers_unrolled(layers: int, wanted: int) -> int:
    """Layers per round of the loop; all of them: no loop.

    Args:
        wanted: `model.layers_unrolled`.
    """
    if not wanted:
        wanted = layers if target_platform() != "cpu" and layers <= UNROLLED else 1
    return min(wanted, layers)
