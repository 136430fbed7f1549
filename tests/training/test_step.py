"""The training step: it learns, and gives the same on every mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from generalist.config import TrainingConfig
from generalist.data.batch import Batch
from generalist.model.config import ModelConfig, ModelSpec
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.optimizer import schedule
from generalist.training.step import Trainer, make_trainer

TINY = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, head_size=8, hidden=48)
SPEC = ModelSpec(
    config=TINY,
    vocabulary=Vocabulary(text=40, continuous=16, discrete=8),
    projection_width=5,
    patches=False,
    frames=False,
)
CONFIG = TrainingConfig(steps=30, warmup=3, learning_rate=1e-2)


def counting_batch(rows: int = 8, length: int = 16) -> Batch:
    """Every token is one more than the last: easy to learn."""
    start = np.arange(rows, dtype=np.int32)[:, None]
    tokens = (start + np.arange(length, dtype=np.int32)[None]) % 40
    zeros = np.zeros_like(tokens)
    return Batch(
        tokens=tokens,
        targets=(tokens + 1) % 40,
        loss_weight=np.ones(tokens.shape, np.float32),
        modality=zeros,
        local_position=zeros,
        position=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        segment=zeros + 1,
        payload_index=zeros,
        image=zeros,
        source=zeros + (start % 2),
        tensors=np.zeros((0, 5), np.float32),
        frames=np.zeros((0, 80, 80, 3), np.uint8),
        patches=np.zeros((0, 16, 16, 3), np.uint8),
        intervals=np.zeros((0, 4), np.int32),
        images=np.zeros((0, 0, 0, 3), np.uint8),
        row_images=np.zeros((rows, 0), np.int32),
    )


def trainer_on(data: int, fsdp: int, tensor: int, sequence: int = 1, spec: ModelSpec = SPEC, **changed) -> Trainer:
    axes = {"data_axis": data, "fsdp_axis": fsdp, "tensor_axis": tensor, "sequence_axis": sequence}
    return make_trainer(spec, dataclasses.replace(CONFIG, **axes, **changed), weights=[1.0, 3.0])


def losses(trainer: Trainer, steps: int) -> list[float]:
    state, batch, key, seen = trainer.initialize({}), trainer.place(counting_batch()), jax.random.key(0), []
    with jax.set_mesh(trainer.mesh):
        for _ in range(steps):
            state, metrics = trainer.step(state, batch, key)
            seen.append(float(metrics.loss))
    return seen


def test_it_learns():
    seen = losses(trainer_on(1, 8, 1), 30)
    assert seen[-1] < 0.5 * seen[0]


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_every_mesh_gives_the_same_losses(mesh: tuple[int, ...]):
    np.testing.assert_allclose(losses(trainer_on(*mesh), 4), losses(trainer_on(1, 8, 1), 4), rtol=2e-5)


def test_moments_are_sharded_like_their_parameters():
    trainer = trainer_on(1, 2, 4)
    kernels = [
        leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(trainer.abstract_state.opt_state)
        if "qkv" in str(path)
    ]
    assert len(kernels) == 2  # first and second moment
    assert set(kernels) == {trainer.abstract_state.params["blocks"]["attention"]["qkv"]["kernel"].sharding.spec}


def test_schedule_warms_up_and_ends_low():
    rate = schedule(CONFIG)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(float(rate(3)), CONFIG.learning_rate, rtol=1e-6)
    np.testing.assert_allclose(float(rate(30)), CONFIG.learning_rate * CONFIG.final_fraction, rtol=1e-5)


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
