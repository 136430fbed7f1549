"""Log-likelihood of sequences under the weights, for ranking answers and for perplexity.

Dimension key: B rows, L positions, V vocabulary, N sequences, K parallel actions, D width.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Sequences
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from generalist.data.batch import Batch
from generalist.inference.rows import bucket, filled, stack_rows
from generalist.inference.structure import Structure, compiled
from generalist.inference.weights import Weights
from generalist.tokenizers.sequence import Sequence


@compiled(static_argnames=("structure",))
def row_log_likelihood(structure: Structure, params: Any, batch: Batch) -> Float[Array, "B"]:
    """Sum of each row's weighted target log-probabilities, in nats."""
    model = structure.model(params)
    hidden = model.hidden(batch, structure.dtype)  # (B, L, D)
    found = (batch.loss_weight * _of_targets(model.logits(hidden), batch.targets)).sum(axis=1)
    if not len(batch.actions):
        return found
    read = batch.gather(hidden.reshape(-1, hidden.shape[-1]), batch.action_from)  # (K, D)
    of_actions = (batch.action_weight * _of_targets(model.action_logits(read), batch.actions)).sum(axis=1)  # (K,)
    return found + jax.ops.segment_sum(of_actions, batch.action_from // batch.tokens.shape[1], len(found))


def _of_targets(logits: Float[Array, "N M V"], targets: Int[Array, "N M"]) -> Float[Array, "N M"]:
    """Log-probability of each target."""
    # logsumexp at once instead of log_softmax: no second array of the vocabulary's size.
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def log_likelihood(generalist: Weights, sequences: Sequences[Sequence], rows: int = 64) -> Float[np.ndarray, "N"]:
    """Log-likelihood of each sequence's weighted targets, in nats, float32.

    Args:
        rows: number of sequences that are scored at a time.
    """
    if not sequences:
        return np.zeros((0,), np.float32)
    # One length for all batches: one compilation, at the cost of padding.
    length = bucket(max(len(sequence.tokens) for sequence in sequences))
    scores = []
    for chunk in chunks(list(sequences), rows):
        # The last chunk is filled up with copies, whose scores are cut off.
        batch = stack_rows(
            filled(chunk, rows),
            length,
            pad=generalist.vocabulary.pad,
            frame_tokens=generalist.config.model.frame_tokens,
        )
        scores.append(np.asarray(row_log_likelihood(*generalist.decoder, generalist.on_device(batch)))[: len(chunk)])
    return np.concatenate(scores)


def chunks(items: list, size: int) -> Iterable[list]:
    """Consecutive pieces of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))
