"""AdamW or Muon, with linear warm-up, cosine decay and clipping."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from generalist.config.run import TrainingConfig
from generalist.model.params import path_string


def schedule(config: TrainingConfig) -> optax.Schedule:
    """Learning rate by the number of updates so far: linear from 0 to the peak, then a cosine to `final_fraction` of the peak."""
    # Optax needs at least one step of decay after the warm-up; short runs, as in tests, may have fewer steps than that.
    warmup = min(config.warmup, config.steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=config.steps,
        end_value=config.learning_rate * config.final_fraction,
    )


def decayed(params):
    """A tree of booleans: which parameters have weight decay. These are the kernels of linear maps and convolutions, except the
    resampler's (Flamingo, appendix B.1.2); norms, biases, gates and embedding tables have none."""

    def decays(path: tuple, _: Any) -> bool:
        # Tables are named by what they hold, such as tokens/text: only matrices that multiply are called kernel.
        name = path_string(path)
        return name.endswith("kernel") and "resampler" not in name

    return jax.tree_util.tree_map_with_path(decays, params)


def orthogonalized(params):
    """A tree that tells Muon the input and output axes of every matrix that it orthogonalises; None for AdamW's parameters."""

    def axes(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
        name = path_string(path)
        # Most rows of the tensor projection belong to layouts that a batch does not show. Their gradient is 0, and
        # orthogonalising would raise what earlier batches left in their momentum to the size of a full update.
        if not name.endswith("kernel") or "tensor_embedder/projection" in name:
            return None
        if leaf.ndim == 4:  # (K, K, C, O): a convolution is one matrix from its neighbourhood to the outputs
            return MuonDimensionNumbers((0, 1, 2), 3)
        # Kernels of all layers are stacked on a leading axis; Muon treats each layer's as a matrix of its own.
        return MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW (Loshchilov & Hutter, 2019); or Muon (Jordan et al., 2024) for matrices, with AdamW
    for all other parameters."""
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
            # Muon's updates get the root mean square that AdamW's usually have, so that one learning rate and one weight decay
            # serve both (Liu et al., 2025, section 2.2).
            consistent_rms=0.2,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), update)
