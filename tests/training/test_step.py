"""The training step: it learns, and gives the same on every mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from generalist.config.run import TrainingConfig
from generalist.data import rows
from generalist.data.batch import Batch
from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.params import flat
from generalist.model.transformer import create
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training import loss
from generalist.training.optimizer import schedule
from generalist.training.sharding import make_mesh
from generalist.training.state import TrainState
from generalist.training.token_trainer import TokenTrainer, make_trainer

TINY = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, head_size=8, hidden=48)
SPEC = ModelSpec(
    config=TINY,
    vocabulary=Vocabulary(text=40, continuous=16, discrete=8),
    projection_width=5,
    patches=False,
    frames=False,
)
STEPS = 20
SHARDED = 8
"""Steps of which the losses on a mesh are compared."""
CONFIG = TrainingConfig(steps=30, warmup=3, learning_rate=1e-2)


def counting_batch(rows: int = 8, length: int = 16, shards: int = 1) -> Batch:
    """Every token is one more than the last: easy to learn. Each row begins with a tensor; two thirds of the rows are of source
    1, and the rows of source 0 have only half of their loss."""
    start = np.arange(rows, dtype=np.int32)[:, None]
    tokens = (start + np.arange(length, dtype=np.int32)[None]) % 40
    zeros = np.zeros_like(tokens)
    modality = zeros + int(Modality.TEXT)
    modality[:, 0] = Modality.TENSOR
    source = zeros + (start % 3 > 0)
    payload = zeros.copy()
    payload[:, 0] = np.arange(rows) % (rows // shards)
    return Batch(
        tokens=tokens,
        targets=(tokens + 1) % 40,
        loss_weight=np.where((source == 0) & (np.arange(length)[None] < length // 2), 0, 1).astype(np.float32),
        modality=modality,
        local_position=zeros,
        position=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        segment=zeros + 1,
        payload_index=payload,
        image=zeros,
        block=zeros,
        source=source,
        tensors=np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32),
        frames=np.zeros((0, 80, 80, 3), np.uint8),
        patches=np.zeros((0, 16, 16, 3), np.uint8),
        intervals=np.zeros((0, 4), np.int32),
        images=np.zeros((0, 0, 0, 3), np.uint8),
        row_images=np.zeros((rows, 0), np.int32),
        shards=shards,
    )


def trainer_on(data: int, fsdp: int, tensor: int, sequence: int = 1, spec: ModelSpec = SPEC, **changed) -> TokenTrainer:
    axes = {"data_axis": data, "fsdp_axis": fsdp, "tensor_axis": tensor, "sequence_axis": sequence}
    return make_trainer(spec, dataclasses.replace(CONFIG, **axes, **changed), weights=[1.0, 3.0])


@functools.cache
def initial_state() -> TrainState:
    """Drawn once: compiling it anew for each mesh would take most of the time."""
    return jax.tree.map(np.asarray, on_one_device().initialize({}))


def losses(trainer: TokenTrainer, steps: int, batch: Batch | None = None) -> list[float]:
    placed = trainer.place(counting_batch() if batch is None else batch)
    state, key, seen = jax.device_put(initial_state(), trainer.state_shardings), jax.random.key(0), []
    with jax.set_mesh(trainer.mesh):
        for _ in range(steps):
            state, metrics = trainer.step(state, placed, key)
            seen.append(float(metrics.loss))
    return seen


def on_one_device() -> TokenTrainer:
    training = dataclasses.replace(CONFIG, fsdp_axis=1)
    return make_trainer(SPEC, training, make_mesh(training, jax.devices()[:1]), weights=[1.0, 3.0])


@functools.cache
def one_device() -> list[float]:
    return losses(on_one_device(), STEPS)


@pytest.mark.slow
def test_it_learns_and_starts_alike_on_every_mesh():
    fresh = trainer_on(1, 4, 2).initialize({})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), fresh, initial_state())
    seen = one_device()
    assert seen[-1] < 0.5 * seen[0]


# Every axis alone, and mixtures; benchmarks/meshes.py goes through all twenty factorizations.
MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 2, 4, 1), (1, 1, 1, 8), (2, 2, 2, 1), (1, 2, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_gives_the_losses_of_one_device(mesh: tuple[int, ...]):
    np.testing.assert_allclose(losses(trainer_on(*mesh), SHARDED), one_device()[:SHARDED], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shards", "changed"),
    [
        (4, {}),
        (4, {"micro_batches": 4}),
        (8, {"micro_batches": 2, "loss_chunks": 4}),
        (1, {"loss_chunks": 2}),
    ],
    ids=str,
)
def test_shards_micro_batches_and_chunks_give_the_same_step(shards: int, changed: dict[str, int]):
    trainer = trainer_on(1, 2, 2, 2, **changed)
    found = losses(trainer, SHARDED, counting_batch(shards=shards))
    np.testing.assert_allclose(found, one_device()[:SHARDED], rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_logits_of_positions_without_a_loss_are_not_computed(share: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "PIECE", 16)  # of 128 positions
    random = np.random.default_rng(0)
    weight = (random.random((8, 16)) < share).astype(np.float32)
    batch = jax.tree.map(jnp.asarray, dataclasses.replace(counting_batch(), loss_weight=weight))
    hidden, graph_and_params = random.normal(size=(8, 16, 32)).astype(np.float32), nnx.split(create(SPEC, 0))

    def total(params, hidden, chunks: int):
        parts = loss.token_losses(nnx.merge(graph_and_params[0], params), hidden, batch, chunks)
        return sum((weight * part).sum() for part in parts), parts

    of = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (value, parts), gradients = of(graph_and_params[1], jnp.asarray(hidden), 0)
    (plain_value, plain_parts), plain_gradients = of(graph_and_params[1], jnp.asarray(hidden), 1)
    np.testing.assert_allclose(value, plain_value, rtol=1e-5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), gradients, plain_gradients)
    for part, plain in zip(parts, plain_parts, strict=True):
        np.testing.assert_allclose(part * weight, plain * weight, rtol=1e-5)
    # Skipped pieces are 0, whose log-partition would not be.
    assert int((parts[1] != 0).sum()) == -(-int(weight.sum()) // 16) * 16


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_mean_over_sources(count: int):
    """However many tokens a source has, its share of the loss is its weight."""
    trainer, batch = trainer_on(1, 8, 1, average="sources", micro_batches=count), counting_batch(shards=2)
    state = jax.device_put(initial_state(), trainer.state_shardings)
    with jax.set_mesh(trainer.mesh):
        _, metrics = trainer.step(state, trainer.place(batch), jax.random.key(0))
    means = np.asarray(metrics.parts.source_nll) / np.asarray(metrics.parts.source_weight)
    assert float(metrics.parts.source_weight[1]) > 3 * float(metrics.parts.source_weight[0])
    np.testing.assert_allclose(float(metrics.loss), means @ [0.25, 0.75], rtol=2e-3)  # and the z-loss


@pytest.mark.slow
def test_stochastic_depth_skips_in_training_alone_and_keeps_the_mean():
    config = dataclasses.replace(TINY, stochastic_depth=0.5, layers=1)
    spec = dataclasses.replace(SPEC, config=config)
    batch = jax.tree.map(jnp.asarray, counting_batch())
    model, plain = (
        create(spec, 0),
        create(dataclasses.replace(spec, config=dataclasses.replace(config, stochastic_depth=0.0)), 0),
    )
    np.testing.assert_array_equal(model.hidden(batch), plain.hidden(batch))
    drawn = [np.asarray(model.hidden(batch, key=jax.random.key(seed))) for seed in range(3)]
    assert not np.allclose(drawn[0], drawn[1]) and not np.allclose(drawn[1], drawn[2])
    kept = np.stack([np.asarray(model._kept(8, np.float32, jax.random.key(seed))) for seed in range(400)])
    assert set(np.unique(kept)) == {0.0, 2.0}
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.05)


def test_moments_are_sharded_like_their_parameters():
    trainer = trainer_on(1, 2, 4)
    kernels = [
        leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(trainer.abstract_state.opt_state)
        if "qkv" in str(path)
    ]
    assert len(kernels) == 2  # first and second moment
    assert set(kernels) == {trainer.abstract_state.params["blocks"]["attention"]["qkv"]["kernel"].sharding.spec}


@pytest.mark.slow
def test_muon_orthogonalises_each_layers_matrices_and_leaves_the_rest_to_adamw():
    trainer = trainer_on(1, 2, 4, optimizer="muon")
    state, batch, key = trainer.initialize({}), trainer.place(counting_batch()), jax.random.key(0)
    held = {path for path, leaf in flat(state.opt_state).items() if leaf.size > 1}
    assert sum("attention/qkv/kernel" in path for path in held) == 1  # a momentum, where AdamW has two moments
    assert sum("tokens/text" in path for path in held) == 2
    specs = {path: leaf.sharding.spec for path, leaf in flat(trainer.abstract_state.opt_state).items() if "qkv" in path}
    assert set(specs.values()) == {trainer.abstract_state.params["blocks"]["attention"]["qkv"]["kernel"].sharding.spec}
    before = np.asarray(state.params["blocks"]["attention"]["out"]["kernel"])
    for _ in range(2):  # the first step has a learning rate of 0
        state, _ = trainer.step(state, batch, key)
    after = np.asarray(state.params["blocks"]["attention"]["out"]["kernel"])
    rate = CONFIG.learning_rate / CONFIG.warmup
    for old, new in zip(before, after, strict=True):
        singular = np.linalg.svd((new - old * (1 - rate * CONFIG.weight_decay)) / rate, compute_uv=False)
        expected = 0.2 * max(old.shape) ** 0.5
        assert singular.max() < 1.3 * expected
        assert np.median(singular) > 0.7 * expected  # five iterations do not reach the smallest


@pytest.mark.slow
def test_muon_learns():
    trainer = trainer_on(1, 8, 1, optimizer="muon")
    state, batch, key = trainer.initialize({}), trainer.place(counting_batch()), jax.random.key(0)
    losses = []
    for _ in range(20):
        state, metrics = trainer.step(state, batch, key)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.5 * losses[0]


def test_schedule_warms_up_and_ends_low():
    rate = schedule(CONFIG)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(float(rate(3)), CONFIG.learning_rate, rtol=1e-6)
    np.testing.assert_allclose(float(rate(30)), CONFIG.learning_rate * CONFIG.final_fraction, rtol=1e-5)


@pytest.mark.slow
def test_the_moving_average_follows_the_weights():
    trainer = trainer_on(1, 8, 1, ema=0.75)
    state, batch, key = trainer.initialize({}), trainer.place(counting_batch()), jax.random.key(0)

    def weights(params) -> np.ndarray:
        return np.asarray(params["blocks"]["attention"]["qkv"]["kernel"])

    expected = weights(state.mean_params)
    np.testing.assert_array_equal(expected, weights(state.params))
    with jax.set_mesh(trainer.mesh):
        for step in range(30):
            state, _ = trainer.step(state, batch, key)
            share = max(0.25, 9 / (10 + step))
            expected = expected + share * (weights(state.params) - expected)
    np.testing.assert_allclose(weights(state.mean_params), expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(weights(state.mean_params), weights(state.params), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("small", [rows.SMALL, 4], ids=["products", "sorted"])
def test_a_mesh_adds_up_gradients_of_rows_without_a_scatter(small: int, monkeypatch: pytest.MonkeyPatch):
    """The forms for GPUs, which shards and every axis of the mesh divide."""
    monkeypatch.setattr(rows, "target_platform", lambda: "gpu")
    monkeypatch.setattr(rows, "SMALL", small)
    found = losses(trainer_on(1, 2, 2, 2, micro_batches=2), 10, counting_batch(shards=4))
    np.testing.assert_allclose(found, one_device()[:10], rtol=1e-5)
