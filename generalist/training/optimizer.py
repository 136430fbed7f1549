"""AdamW with linear warm-up, cosine decay and clipping."""

from typing import Any

import jax
import optax

from generalist.config import TrainingConfig
from generalist.training.sharding import path_string


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


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW (Loshchilov & Hutter, 2019)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule(config), b1=config.beta1, b2=config.beta2, eps=1e-8, weight_decay=config.weight_decay, mask=decayed
        ),
    )
