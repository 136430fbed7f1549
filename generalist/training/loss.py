"""The loss: cross-entropy of the targets, averaged over tokens or over sources, without holding all logits at once.

Dimension key: B rows, L positions, D width, V vocabulary, S sources, C chunks of l = L / C positions, Q devices along the
sequence axis with T = l / Q positions of each chunk, K parallel actions of A dimensions, in chunks of k on R devices along the
rows.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

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

PIECE = 512  # positions whose logits a CPU computes at once, at least: adding up a table's gradients takes as long as a product
MOST_LOGITS = {"cpu": 2**22, "gpu": 2**28, "tpu": 2**31}
"""Logits of a piece: 16 MiB of float32 on a CPU, beyond whose caches they cost a third of a step; in 16 bits 512 MiB on a GPU and
4 GiB on a TPU, where every piece gathers the divided table again."""
MOST_KEPT = 2**25  # logits of parallel actions, 128 MiB, that a CPU keeps for the backward pass
LEAST = float(jnp.finfo(jnp.float32).tiny)  # of a sum that is divided by: without any target 0 / 0 would be NaN
KINDS = ("text", "continuous", "discrete")  # of tokens, in the order of `TokenSums.kind_nll`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSums:
    """Sums over a batch's tokens by kind of token and by source; losses are in nats.

    Sums and weights are separate, so that adding up several steps and dividing once gives the exact mean over their tokens.
    """

    kind_nll: Float[ArrayLike, "kinds"]
    kind_weight: Float[ArrayLike, "kinds"]
    source_nll: Float[ArrayLike, "S"]
    source_weight: Float[ArrayLike, "S"]
    source_correct: Float[ArrayLike, "S"]
    """Targets that were predicted correctly, weighted as in the loss."""
    tokens: Float[ArrayLike, ""]
    """Positions that are not padding."""


class Factors(NamedTuple):
    """Factors of the targets' losses, float32, whose weighted sum is the mean loss."""

    positions: Float[Array, "B L"]
    actions: Float[Array, "K A"]


def token_weights(batch: Batch, weights: Sequence[float], average: Literal["tokens", "sources"]) -> Factors:
    """The factors of all targets, those of positions and those of parallel actions.

    Args:
        weights: of the data's sources, in the order of the batch's `source` ids; only their ratios count.
        average: `tokens` averages over all targets by their sources' weights; `sources` over each source's targets, and then over
            the sources of the batch by their weights (Flamingo, section 3.2).
    """
    weight, action_weight, source = batch.loss_weight, batch.action_weight, action_sources(batch)
    if average == "tokens":
        if len(set(weights)) > 1:
            factor = near_one(weights)
            weight, action_weight = weight * factor[batch.source], action_weight * factor[source]
        total = jnp.maximum(weight.sum() + action_weight.sum(), LEAST)
        return Factors(weight / total, action_weight / total)
    of_source = by_source(weight, batch.source, len(weights)) + by_source(action_weight, source, len(weights))
    # A source without a target in this batch has no share, and the others share its part.
    share = jnp.where(of_source > 0, near_one(weights), 0.0)
    share = share / jnp.maximum(share.sum(), LEAST) / jnp.maximum(of_source, LEAST)
    return Factors(weight * share[batch.source], action_weight * share[source])


def near_one(weights: Sequence[float]) -> Float[Array, "S"]:
    """Weights in the same ratios, the largest from 0.5 to 1: as they are, float32 may not hold them."""
    # By a power of two, which rounds nothing.
    _, exponent = math.frexp(max(weights))
    return jnp.asarray([math.ldexp(weight, -exponent) for weight in weights], jnp.float32)


def action_sources(batch: Batch) -> Int[Array, "K A"]:
    """The source of each dimension of the batch's parallel actions."""
    source = batch.gather(batch.source.reshape(-1), batch.action_from)  # (K,)
    return jnp.broadcast_to(source[:, None], batch.actions.shape)


def by_source(x: Float[Array, "B L"], source: Int[Array, "B L"], sources: int) -> Float[Array, "S"]:
    """Sums over the targets of each source. `sources`: how many there are; static, since it is the length of the result."""
    # Compared, not scattered: a GPU would add the positions of a source one after the other.
    own = source[None] == jnp.arange(sources)[:, None, None]
    return jnp.where(own, x[None], 0).sum(axis=(1, 2))


def fitting(length: int, logits: float | int, platform: str) -> int:
    """The number of pieces, a power of two that divides `length`, in which a device computes its logits.

    Args:
        length: positions of a row on one device.
        logits: how many a device has for all pieces together.
        platform: `cpu`, `gpu` or `tpu`.
    """
    chunks = 1
    while logits > MOST_LOGITS.get(platform, MOST_LOGITS["gpu"]) * chunks and length % (2 * chunks) == 0:
        chunks *= 2
    return chunks


def token_losses(
    model: Transformer, hidden: Float[Array, "B L D"], batch: Batch, chunks: int
) -> tuple[Float[Array, "B L"], Float[Array, "B L"], Float[Array, "B L"]]:
    """Negative log-likelihood of each target in nats, the log-partition, and 1.0 where the target is the likeliest token.

    On one CPU device they are computed of positions with a loss alone, and are 0 at others.

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
    if target_platform() == "cpu" and (mesh.empty or mesh.size == 1) and not chunks:
        return _of_targets(of, hidden, batch, model.tokens.size)
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


def _of_targets(
    of: Callable, hidden: Float[Array, "B L D"], batch: Batch, vocabulary: int
) -> tuple[Float[Array, "B L"], Float[Array, "B L"], Float[Array, "B L"]]:
    """What `of` gives at the positions that have a loss, and 0 at others: positions are sorted, and pieces without any are
    skipped."""
    shape, count = batch.targets.shape, batch.targets.size
    order = jnp.argsort(batch.loss_weight.reshape(-1) == 0, stable=True)
    back = jnp.argsort(order)
    chunks = few = fitting(count, count * vocabulary, "cpu")
    while count // chunks > PIECE and count % (2 * chunks) == 0:
        chunks *= 2

    def pieces(x: Shaped[Array, "N ..."]) -> Shaped[Array, "C 1 l ..."]:
        return moved(x, order, back).reshape(chunks, 1, count // chunks, *x.shape[1:])

    def piece(one: tuple[Float[Array, "1 l D"], Int[Array, "1 l"], Float[Array, "1 l"]]):
        hidden, targets, weight = one
        nothing = (jnp.zeros(targets.shape),) * 3
        return jax.lax.cond((weight != 0).any(), of, lambda *_: nothing, hidden, targets)

    kept = jax.checkpoint_policies.save_only_these_names(KEPT)
    flat = (hidden.reshape(count, -1), batch.targets.reshape(-1), batch.loss_weight.reshape(-1))
    # Logits that fit a CPU's caches all together are kept.
    of_piece = piece if few == 1 else jax.checkpoint(piece, policy=kept)
    parts = jax.lax.map(of_piece, tuple(map(pieces, flat)))
    nll, log_partition, right = (moved(part.reshape(-1), back, order).reshape(shape) for part in parts)
    return nll, log_partition, right


@jax.custom_vjp
def moved(x: Shaped[Array, "N ..."], order: Int[Array, "N"], back: Int[Array, "N"]) -> Shaped[Array, "N ..."]:
    """The entries of `x` in another order, of which `back` is the inverse. JAX's own gradient would be a scatter."""
    return x[order]


moved.defvjp(lambda x, order, back: (x[order], back), lambda back, gradient: (gradient[back], None, None))


def action_losses(
    model: Transformer, hidden: Float[Array, "B L D"], batch: Batch
) -> tuple[Float[Array, "K A"], Float[Array, "K A"], Float[Array, "K A"]]:
    """The same three of every dimension of the batch's parallel actions. Their logits are of ids that are no text, which no such
    action has; they too are computed in pieces that `fitting` finds.

    Args:
        hidden: the model's outputs at all positions.
    """
    table = model.output_table.other[...].astype(jnp.float32)
    first = len(model.output_table.text)

    def of(
        read: Float[Array, "k D"], targets: Int[Array, "k A"]
    ) -> tuple[Float[Array, "k A"], Float[Array, "k A"], Float[Array, "k A"]]:
        states = model.action_hidden(read)
        logits = (product(states, table.T.astype(states.dtype)),)
        log_partition, picked, highest = partition(logits, targets - first, model.config.logit_softcap)
        return log_partition - picked, log_partition, (picked >= highest).astype(jnp.float32)

    read = batch.gather(hidden.reshape(-1, hidden.shape[-1]), batch.action_from)  # (K, D)
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    count = len(batch.actions)
    across = devices if count % devices == 0 else 1
    logits = batch.actions.size * len(table) / max(1, mesh.size)
    chunks = fitting(count // across, logits, target_platform())
    if chunks == 1:
        return of(read, batch.actions)

    # As positions above: every device has a part of each piece.
    def pieces(x: Shaped[Array, "K ..."]) -> Shaped[Array, "C k ..."]:
        x = x.reshape(across, chunks, count // across // chunks, *x.shape[1:])  # (R, C, k / R, ...)
        return jnp.moveaxis(x, 1, 0).reshape(chunks, count // chunks, *x.shape[3:])

    def whole(x: Float[Array, "C k A"]) -> Float[Array, "K A"]:
        x = x.reshape(chunks, across, count // across // chunks, x.shape[-1])
        return jnp.moveaxis(x, 0, 1).reshape(count, x.shape[-1])

    # As positions above, but on a CPU the results of the products are kept too, as in the layers: to fetch them takes less time
    # than to make them again, and the head that every dimension passes through is as large as a layer.
    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    if target_platform() == "cpu" and logits <= MOST_KEPT:
        products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        policy = jax.checkpoint_policies.save_from_both_policies(products, policy)
    parts = jax.lax.map(jax.checkpoint(lambda piece: of(*piece), policy=policy), (pieces(read), pieces(batch.actions)))
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
        params: Any, batch: Batch, weight: Factors, dtype: DTypeLike, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], TokenSums]:
        model = nnx.merge(graph, params)
        hidden = model.hidden(batch, dtype, key)
        nll, log_partition, right = token_losses(model, hidden, batch, chunks)
        value = (weight.positions * (nll + z_loss * jnp.square(log_partition))).sum()
        # What is reported does not depend on how the loss is averaged, nor on the z-loss.
        sums = summed(nll, right, batch.targets, batch.loss_weight, batch.source)
        if len(batch.actions):  # a batch without parallel actions pays nothing for them
            nll, log_partition, right = action_losses(model, hidden, batch)
            value += (weight.actions * (nll + z_loss * jnp.square(log_partition))).sum()
            of_actions = summed(nll, right, batch.actions, batch.action_weight, action_sources(batch))
            sums = jax.tree.map(jnp.add, sums, of_actions)
        return value, dataclasses.replace(sums, tokens=(batch.segment > 0).sum().astype(jnp.float32))

    def summed(
        nll: Float[Array, "N M"],
        right: Float[Array, "N M"],
        targets: Int[Array, "N M"],
        counted: Float[Array, "N M"],
        source: Int[Array, "N M"],
    ) -> TokenSums:
        """Sums over targets, without the count of positions."""
        kinds = [vocabulary.range(kind) for kind in KINDS]
        of_kind = [counted * ((targets >= ids.start) & (targets < ids.stop)) for ids in kinds]
        return TokenSums(
            kind_nll=jnp.stack([(mask * nll).sum() for mask in of_kind]),
            kind_weight=jnp.stack([mask.sum() for mask in of_kind]),
            source_nll=by_source(counted * nll, source, sources),
            source_weight=by_source(counted, source, sources),
            source_correct=by_source(counted * right, source, sources),
            tokens=jnp.zeros(()),
        )

    return loss
