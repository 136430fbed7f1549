"""The one jitted training step, and the state it carries.

Dimension key: B rows, L positions, V vocabulary, K kinds of token, S sources.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from generalist.data.batch import ArrayLike, Batch
from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.transformer import create
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.sharding import flat, parameter_shardings, path_string, rows_sharding
from generalist.weights.folder import nested

TRUNK = re.compile(r"(blocks|final_norm)/|time_table$|(tokens|output)/text$")
"""Paths of what a pretrained language model brings."""
KINDS = ("text", "continuous", "discrete")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step; also holds shapes or shardings in its leaves' places."""

    step: Any
    params: Any
    """What is trained."""
    frozen: Any
    """What stays as it is: no gradient, no optimizer state; empty unless a frozen trunk was given."""
    mean_params: Any
    """Exponential moving average of `params`, which evaluation uses; empty unless it is asked for."""
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """Sums over a batch, so that several steps can be averaged exactly; numpy once they are fetched."""

    loss: Float[ArrayLike, ""]
    """Mean weighted negative log-likelihood plus z-loss, in nats a token."""
    gradient_norm: Float[ArrayLike, ""]
    kind_nll: Float[ArrayLike, "K"]
    kind_weight: Float[ArrayLike, "K"]
    source_nll: Float[ArrayLike, "S"]
    source_weight: Float[ArrayLike, "S"]
    source_correct: Float[ArrayLike, "S"]
    tokens: Float[ArrayLike, ""]
    """Positions that are not padding."""
    skipped: Float[ArrayLike, ""]
    """1 where the loss or a gradient was not finite: the parameters are as before, and all sums above are 0; else 0."""
    skipped_sources: Float[ArrayLike, "S"]
    """Of a skipped step: how much of the loss's weight each source had; else 0."""


def token_nll(logits: Float[Array, "B L V"], batch: Batch) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """Negative log-likelihood of each target in nats, and the log-partition."""
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    return log_partition - picked, log_partition


def divided(params: Any, config: ModelConfig) -> tuple[Any, Any]:
    """Nested parameters (or anything in their places) as those that are trained and those that are frozen, each nested."""
    if config.trunk == "none" or not config.trunk_frozen:
        return params, {}

    def part(tree: Any, frozen: bool, prefix: str = "") -> Any:
        found = {}
        for name, value in tree.items():
            path = f"{prefix}{name}"
            if isinstance(value, dict):
                if inner := part(value, frozen, f"{path}/"):
                    found[name] = inner
            elif bool(TRUNK.match(path)) == frozen:
                found[name] = value
        return found

    return part(params, False), part(params, True)


def united(params: Any, others: Any) -> Any:
    """Two nests in one; where both have a parameter, the second one's."""
    if not (isinstance(params, dict) and isinstance(others, dict)):
        return others
    return params | {name: united(params.get(name, {}), value) for name, value in others.items()}


def make_loss(graph, vocabulary: Vocabulary, sources: int, z_loss: float, dtype: DTypeLike) -> Callable:
    """The function that is differentiated: parameters, frozen ones, batch and key to the loss and its parts."""

    def loss(params, frozen, batch: Batch, key: Array):
        model = nnx.merge(graph, united(params, frozen))
        logits = model.logits(model.hidden(batch, dtype, key))
        nll, log_partition = token_nll(logits, batch)
        weight = batch.loss_weight
        total = jnp.maximum(weight.sum(), 1.0)
        value = (weight * (nll + z_loss * jnp.square(log_partition))).sum() / total
        correct = (jnp.argmax(logits, axis=-1) == batch.targets) * weight
        kinds = [vocabulary.range(kind) for kind in KINDS]
        of_kind = [weight * ((batch.targets >= ids.start) & (batch.targets < ids.stop)) for ids in kinds]

        def by_source(x):
            return jax.ops.segment_sum(x.reshape(-1), batch.source.reshape(-1), num_segments=sources)

        parts = {
            "kind_nll": jnp.stack([(mask * nll).sum() for mask in of_kind]),
            "kind_weight": jnp.stack([mask.sum() for mask in of_kind]),
            "source_nll": by_source(weight * nll),
            "source_weight": by_source(weight),
            "source_correct": by_source(correct),
            "tokens": (batch.segment > 0).sum().astype(jnp.float32),
        }
        return value, parts

    return loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """The compiled pieces of a run: how to start, how to step, and where everything lives on the mesh."""

    graph: nnx.GraphDef
    initialize: Callable[[Any], TrainState]
    """Fresh parameters, except for those of a pretrained trunk, given nested; {} without one."""
    step: Callable[[TrainState, Batch, Array], tuple[TrainState, StepMetrics]]
    """Donates the state: use only the returned one."""
    state_shardings: TrainState
    abstract_state: TrainState
    mesh: Mesh
    encode: Callable[[Array], Array] | None = None
    """Pixels to features, by a frozen encoder. Outside the step: it has no gradient and no optimizer state."""

    def place(self, batch: Batch) -> Batch:
        """A host's part of a batch, moved to the devices as the step wants it, images as features."""
        placed = jax.tree.map(lambda leaf: jax.device_put(leaf, rows_sharding(leaf.shape, self.mesh)), batch)
        if self.encode is None or not len(placed.images) or placed.images.dtype != np.uint8:
            return placed
        return dataclasses.replace(placed, images=self.encode(placed.images))


def make_trainer(
    spec: ModelSpec,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    sources: int,
    z_loss: float,
    dtype: DTypeLike,
    seed: int,
    ema: float = 0.0,
    encode: Callable[[Array], Array] | None = None,
) -> Trainer:
    """Builds the trainer; nothing is computed before `initialize` is called.

    Args:
        ema: decay of the moving average of the parameters; 0 keeps none.
    """

    def fresh(trunk: Any) -> TrainState:
        drawn = nnx.to_pure_dict(nnx.state(create(spec, seed), nnx.Param))
        params, frozen = divided(united(drawn, trunk), spec.config)
        # Numbers that are never updated need no more precision than they are computed with; norms and biases are small.
        frozen = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if re.search(r"(scale|bias)$", path_string(path)) else leaf.astype(dtype), frozen
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            mean_params=jax.tree.map(jnp.copy, params) if ema else {},
            opt_state=optimizer.init(params),
        )

    graph, abstract_model = nnx.split(nnx.eval_shape(lambda: create(spec, seed)), nnx.Param)
    abstract_all = nnx.to_pure_dict(abstract_model)
    all_shardings = parameter_shardings(abstract_all, mesh)
    abstract_params, _ = divided(abstract_all, spec.config)
    shardings, frozen_shardings = divided(all_shardings, spec.config)
    replicated = NamedSharding(mesh, P())
    # Moments are sharded like their parameters: without this, jit would give them whole to every device.
    opt_shardings = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, abstract_params),
        shardings,
        transform_non_params=lambda _: replicated,
    )
    state_shardings = TrainState(
        step=replicated,
        params=shardings,
        frozen=frozen_shardings,
        mean_params=shardings if ema else {},
        opt_state=opt_shardings,
    )
    loss = make_loss(graph, spec.vocabulary, sources, z_loss, dtype)

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, StepMetrics]:
        # One key a step, derived from its number: a resumed run draws what the uninterrupted one would have drawn.
        (value, parts), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.frozen, batch, jax.random.fold_in(key, state.step)
        )
        norm = optax.tree.norm(gradients)
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # One bad batch must not end a long run, nor leave anything in the moments: the step is as if it had not been.
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        # Young averages follow faster: the first weights, which are random, are soon forgotten.
        share = jnp.where(sound, jnp.maximum(1 - ema, 9 / (10 + state.step)), 0)
        mean_params = jax.tree.map(
            lambda mean, new: mean + share * (new - mean), state.mean_params, params if ema else {}
        )
        counted = {"loss": value, "gradient_norm": norm, **parts}
        metrics = StepMetrics(
            **jax.tree.map(lambda leaf: jnp.where(sound, leaf, 0), counted),
            skipped=1.0 - sound,
            skipped_sources=jnp.where(sound, 0, parts["source_weight"]),
        )
        following = dataclasses.replace(
            state, step=state.step + 1, params=params, mean_params=mean_params, opt_state=opt_state
        )
        return following, metrics

    def initialize(trunk: Any) -> TrainState:
        placed = {path: jax.device_put(array, of_path[path]) for path, array in flat(trunk).items()}
        return jax.jit(fresh, out_shardings=state_shardings)(nested(placed))

    of_path = flat(all_shardings)
    abstract_state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(fresh, {}),
        state_shardings,
    )
    return Trainer(
        graph=graph,
        initialize=initialize,
        step=jax.jit(step, donate_argnums=(0,), out_shardings=(state_shardings, replicated)),
        state_shardings=state_shardings,
        abstract_state=abstract_state,
        mesh=mesh,
        encode=encode,
    )
