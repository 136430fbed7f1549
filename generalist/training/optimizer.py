"""AdamW or Muon, with linear warm-up, cosine decay and clipping."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from generalist.config.run import TrainingConfig
from generalist.model.params import path_string


def schedule(config: TrainingConfig) -> optax.Schedule:
    """Learning rate by step: linear from 0 to the peak, then a cosine to `final_fraction` of it."""
    warmup = min(config.warmup, config.steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=config.steps,
        end_value=config.learning_rate * config.final_fraction,
    )


def decayed(params):
    """Which parameters decay: matrices and convolution kernels, not norms, biases or tables of positions, and nothing of the
    resampler (Flamingo, appendix B.1.2)."""

    def decays(path: tuple, _: Any) -> bool:
        name = path_string(path)
        return name.endswith("kernel") and "resampler" not in name

    return jax.tree_util.tree_map_with_path(decays, params)


def orthogonalized(params):
    """The inputs and outputs of the matrices that Muon orthogonalises, which are all but the first layer's of projected tensors,
    of whose columns most are idle in a batch; None for what AdamW takes. A kernel stacked for several layers is as many
    matrices."""

    def axes(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
        name = path_string(path)
        if not name.endswith("kernel") or "tensor_embedder/projection" in name:
            return None
        if leaf.ndim == 4:  # a convolution: height, width and channels of the neighbourhood
            return MuonDimensionNumbers((0, 1, 2), 3)
        return MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW (Loshchilov & Hutter, 2019), or Muon (Jordan et al., 2024) for the matrices beside it, its
    updates scaled to AdamW's usual size, so that one learning rate serves both (Liu et al., 2025, section 2.2)."""
    if config.optimizer == "adamw":
        update = optax.adamw(
            schedule(config), b1=config.beta1, b2=config.beta2, eps=1e-8, weight_decay=config.weight_decay, mask=decayed
        )
    else:
        update = muon(
            schedule(config),
            beta=config.beta2,
            weight_decay=config.weight_decay,
            weight_decay_mask=decayed,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=orthogonalized,
            consistent_rms=0.2,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), update)
