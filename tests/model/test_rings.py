"""Rings of layers with a window: in parts of any length, also longer than the window, the same as whole rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from generalist.data.batch import Batch, BatchSpec
from generalist.model.attention import Cache
from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.rings import cache_slots, ring_of
from generalist.model.transformer import create
from generalist.tokenizers.vocabulary import Vocabulary

PARTS = (7, 1, 1, 30, 1, 7, 1, 30, 1)  # of rows with the positions below, longer than every ring
VALID = np.ones((3, sum(PARTS)), bool)
VALID[0, :5] = VALID[1, 3:7] = VALID[2, 9:31] = VALID[1, 39:50] = False
VALID[0, 8] = False  # a part of one position that is padding in one row


def rows(valid: np.ndarray) -> Batch:
    """Rows of random text, (3, 79), with padding where nothing is valid."""
    spec = BatchSpec(rows=len(valid), length=valid.shape[1], tensors=0, projection_width=0, frames=0, frame_size=0)
    tokens = np.random.default_rng(0).integers(0, 50, valid.shape, np.int32)
    position = (np.cumsum(valid, axis=1) - valid).astype(np.int32)
    return dataclasses.replace(spec.zeros(0), tokens=tokens, position=position, segment=valid.astype(np.int32))


def part_of(batch: Batch, begin: int, end: int) -> Batch:
    fields = [one.name for one in dataclasses.fields(Batch) if np.shape(getattr(batch, one.name)) == batch.tokens.shape]
    return dataclasses.replace(batch, **{name: getattr(batch, name)[:, begin:end] for name in fields})


@pytest.mark.parametrize("window", [1, pytest.param(2, marks=pytest.mark.slow), 5, 20])
def test_rings_in_parts_are_whole_caches(window: int):
    config = ModelConfig(
        width=16, layers=3, heads=4, kv_heads=2, head_size=8, hidden=16, window=window, layer_kinds=("window", "full")
    )
    vocabulary = Vocabulary(text=50, continuous=4, discrete=4)
    spec = ModelSpec(config=config, vocabulary=vocabulary, projection_width=0, patches=False, frames=False)
    graph, params = nnx.split(create(spec, 0), nnx.Param)
    slots = VALID.shape[1]
    sizes = cache_slots(config, slots)
    assert sizes == ([32, slots, 32] if window == 20 else [16, slots, 16])

    @jax.jit
    def step(params: Any, part: Batch, caches: list[Cache], segment: jax.Array, position: jax.Array, start: jax.Array):
        return nnx.merge(graph, params).hidden_cached(part, caches, segment, position, start)

    batch = rows(VALID)
    found = []
    for each in ([slots] * 3, sizes):
        caches = [Cache.empty(3, size, 2, 8, jnp.float32) for size in each]
        outputs, at = [], 0
        for length in PARTS:
            seen = np.where(np.arange(slots) < at + length, batch.segment, 0)
            # The first slot of the part in all rows, or in each, which are the same here.
            start = np.int32(at) if length > 1 else np.full(3, at, np.int32)
            hidden, caches = step(params, part_of(batch, at, at + length), caches, seen, batch.position, start)
            outputs.append(hidden)
            at += length
        found.append(np.concatenate(outputs, axis=1)[VALID])
        assert [cache.key.shape[1] for cache in caches] == each
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_what_is_seen_of_a_ring_and_what_it_takes():
    """Windows of 3 in a ring of 4 slots; the second row has 6 positions and gets one behind padding."""
    segment, position = np.array([[1, 1, 1], [0, 0, 1]]), np.array([[0, 1, 2], [0, 0, 6]])
    ring = ring_of(*(jnp.asarray(one) for one in (segment, position, [0, 6])), 4, reach=3)
    assert ring.taken.tolist() == [[0, 1, 2, -1], [-1, -1, 2, -1]]
    shown = np.where(ring.mask, "x", ".")
    #        slots | new
    assert ["".join(row) for row in shown[0]] == [
        "....x..",
        "....xx.",
        "....xxx",
    ]
    # The slots hold positions 4, 5, 2 and 3, of which 6 sees 4 and 5.
    assert "".join(shown[1][2]) == "xx....x"
    # A single position is entered first.
    alone = ring_of(*(jnp.asarray(one) for one in (segment[:, 2:], position[:, 2:], [2, 6])), 4, reach=3)
    assert alone.taken.tolist() == [[-1, -1, 0, -1], [-1, -1, 0, -1]]
    assert ["".join(row) for row in np.where(alone.mask, "x", ".")[:, 0]] == ["xxx.", "xxx."]
