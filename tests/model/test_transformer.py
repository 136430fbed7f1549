"""The model: packing changes nothing, payloads stand where they belong, the cache gives what the whole gives."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from generalist.data.batch import Batch
from generalist.inference.rows import POSITIONAL
from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.transformer import Transformer, create
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=40, continuous=16, discrete=8)
TINY = ModelConfig(
    width=32, layers=2, heads=4, kv_heads=2, head_size=8, hidden=48, frame_size=16, frame_channels=8, patch_channels=8
)
SPEC = ModelSpec(config=TINY, vocabulary=VOCABULARY, projection_width=5, patches=True, frames=True)


def mixed_batch(rows: int = 2, length: int = 12, seed: int = 0) -> Batch:
    """Random tokens with one tensor, one frame and one patch a row, at positions 1, 2 and 3."""
    rng = np.random.default_rng(seed)
    zeros = np.zeros((rows, length), np.int32)
    modality, payload = np.full_like(zeros, Modality.TEXT), zeros.copy()
    for column, kind in ((1, Modality.TENSOR), (2, Modality.FRAME), (3, Modality.PATCH)):
        modality[:, column], payload[:, column] = kind, np.arange(rows)
    return Batch(
        tokens=rng.integers(0, 40, (rows, length)).astype(np.int32),
        targets=rng.integers(0, 40, (rows, length)).astype(np.int32),
        loss_weight=np.ones((rows, length), np.float32),
        modality=modality,
        local_position=zeros,
        position=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        segment=zeros + 1,
        payload_index=payload,
        image=zeros,
        block=zeros,
        source=zeros,
        tensors=rng.normal(size=(rows, 5)).astype(np.float32),
        frames=rng.integers(0, 256, (rows, 16, 16, 3)).astype(np.uint8),
        patches=rng.integers(0, 256, (rows, 16, 16, 3)).astype(np.uint8),
        intervals=np.tile(np.array([[0, 64, 64, 128]], np.int32), (rows, 1)),
        images=np.zeros((0, 0, 0, 3), np.uint8),
        row_images=np.zeros((rows, 0), np.int32),
    )


def hidden(model: Transformer, batch: Batch, **how: object) -> np.ndarray:
    """Final hidden states, from and to numpy."""
    return np.asarray(model.hidden(jax.tree.map(jnp.asarray, batch), **how))


def rows_only(batch: Batch, keep: slice, columns: slice) -> Batch:
    """A part of the positions, with all payloads."""
    positional = {name: getattr(batch, name)[keep, columns] for name in POSITIONAL}
    return dataclasses.replace(batch, **positional, row_images=batch.row_images[keep])


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "products", "block"])
def test_packed_rows_equal_rows_of_their_own(remat: Literal["none", "products", "block"]):
    """Two examples side by side in one row give what each gives alone."""
    model = create(dataclasses.replace(SPEC, config=dataclasses.replace(TINY, remat=remat)), 0)
    batch = mixed_batch()
    packed = jax.tree.map(lambda x: x, batch)
    flat = ("tensors", "frames", "patches", "intervals", "actions", "action_weight", "action_from", "shards")
    names = [f.name for f in dataclasses.fields(Batch) if f.name not in flat]
    packed = dataclasses.replace(batch, **{name: getattr(batch, name).reshape(1, -1) for name in names})
    packed = dataclasses.replace(packed, segment=np.repeat([[1, 2]], 12, axis=1).astype(np.int32))
    np.testing.assert_allclose(hidden(model, packed).reshape(2, 12, -1), hidden(model, batch), atol=2e-5)


@pytest.mark.slow
def test_future_and_other_payloads_do_not_matter():
    model, batch = create(SPEC, 0), mixed_batch()
    before = hidden(model, batch)
    later = dataclasses.replace(batch, tokens=np.where(np.arange(12)[None] >= 8, 7, batch.tokens).astype(np.int32))
    np.testing.assert_array_equal(before[:, :8], hidden(model, later)[:, :8])
    for name in ("tensors", "frames", "patches"):
        changed = getattr(batch, name).copy()
        changed[1] = 0
        after = hidden(model, dataclasses.replace(batch, **{name: changed}))
        np.testing.assert_array_equal(before[0], after[0])
        assert np.abs(before[1] - after[1]).max() > 1e-3, name


def test_a_batch_without_payloads_needs_no_embedder():
    spec = dataclasses.replace(SPEC, projection_width=0, patches=False, frames=False)
    batch = mixed_batch()
    empty = {name: getattr(batch, name)[:0] for name in ("tensors", "frames", "patches", "intervals")}
    text = dataclasses.replace(batch, modality=np.zeros_like(batch.modality), **empty)
    assert hidden(create(spec, 0), text).shape == (2, 12, 32)
    with pytest.raises(ValueError, match="frame"):
        hidden(create(spec, 0), dataclasses.replace(text, frames=batch.frames))


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 5, 11])
def test_cached_equals_uncached(cut: int):
    model, batch = create(SPEC, 0), mixed_batch()
    whole = hidden(model, batch)
    caches = model.empty_caches(2, 16)
    segment, position = np.zeros((2, 16), np.int32), np.zeros((2, 16), np.int32)
    parts = []
    for start, stop in ((0, cut), (cut, 12)):
        segment[:, start:stop], position[:, start:stop] = 1, np.arange(start, stop)
        part = jax.tree.map(jnp.asarray, rows_only(batch, slice(None), slice(start, stop)))
        new, caches = model.hidden_cached(part, caches, jnp.asarray(segment), jnp.asarray(position), jnp.int32(start))
        parts.append(np.asarray(new))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=2e-5)


def test_patch_positions_are_drawn_in_training_and_fixed_in_evaluation():
    model, batch = create(SPEC, 0), mixed_batch()
    np.testing.assert_array_equal(hidden(model, batch), hidden(model, batch))
    drawn = hidden(model, batch, key=jax.random.key(1))
    assert np.abs(drawn - hidden(model, batch)).max() > 1e-4


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"model.heads \(6\)"):
        ModelConfig(heads=6, kv_heads=4)
    with pytest.raises(ValueError, match="model.width must be at least 1"):
        ModelConfig(width=0)


@pytest.mark.slow
def test_layers_without_a_loop_give_the_same():
    batch = jax.tree.map(jnp.asarray, mixed_batch())

    def with_gradient(unrolled: int):
        config = dataclasses.replace(TINY, layers=3, layers_unrolled=unrolled)
        graph, params = nnx.split(create(dataclasses.replace(SPEC, config=config), 0), nnx.Param)
        loss = jax.jit(jax.value_and_grad(lambda params: jnp.square(nnx.merge(graph, params).hidden(batch)).mean()))
        traced = loss.trace(params).lower()
        loops = [line for line in traced.as_text().splitlines() if "stablehlo.while" in line]
        # Attention has loops too; the one over layers holds the kernels of all layers.
        return traced.compile()(params), sum("tensor<3x32x64xf32>" in line for line in loops)

    (looped, loops), (unrolled, none) = with_gradient(1), with_gradient(3)
    assert loops == 2 and none == 0  # forward and backward
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), looped, unrolled)


@pytest.mark.slow
def test_patch_channels_divide_into_the_groups_of_their_norm():
    with pytest.raises(ValueError, match="multiple of 4 up to 128, and of 32 above, got 132"):
        ModelConfig(patch_channels=132)
    wide = dataclasses.replace(TINY, patch_channels=160)
    assert np.isfinite(hidden(create(dataclasses.replace(SPEC, config=wide), 0), mixed_batch())).all()
