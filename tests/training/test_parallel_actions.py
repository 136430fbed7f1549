"""Parallel actions in training: the loss by hand, packed and alone, on every mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from generalist.config.run import TrainingConfig
from generalist.data import rows
from generalist.data.batch import Batch, BatchSpec
from generalist.data.packing import OpenBatch
from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.transformer import Transformer, create
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import Sequence
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training import loss as losses
from generalist.training.loss import TokenSums, action_losses, make_loss, token_weights
from generalist.training.sharding import make_mesh
from generalist.training.token_trainer import TokenTrainer, make_trainer

VOCABULARY = Vocabulary(text=40, continuous=16, discrete=8)
SPEC = ModelSpec(
    config=ModelConfig(width=32, layers=2, heads=4, kv_heads=2, head_size=8, hidden=48),
    vocabulary=VOCABULARY,
    projection_width=5,
    patches=False,
    frames=False,
    action_dimensions=3,
)
SIZES = BatchSpec(
    rows=8, length=16, tensors=128, projection_width=5, frames=0, frame_size=80, actions=128, action_dimensions=3
)
CONFIG = TrainingConfig(steps=30, warmup=3, learning_rate=1e-2)
STEPS = 8


def window(number: int) -> Sequence:
    """A text of two ids, of which the second is predicted, then up to six steps of one tensor each with an action of two or three
    dimensions: of continuous numbers, and the last one discrete."""
    rng = np.random.default_rng(number)
    steps, dimensions = int(rng.integers(1, 7)), int(rng.integers(2, 4))
    length = 2 + steps
    modality = np.array([Modality.TEXT] * 2 + [Modality.TENSOR] * steps, np.int32)
    actions = VOCABULARY.range("continuous").start + rng.integers(0, 16, (steps, 3))
    actions[:, 2] = VOCABULARY.range("discrete").start + rng.integers(0, 8, steps)
    weight = np.ones((steps, 3), np.float32)
    actions[:, dimensions:], weight[:, dimensions:] = VOCABULARY.pad, 0
    tokens = np.where(modality == Modality.TEXT, rng.integers(0, 40, length), VOCABULARY.pad).astype(np.int32)
    return Sequence(
        tokens=tokens,
        targets=np.array([tokens[1]] + [VOCABULARY.pad] * (length - 1), np.int32),
        loss_weight=np.array([1.0] + [0.0] * (length - 1), np.float32),
        modality=modality,
        local_position=np.zeros((length,), np.int32),
        payload_index=np.array([0, 0, *range(steps)], np.int32),
        image=np.zeros((length,), np.int32),
        block=np.zeros((length,), np.int32),
        tensors=rng.normal(size=(steps, 5)).astype(np.float32),
        frames=np.zeros((0, 80, 80, 3), np.uint8),
        patches=np.zeros((0, 16, 16, 3), np.uint8),
        intervals=np.zeros((0, 4), np.int32),
        images=np.zeros((0, 0, 0, 3), np.uint8),
        actions=actions.astype(np.int32),
        action_weight=weight,
        action_from=np.arange(2, length, dtype=np.int32),
    )


def packed(numbers: range, spec: BatchSpec, shards: int = 1) -> Batch:
    """These windows, dealt out to the shards in turn; even ones are of source 0, odd ones of source 1."""
    opened = [OpenBatch(dataclasses.replace(spec, shards=shards).shard, VOCABULARY.pad) for _ in range(shards)]
    for number in numbers:
        assert opened[number % shards].add(window(number), number % 2)
    parts = zip(*(jax.tree.leaves(one.batch) for one in opened), strict=True)
    structure = jax.tree.structure(dataclasses.replace(opened[0].batch, shards=shards))
    return jax.tree.unflatten(structure, [np.concatenate(several) for several in parts])


@functools.cache
def made(spec: ModelSpec) -> Transformer:
    return create(spec, 0)


def mean_loss(batch: Batch, average: str = "tokens", spec: ModelSpec = SPEC) -> tuple[float, TokenSums]:
    graph, params = nnx.split(made(spec), nnx.Param)
    loss, placed = make_loss(graph, VOCABULARY, 2, 0.0, 1), jax.tree.map(jnp.asarray, batch)
    factors = token_weights(placed, [1.0, 3.0], average)
    value, sums = loss(params, placed, factors, jnp.float32, jax.random.key(0))
    return float(value), sums


def test_the_loss_of_one_step_by_hand():
    one = dataclasses.replace(SIZES, rows=1, tensors=8, actions=8)
    number = next(number for number in range(99) if len(window(number).actions) == 1)
    batch = packed(range(number, number + 1), one)
    model = made(SPEC)
    hidden = np.asarray(model.hidden(jax.tree.map(jnp.asarray, batch)))[0, 2]  # of the step's only position
    head = model.action_head
    table = np.concatenate([np.asarray(rows_) for rows_ in model.output_table.tables])
    expected, count = 0.0, int(window(number).action_weight.sum())
    for dimension in range(count):
        inner = np.asarray(head.up.kernel[...]).T @ hidden + np.asarray(head.dimensions[...])[dimension]
        state = hidden + np.asarray(head.down.kernel[...]).T @ np.asarray(jax.nn.gelu(inner))
        logits = (table @ state).astype(np.float64)[VOCABULARY.text :]  # actions have no text
        target = window(number).actions[0, dimension] - VOCABULARY.text
        expected += np.log(np.exp(logits).sum()) - logits[target]
    alone = dataclasses.replace(batch, loss_weight=np.zeros_like(batch.loss_weight))
    value, sums = mean_loss(alone)
    np.testing.assert_allclose(value, expected / count, rtol=1e-5)
    np.testing.assert_allclose(sums.source_nll[number % 2], expected, rtol=1e-5)
    assert sums.kind_weight.tolist() == [0, 2, count - 2] and float(sums.source_weight.sum()) == count
    # The text's target counts as one more of the batch.
    both, more = mean_loss(batch)
    text = float(more.kind_nll[0])
    assert more.kind_weight.tolist() == [1, 2, count - 2]
    np.testing.assert_allclose(both, (expected + text) / (count + 1), rtol=1e-5)


def test_a_mean_over_sources_counts_actions():
    value, sums = mean_loss(packed(range(9), SIZES), "sources")
    means = np.asarray(sums.source_nll) / np.asarray(sums.source_weight)
    np.testing.assert_allclose(value, means @ [0.25, 0.75], rtol=1e-5)


def test_a_mean_over_tokens_counts_them_by_the_weights_of_their_sources():
    value, sums = mean_loss(packed(range(9), SIZES))
    weights = np.array([1.0, 3.0])
    mean = np.asarray(sums.source_nll) @ weights / (np.asarray(sums.source_weight) @ weights)
    np.testing.assert_allclose(value, mean, rtol=1e-5)
    # What is reported does not depend on the weights.
    np.testing.assert_allclose(sums.kind_weight.sum(), sums.source_weight.sum())


def test_packed_equals_alone():
    numbers = range(12)
    whole = mean_loss(packed(numbers, SIZES))[1]
    one = dataclasses.replace(SIZES, rows=1, tensors=8, actions=8)
    parts = [mean_loss(packed(range(number, number + 1), one))[1] for number in numbers]
    assert len(np.unique(packed(numbers, SIZES).segment)) > 2  # several in a row
    for field in dataclasses.fields(TokenSums):
        added = sum(np.asarray(getattr(part, field.name)) for part in parts)
        np.testing.assert_allclose(getattr(whole, field.name), added, rtol=1e-5, err_msg=field.name)


def test_pieces_of_actions_give_the_same(monkeypatch: pytest.MonkeyPatch):
    batch = jax.tree.map(jnp.asarray, packed(range(12), SIZES))
    model = made(SPEC)
    hidden = model.hidden(batch)
    expected = action_losses(model, hidden, batch)
    monkeypatch.setattr(losses, "fitting", lambda *sizes: 4)
    for left, right in zip(action_losses(model, hidden, batch), expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)


@pytest.mark.parametrize(("most", "again"), [(2**25, 0), (0, 3)])
def test_a_cpu_keeps_the_products_of_the_head(monkeypatch: pytest.MonkeyPatch, most: int, again: int):
    """Into the head's hidden layer, out of it and to the logits: beyond the bound the backward pass makes all three again."""
    batch, model = jax.tree.map(jnp.asarray, packed(range(12), SIZES)), made(SPEC)
    hidden = model.hidden(batch)
    monkeypatch.setattr(losses, "fitting", lambda *sizes: 4)
    monkeypatch.setattr(losses, "MOST_KEPT", most)
    graph, params = nnx.split(model, nnx.Param)

    def value(params: nnx.State, hidden: jax.Array) -> jax.Array:
        return action_losses(nnx.merge(graph, params), hidden, batch)[0].sum()

    forward = str(jax.make_jaxpr(value)(params, hidden)).count("dot_general[")
    both = str(jax.make_jaxpr(jax.grad(value, argnums=(0, 1)))(params, hidden)).count("dot_general[")
    assert forward == 3 and both == 3 + 2 * 3 + again


def test_a_batch_without_parallel_actions_needs_no_head():
    batch = packed(range(3), SIZES)
    none = dataclasses.replace(
        batch, actions=batch.actions[:0], action_weight=batch.action_weight[:0], action_from=batch.action_from[:0]
    )
    plain = dataclasses.replace(SPEC, action_dimensions=0)
    # The other parameters are initialised the same with and without a head.
    np.testing.assert_allclose(mean_loss(none, spec=plain)[0], mean_loss(none)[0], rtol=1e-6)
    with pytest.raises(ValueError, match="built without an action head"):
        mean_loss(batch, spec=plain)


def trained(trainer: TokenTrainer, batch: Batch) -> list[float]:
    """The losses of some steps on one batch."""
    placed, key, seen = trainer.place(batch), jax.random.key(0), []
    state = jax.device_put(initial_state(), trainer.state_shardings)
    with jax.set_mesh(trainer.mesh):
        for _ in range(STEPS):
            state, metrics = trainer.step(state, placed, key)
            seen.append(float(metrics.loss))
    return seen


def trainer_on(*axes: int, devices: int = 8, **changed) -> TokenTrainer:
    names = ("data_axis", "fsdp_axis", "tensor_axis", "sequence_axis")
    training = dataclasses.replace(CONFIG, **dict(zip(names, axes, strict=True)), **changed)
    return make_trainer(SPEC, training, make_mesh(training, jax.devices()[:devices]), weights=[1.0, 3.0])


@functools.cache
def initial_state():
    return jax.tree.map(np.asarray, trainer_on(1, 1, 1, 1, devices=1).initialize({}))


@functools.cache
def one_device() -> list[float]:
    return trained(trainer_on(1, 1, 1, 1, devices=1), packed(range(16), SIZES))


@pytest.mark.slow
def test_it_learns():
    assert one_device()[-1] < 0.8 * one_device()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "shards", "changed"),
    [
        ((8, 1, 1, 1), 1, {}),
        ((1, 2, 2, 2), 1, {}),
        ((2, 4, 1, 1), 8, {}),
        ((1, 2, 2, 2), 4, {"micro_batches": 2}),
        ((1, 1, 1, 8), 2, {"micro_batches": 2, "loss_chunks": 2}),
    ],
    ids=str,
)
def test_meshes_shards_and_micro_batches_give_the_losses_of_one_device(mesh, shards: int, changed: dict[str, int]):
    found = trained(trainer_on(*mesh, **changed), packed(range(16), SIZES, shards))
    np.testing.assert_allclose(found, one_device(), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("small", [rows.SMALL, 4], ids=["products", "sorted"])
def test_positions_are_gathered_without_a_scatter(small: int, monkeypatch: pytest.MonkeyPatch):
    """The forms for GPUs."""
    monkeypatch.setattr(rows, "target_platform", lambda: "gpu")
    monkeypatch.setattr(rows, "SMALL", small)
    found = trained(trainer_on(1, 2, 2, 2, micro_batches=2), packed(range(16), SIZES, 4))
    np.testing.assert_allclose(found, one_device(), rtol=2e-5)
