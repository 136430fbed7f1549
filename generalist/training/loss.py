"""What is minimised: cross-entropy of the targets, a mean over tokens or over sources, without ever holding all logits.

Dimension key: B rows, L positions, D width, V vocabulary, K kinds of token, S sources, C chunks.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from generalist.data.batch import ArrayLike, Batch
from generalist.model.layers import product
from generalist.model.transformer import Transformer
from generalist.system.platforms import target_platform
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.cross_entropy import partition

KINDS = ("text", "continuous", "discrete")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSums:
    """What a batch's tokens measured: sums, in nats where they are losses, by kind of token and by source."""

    kind_nll: Float[ArrayLike, "K"]
    kind_weight: Float[ArrayLike, "K"]
    source_nll: Float[ArrayLike, "S"]
    source_weight: Float[ArrayLike, "S"]
    source_correct: Float[ArrayLike, "S"]
    """Targets that were the likeliest token, by their weight in the loss."""
    tokens: Float[ArrayLike, ""]
    """Positions that are not padding."""


def token_weights(batch: Batch, weights: Sequence[float], average: Literal["tokens", "sources"]) -> Float[Array, "B L"]:
    """What each target's loss is multiplied by so that their sum is the mean: over all targets, or over each source's and then
    over the sources of the batch by their weights (Flamingo, section 3.2)."""
    weight = batch.loss_weight
    if average == "tokens":
        return weight / jnp.maximum(weight.sum(), 1.0)
    of_source = by_source(weight, batch, len(weights))
    share = jnp.where(of_source > 0, jnp.asarray(weights, jnp.float32), 0.0)
    share = share / jnp.maximum(share.sum(), 1e-9) / jnp.maximum(of_source, 1e-9)
    return weight * share[batch.source]


def by_source(x: Float[Array, "B L"], batch: Batch, sources: int) -> Float[Array, "S"]:
    """Sums over each source's positions, which a GPU would add one after the other if they were scattered."""
    own = batch.source[None] == jnp.arange(sources)[:, None, None]
    return jnp.where(own, x[None], 0).sum(axis=(1, 2))


def fitting(length: int, logits: float | int, platform: str) -> int:
    """Into how many pieces, a power of two that divides `length`, a device's logits are cut: until a piece has 4 million of them
    on a CPU (16 MiB: beyond its caches they cost a third of a step), 256 million elsewhere (512 MiB in 16 bits)."""
    most, chunks = 2**22 if platform == "cpu" else 2**28, 1
    while logits > most * chunks and length % (2 * chunks) == 0:
        chunks *= 2
    return chunks


def token_losses(
    model: Transformer, hidden: Float[Array, "B L D"], batch: Batch, chunks: int
) -> tuple[Float[Array, "B L"], Float[Array, "B L"], Float[Array, "B L"]]:
    """Negative log-likelihood of each target in nats, the log-partition, and 1 where the target is the likeliest token.

    Args:
        chunks: pieces of the rows, one after the other: logits of one piece at a time are held, and computed again in the
            backward pass; 0: as many as `fitting` finds.
    """

    # In float32 here and in 16 bits below, so that the gradients of all pieces are added up in float32.
    tables = [table.astype(jnp.float32) for table in model.output_table.tables]

    def of(hidden: Array, targets: Array) -> tuple[Array, Array, Array]:
        logits = tuple(product(hidden, table.T.astype(hidden.dtype)) for table in tables)
        log_partition, picked, highest = partition(logits, targets, model.config.logit_softcap)
        # A maximum is at hand; where it stands would be searched for one by one.
        return log_partition - picked, log_partition, (picked >= highest).astype(jnp.float32)

    rows, length = batch.targets.shape
    mesh = jax.sharding.get_abstract_mesh()
    across = 1 if mesh.empty else mesh.shape["sequence"]  # every device along the sequence has a part of each piece
    logits = batch.targets.size * model.tokens.size / max(1, mesh.size)
    chunks = chunks or fitting(length // across, logits, target_platform())
    if chunks == 1:
        return of(hidden, batch.targets)
    if length % (across * chunks):
        raise ValueError(
            f"data.length = {length} must be a multiple of training.sequence_axis × loss_chunks = {across} × {chunks}"
        )

    def pieces(x: Array) -> Array:
        x = x.reshape(rows, across, chunks, length // across // chunks, *x.shape[2:])
        return jnp.moveaxis(x, 2, 0).reshape(chunks, rows, length // chunks, *x.shape[4:])

    def whole(x: Array) -> Array:
        x = x.reshape(chunks, rows, across, length // across // chunks)
        return jnp.moveaxis(x, 0, 2).reshape(rows, length)

    parts = jax.lax.map(jax.checkpoint(lambda piece: of(*piece)), (pieces(hidden), pieces(batch.targets)))
    nll, log_partition, right = (whole(part) for part in parts)
    return nll, log_partition, right


def make_loss(graph: nnx.GraphDef, vocabulary: Vocabulary, sources: int, z_loss: float, chunks: int) -> Callable:
    """The function that is differentiated: parameters as they are computed with, batch, each target's weight and key to the
    loss and `TokenSums`."""

    def loss(params, batch: Batch, weight: Float[Array, "B L"], dtype: DTypeLike, key: Array):
        model = nnx.merge(graph, params)
        nll, log_partition, right = token_losses(model, model.hidden(batch, dtype, key), batch, chunks)
        value = (weight * (nll + z_loss * jnp.square(log_partition))).sum()
        counted = batch.loss_weight
        kinds = [vocabulary.range(kind) for kind in KINDS]
        of_kind = [counted * ((batch.targets >= ids.start) & (batch.targets < ids.stop)) for ids in kinds]
        sums = TokenSums(
            kind_nll=jnp.stack([(mask * nll).sum() for mask in of_kind]),
            kind_weight=jnp.stack([mask.sum() for mask in of_kind]),
            source_nll=by_source(counted * nll, batch, sources),
            source_weight=by_source(counted, batch, sources),
            source_correct=by_source(counted * right, batch, sources),
            tokens=(batch.segment > 0).sum().astype(jnp.float32),
        )
        return value, sums

    return loss
