"""Cross-entropy over a vocabulary of several tables, whose logits are held in the type that they were computed in and never in
float32: conversions, exponentials and sums run in one pass over them.

Dimension key: B rows, L positions, V tokens of a table.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

KEPT = "log_partition"
"""The name, for `jax.checkpoint`, of what the gradient needs besides the logits."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def partition(
    logits: tuple[Float[Array, "B L _"], ...], targets: Int[Array, "B L"], bound: float
) -> tuple[Float[Array, "B L"], Float[Array, "B L"], Float[Array, "B L"]]:
    """The logarithm of the sum of all tokens' exponentials, the target's logit and the largest one, in float32.

    JAX's own gradient of a picked logit is a scatter into all logits; this one is a comparison in the pass that makes them.

    Args:
        logits: of the tables' tokens, whose ids follow one another. The largest one passes no gradient on.
        bound: of the logits, by a tanh; 0: none.
    """
    return _forward(logits, targets, bound)[0]


def _numbered(logits: Sequence[Float[Array, "B L _"]]) -> Iterator[tuple[int, Float[Array, "B L _"]]]:
    """Each table's logits with the id of its first token."""
    first = 0
    for part in logits:
        yield first, part
        first += part.shape[-1]


def _bounded(logits: Float[Array, "*B"], bound: float) -> Float[Array, "*B"]:
    """In float32: a softmax of 16-bit numbers would be too coarse, and a tanh flattens what tells the largest ones apart."""
    wide = logits.astype(jnp.float32)
    return bound * jnp.tanh(wide / bound) if bound else wide


def _forward(logits, targets, bound):
    highest = _bounded(functools.reduce(jnp.maximum, [part.max(axis=-1) for part in logits]), bound)
    total, picked = jnp.zeros_like(highest), jnp.zeros_like(highest)
    for first, part in _numbered(logits):
        total += jnp.exp(_bounded(part, bound) - highest[..., None]).sum(axis=-1)
        own = jnp.clip(targets - first, 0, part.shape[-1] - 1)
        found = jnp.take_along_axis(part, own[..., None], axis=-1)[..., 0]
        picked += jnp.where(own + first == targets, _bounded(found, bound), 0)
    log_partition = checkpoint_name(highest + jnp.log(total), KEPT)
    return (log_partition, picked, highest), (logits, targets, log_partition)


def _backward(bound, kept, gradients):
    (logits, targets, log_partition), (of_partition, of_picked, _) = kept, gradients

    def of(first: int, part: Float[Array, "B L V"]) -> Float[Array, "B L V"]:
        capped = _bounded(part, bound)
        own = jnp.arange(part.shape[-1])[None, None] == (targets - first)[..., None]
        gradient = jnp.exp(capped - log_partition[..., None]) * of_partition[..., None]
        gradient += jnp.where(own, of_picked[..., None], 0)
        if bound:
            gradient *= 1 - jnp.square(capped / bound)
        return gradient.astype(part.dtype)

    return tuple(of(first, part) for first, part in _numbered(logits)), None


partition.defvjp(_forward, _backward)
