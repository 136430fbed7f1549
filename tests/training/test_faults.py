"""What a long run must survive: batches that are not finite, losses that jump, being asked to stop."""

import os
import signal
import time

import jax
import numpy as np
import pytest

from generalist.config.run import TrainingConfig
from generalist.data.batch import Batch
from generalist.model.config import ModelConfig, ModelSpec
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.interrupt import Interrupt
from generalist.training.interval import Interval
from generalist.training.loss import TokenSums
from generalist.training.optimizer import schedule
from generalist.training.step import StepMetrics
from generalist.training.token_trainer import make_trainer
from generalist.training.tokens import TokenReadout
from generalist.training.watch import SETTLED, Watch

SPEC = ModelSpec(
    config=ModelConfig(width=16, layers=1, heads=2, kv_heads=1, head_size=8, hidden=16),
    vocabulary=Vocabulary(text=20, continuous=0, discrete=0),
    projection_width=5,
    patches=False,
    frames=False,
)
READOUT = TokenReadout(["atari", "emoji", "prose"], positions=12, flops=1.0, peak=1.0)


def batch(value: float) -> Batch:
    """Text after one observed tensor with this value in it."""
    zeros = np.zeros((2, 6), np.int32)
    modality = np.full_like(zeros, Modality.TEXT)
    modality[:, 0] = Modality.TENSOR
    return Batch(
        tokens=zeros,
        targets=zeros + 3,
        loss_weight=np.ones(zeros.shape, np.float32),
        modality=modality,
        local_position=zeros,
        position=np.tile(np.arange(6, dtype=np.int32), (2, 1)),
        segment=zeros + 1,
        payload_index=zeros,
        image=zeros,
        block=zeros,
        source=zeros + 1,
        tensors=np.full((2, 5), value, np.float32),
        frames=np.zeros((0, 80, 80, 3), np.uint8),
        patches=np.zeros((0, 16, 16, 3), np.uint8),
        intervals=np.zeros((0, 4), np.int32),
        images=np.zeros((0, 0, 0, 3), np.uint8),
        row_images=np.zeros((2, 0), np.int32),
    )


@pytest.mark.slow
def test_a_batch_that_is_not_finite_leaves_no_trace():
    training = TrainingConfig(steps=9, warmup=1, learning_rate=1e-2)
    trainer = make_trainer(SPEC, training, weights=[1.0, 1.0, 1.0])
    state, key = trainer.initialize({}), jax.random.key(0)
    assert state.mean_params == {}
    with jax.set_mesh(trainer.mesh):
        state, good = trainer.step(state, trainer.place(batch(1.0)), key)
        before = jax.tree.map(np.asarray, (state.params, state.opt_state))
        state, bad = trainer.step(state, trainer.place(batch(np.nan)), key)
        after = jax.tree.map(np.asarray, (state.params, state.opt_state))
        state, later = trainer.step(state, trainer.place(batch(1.0)), key)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert int(state.step) == 3
    assert (float(good.skipped), float(bad.skipped), float(later.skipped)) == (0, 1, 0)
    assert not np.isfinite(float(bad.loss))
    np.testing.assert_array_equal(np.asarray(bad.parts.source_weight) > 0, [False, True, False])
    assert np.isfinite(float(later.loss))
    interval = Interval()
    interval.entries = [good, bad, later]
    values = interval.summarize(READOUT, schedule(training), state.params, 3)
    assert values["skipped"] == 1
    np.testing.assert_allclose(values["loss"], (float(good.loss) + float(later.loss)) / 2, rtol=1e-6)
    interval.entries = [bad, bad]
    values = interval.summarize(READOUT, schedule(training), state.params, 3)
    assert (values["skipped"], values["loss"], values["padding"]) == (2, 0, 1)


def entry(loss: float, *, skipped: bool = False) -> StepMetrics:
    weight = np.array([0.0, 2.0, 3.0], np.float32)
    nought, kinds = np.zeros((), np.float32), np.zeros((3,), np.float32)
    return StepMetrics(
        loss=np.asarray(loss, np.float32),
        gradient_norm=nought,
        skipped=np.asarray(skipped, np.float32),
        parts=TokenSums(
            kind_nll=kinds,
            kind_weight=kinds,
            source_nll=weight * np.float32(loss),
            source_weight=weight,
            source_correct=weight,
            tokens=nought,
        ),
    )


def test_skipped_steps_are_told_and_too_many_in_a_row_end_the_run():
    said: list[str] = []
    watch = Watch(READOUT, 2, said.append)
    for step, skipped in enumerate([True, True, False, True, True], start=1):
        watch.look(entry(0.0 if skipped else 2.0, skipped=skipped), step)
    assert len(said) == 4
    assert said[0] == "step 1 skipped: its loss or gradient is not finite; its batch came from emoji, prose"
    with pytest.raises(FloatingPointError, match="at step 6, number 3 in a row; its batch came from emoji, prose"):
        watch.look(entry(0.0, skipped=True), 6)


def test_a_jump_of_the_loss_is_told_with_its_sources():
    said: list[str] = []
    watch, rng = Watch(READOUT, 0, said.append), np.random.default_rng(0)
    for step in range(2 * SETTLED):
        watch.look(entry(4.0 - step / SETTLED + rng.normal() * 0.1), step)
    assert not said, "a loss that falls, and wavers as usual, is no news"
    watch.look(entry(7.5), 2 * SETTLED)
    assert len(said) == 1
    assert said[0].startswith(f"step {2 * SETTLED}: the loss is 7.50, usually 2.")
    assert said[0].endswith("emoji 7.50, prose 7.50")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_the_second_an_order(number: signal.Signals):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert signal.getsignal(number) is before


def test_a_limit_below_nought():
    with pytest.raises(ValueError, match="training.skip_limit must not be negative"):
        TrainingConfig(skip_limit=-1)
