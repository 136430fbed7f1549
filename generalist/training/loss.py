"""The loss: cross-entropy of the targets, averaged over tokens or over sources, without holding all logits at once.

Dimension key: B rows, L positions, D width, V vocabulary, K kinds of token, S sources, C chunks of l = L / C positions, Q devices
along the sequence axis with T = l / Q positions of each chunk.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Shaped

from generalist.data.batch import ArrayLike, Batch
from generalist.model.layers import product
from generalist.model.transformer import Transformer
from generalist.system.platforms import target_platform
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.cross_entropy import KEPT, partition

KINDS = ("text", "continuous", "discrete")  # of tokens, in the order of `TokenSums.kind_nll`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSums:
    """Sums over a batch's tokens by kind of token and by source; losses are in nats.

    Sums and weights are separate, so that adding up several steps and dividing once gives the exact mean over their tokens.
    """

    kind_nll: Float[ArrayLike, "K"]
    kind_weight: Float[ArrayLike, "K"]
    source_nll: Float[ArrayLike, "S"]
    source_weight: Float[ArrayLike, "S"]
    source_correct: Float[ArrayLike, "S"]
    """Targets that were predicted correctly, weighted as in the loss."""
    tokens: Float[ArrayLike, ""]
    """Positions that are not padding."""


def token_weights(batch: Batch, weights: Sequence[float], average: Literal["tokens", "sources"]) -> Float[Array, "B L"]:
    """Factors of the targets' losses, float32, whose weighted sum is the mean loss.

    Args:
        weights: of the data's sources, in the order of the batch's `source` ids.
        average: `tokens` averages over all targets; `sources` over each source's targets, and then over the sources of the
            batch by their weights (Flamingo, section 3.2).
    """
    weight = batch.loss_weight
    if average == "tokens":
        return weight / jnp.maximum(weight.sum(), 1.0)
    of_source = by_source(weight, batch, len(weights))
    # A source without a target in this batch has no share, and the others share its part.
    share = jnp.where(of_source > 0, jnp.asarray(weights, jnp.float32), 0.0)
    share = share / jnp.maximum(share.sum(), 1e-9) / jnp.maximum(of_source, 1e-9)
    return weight * share[batch.source]


def by_source(x: Float[Array, "B L"], batch: Batch, sources: int) -> Float[Array, "S"]:
    """Sums over the positions of each source. `sources`: how many there are; static, since it is the length of the result."""
    # Compared, not scattered: a GPU would add the positions of a source one after the other.
    own = batch.source[None] == jnp.arange(sources)[:, None, None]
    return jnp.where(own, x[None], 0).sum(axis=(1, 2))


def fitting(length: int, logits: float | int, platform: str) -> int:
    """The number of pieces, a power of two that divides `length`, in which a device computes its logits.

    Args:
        length: positions of a row on one device.
        logits: how many a device has for all pieces together.
        platform: `cpu`, `gpu` or `tpu`.
    """
    # 16 MiB of float32 per piece on a CPU, 512 MiB in 16 bits elsewhere. Beyond a CPU's caches the logits cost a third of a step.
    most, chunks = 2**22 if platform == "cpu" else 2**28, 1
    while logits > most * chunks and length % (2 * chunks) == 0:
        chunks *= 2
    return chunks


def token_losses(
    model: Transformer, hidden: Float[Array, "B L D"], batch: Batch, chunks: int
) -> tuple[Float[Array, "B L"], Float[Array, "B L"], Float[Array, "B L"]]:
    """Negative log-likelihood of each target in nats, the log-partition, and 1.0 where the target is the likeliest token.

    Args:
        hidden: the model's outputs before the logits.
        chunks: number of pieces whose logits are computed one after the other, and again in the backward pass; 0: as many as
            `fitting` finds.

    Raises:
        ValueError: the positions do not divide into that many pieces on every device.
    """

    # In float32 here and in 16 bits below, so that the gradients of all pieces are added in float32.
    tables = [table.astype(jnp.float32) for table in model.output_table.tables]

    def of(
        hidden: Float[Array, "B l D"], targets: Int[Array, "B l"]
    ) -> tuple[Float[Array, "B l"], Float[Array, "B l"], Float[Array, "B l"]]:
        logits = tuple(product(hidden, table.T.astype(hidden.dtype)) for table in tables)
        log_partition, picked, highest = partition(logits, targets, model.config.logit_softcap)
        # A comparison with the maximum, which is cheaper than an argmax over the vocabulary. A tie counts as correct.
        return log_partition - picked, log_partition, (picked >= highest).astype(jnp.float32)

    rows, length = batch.targets.shape
    mesh = jax.sharding.get_abstract_mesh()
    # Every device along the sequence axis keeps its own positions: it has a part of each piece, and nothing is moved.
    across = 1 if mesh.empty else mesh.shape["sequence"]
    logits = batch.targets.size * model.tokens.size / max(1, mesh.size)
    chunks = chunks or fitting(length // across, logits, target_platform())
    if chunks == 1:
        return of(hidden, batch.targets)
    if length % (across * chunks):
        raise ValueError(
            f"data.length = {length} must be a multiple of training.sequence_axis × loss_chunks = {across} × {chunks}"
        )

    def pieces(x: Shaped[Array, "B L ..."]) -> Shaped[Array, "C B l ..."]:
        x = x.reshape(rows, across, chunks, length // across // chunks, *x.shape[2:])  # (B, Q, C, T, ...)
        return jnp.moveaxis(x, 2, 0).reshape(chunks, rows, length // chunks, *x.shape[4:])

    def whole(x: Float[Array, "C B l"]) -> Float[Array, "B L"]:
        x = x.reshape(chunks, rows, across, length // across // chunks)  # (C, B, Q, T)
        return jnp.moveaxis(x, 0, 2).reshape(rows, length)

    # `map` holds the logits of one piece at a time. `checkpoint` keeps them from being stored for the backward pass, but not the
    # log-partition: the passes over all logits that it takes are not made again.
    kept = jax.checkpoint_policies.save_only_these_names(KEPT)
    parts = jax.lax.map(jax.checkpoint(lambda piece: of(*piece), policy=kept), (pieces(hidden), pieces(batch.targets)))
    nll, log_partition, right = (whole(part) for part in parts)
    return nll, log_partition, right


def make_loss(graph: nnx.GraphDef, vocabulary: Vocabulary, sources: int, z_loss: float, chunks: int) -> Callable:
    """Makes the function that is differentiated.

    Args:
        graph: the model without its parameters.
        sources: number of the data's sources.
        z_loss: weight of the squared log-partition.
        chunks: as in `token_losses`.

    Returns:
        A function of parameters in the compute dtype, batch, factors of the targets' losses (`token_weights`), compute dtype
        and key; it gives the loss and `TokenSums`.
    """

    def loss(
        params: Any, batch: Batch, weight: Float[Array, "B L"], dtype: DTypeLike, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], TokenSums]:
        model = nnx.merge(graph, params)
        nll, log_partition, right = token_losses(model, model.hidden(batch, dtype, key), batch, chunks)
        value = (weight * (nll + z_loss * jnp.square(log_partition))).sum()
        # What is reported does not depend on how the loss is averaged, nor on the z-loss.
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
