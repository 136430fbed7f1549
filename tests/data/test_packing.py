"""Packing: the exact table, payload indices, budgets, and that a restored iterator goes on bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generalist.data.batch import Batch, BatchSpec
from generalist.data.packing import BatchIterator
from generalist.data.rows import rows_at
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import Sequence

SPEC = BatchSpec(
    rows=2,
    length=8,
    tensors=4,
    projection_width=3,
    frames=2,
    frame_size=4,
    images=5,
    row_images=3,
    image_shape=(2, 2, 3),
    actions=6,
    action_dimensions=2,
)
PAD = 99


def sequence(
    number: int, length: int, frames: int = 0, tensors: int = 0, images: int = 0, actions: int = 0
) -> Sequence:
    """`length` positions that all carry `number`; the first ones are frames, then tensors, then images. The last ones predict
    actions, each of them its place."""
    ids = np.full((length,), number, np.int32)
    modality, index = np.zeros_like(ids), np.zeros_like(ids)
    modality[:frames], index[:frames] = Modality.FRAME, np.arange(frames)
    modality[frames : frames + tensors], index[frames : frames + tensors] = Modality.TENSOR, np.arange(tensors)
    shown = slice(frames + tensors, frames + tensors + images)
    modality[shown], index[shown] = Modality.IMAGE, np.arange(images)
    return Sequence(
        tokens=ids,
        targets=ids + 1,
        loss_weight=np.ones((length,), np.float32),
        modality=modality,
        local_position=np.zeros_like(ids),
        payload_index=index,
        image=np.cumsum(modality == Modality.IMAGE).astype(np.int32),
        block=np.zeros_like(modality),
        tensors=np.full((tensors, 3), number, np.float32),
        frames=np.full((frames, 4, 4, 3), number, np.uint8),
        patches=np.zeros((0, 16, 16, 3), np.uint8),
        intervals=np.zeros((0, 4), np.int32),
        images=np.full((images, 2, 2, 3), number, np.uint8),
        actions=np.stack([np.full((actions,), number), np.arange(length - actions, length)], axis=1).astype(np.int32),
        action_weight=np.full((actions, 2), 0.5, np.float32),
        action_from=np.arange(length - actions, length, dtype=np.int32),
    )


def iterator(lengths: list[int], **payload: int) -> BatchIterator:
    """Examples of these lengths over and over, numbered from 0, all of source 5."""
    return BatchIterator(
        {0: lambda number: (5, sequence(number, lengths[number % len(lengths)], **payload))}, SPEC, PAD
    )


def assert_equal(one: Batch, other: Batch) -> None:
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_packed_table():
    batch = next(iterator([5, 4, 3, 4, 9 - 1]))
    # Example 0 (5 long) and 2 (3 long) fill row 0; 1 and 3 (4 long each) fill row 1; 8 long ones wait for the next batch.
    np.testing.assert_array_equal(batch.tokens, [[0] * 5 + [2] * 3, [1] * 4 + [3] * 4])
    np.testing.assert_array_equal(batch.segment, [[1] * 5 + [2] * 3, [1] * 4 + [2] * 4])
    np.testing.assert_array_equal(batch.position, [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]])
    assert (batch.source == 5).all()
    assert len(batch.frames) == len(batch.patches) == 0  # no image, no vision compute
    assert batch.actions.shape == batch.action_weight.shape == (0, 2) and batch.action_from.shape == (0,)


def test_actions_are_read_from_their_positions():
    batch = next(iterator([5, 4, 3, 4, 9 - 1], actions=1))
    # Numbers and places of the last position of each sequence; padding reads from the first position, and weighs nothing.
    np.testing.assert_array_equal(batch.actions, [[0, 4], [1, 3], [2, 2], [3, 3], [PAD, PAD], [PAD, PAD]])
    np.testing.assert_array_equal(batch.action_from, [4, 8 + 3, 7, 8 + 7, 0, 0])
    assert (batch.action_weight == np.array([[0.5]] * 4 + [[0]] * 2)).all()
    np.testing.assert_array_equal(batch.tokens.reshape(-1)[batch.action_from[:4]], batch.actions[:4, 0])
    np.testing.assert_array_equal(batch.position.reshape(-1)[batch.action_from[:4]], batch.actions[:4, 1])


def test_a_full_budget_of_actions_closes_the_batch():
    batch = next(iterator([4], actions=4))
    assert (batch.segment > 0).sum() == 4 and (batch.action_weight.sum(axis=1) > 0).tolist() == [True] * 4 + [False] * 2


def test_every_shard_reads_actions_from_its_own_rows():
    spec = dataclasses.replace(SPEC, tensors=0, frames=0, images=0, row_images=0, shards=2)
    streams = {shard: lambda number, first=10 * shard: (5, sequence(first + number, 7, actions=2)) for shard in (0, 1)}
    batch = next(BatchIterator(streams, spec, PAD))
    assert batch.shards == 2 and batch.action_from.tolist() == [5, 6, 0, 5, 6, 0]
    found = batch.gather(batch.tokens.reshape(-1), batch.action_from)
    assert np.asarray(found).tolist() == [0, 0, 0, 10, 10, 10]


def test_padding_is_no_segment():
    batch = next(iterator([6]))
    np.testing.assert_array_equal(batch.segment, [[1] * 6 + [0] * 2] * 2)
    assert (batch.tokens[:, 6:] == PAD).all() and (batch.loss_weight[:, 6:] == 0).all()


def test_payloads_stand_where_the_indices_say():
    batch = next(iterator([3], frames=1, tensors=1))
    assert batch.frames.shape == (2, 4, 4, 3)  # the whole budget
    for modality, payload in ((Modality.FRAME, batch.frames), (Modality.TENSOR, batch.tensors)):
        at = (batch.modality == modality) & (batch.segment > 0)
        np.testing.assert_array_equal(payload[batch.payload_index[at]].reshape(at.sum(), -1)[:, 0], batch.tokens[at])
    assert (batch.segment > 0).sum() == 6  # the budget of two frames closes the batch before its rows are full


@pytest.mark.parametrize("actions", [0, 2])
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_resumed_equals_uninterrupted(cut: int, actions: int):
    lengths = [5, 4, 3, 7, 2, 6]
    whole = iterator(lengths, actions=actions)
    expected = [next(whole) for _ in range(cut + 3)]
    first = iterator(lengths, actions=actions)
    for _ in range(cut):
        next(first)
    second = iterator(lengths, actions=actions)
    second.go_to(first.positions)
    for batch in expected[cut:]:
        assert_equal(next(second), batch)
    first.go_to(whole.positions)  # also an iterator that has run ahead
    assert_equal(next(first), next(whole))


def test_nothing_is_lost_or_repeated():
    lengths = [5, 4, 3, 7, 2, 6, 8]
    batches, source = [], iterator(lengths)
    for _ in range(20):
        batches.append(next(source))
    seen = np.concatenate([np.unique(batch.tokens[batch.segment > 0]) for batch in batches])
    position = source.positions[0]
    assert len(seen) == len(set(seen))
    assert sorted([*seen.tolist(), *position.waiting]) == list(range(position.next))


@pytest.mark.parametrize(
    ("payload", "name"),
    [({}, "length"), ({"frames": 3}, "frames"), ({"tensors": 5}, "tensors"), ({"actions": 7}, "actions")],
)
def test_what_never_fits_is_named(payload: dict[str, int], name: str):
    length = 9 if name == "length" else 8
    with pytest.raises(ValueError, match=f"data.{name}"):
        next(iterator([length], **payload))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="data.rows"):
        dataclasses.replace(SPEC, rows=0)


def test_positions_attend_to_their_own_images():
    """Row 0: example 0 (5 positions, 2 images) and 2 (3 positions, none); row 1: example 1 (4 positions, 1 image)."""
    shapes = [(5, 2), (4, 1), (3, 0)]
    stream = BatchIterator(
        {0: lambda n: (0, sequence(n, shapes[n][0], images=shapes[n][1]) if n < 3 else sequence(9, 8))}, SPEC, PAD
    )
    batch = next(stream.batches(stream.positions))[0]
    assert batch.image.tolist() == [[1, 2, 2, 2, 2, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert batch.row_images.tolist() == [[0, 1, 0], [2, 0, 0]]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 0, 1, 0, 0]


def test_images_of_several_examples_in_a_row():
    stream = BatchIterator({0: lambda n: (0, sequence(n, 3, images=1) if n < 4 else sequence(9, 8))}, SPEC, PAD)
    batch = next(stream.batches(stream.positions))[0]
    assert batch.image.tolist() == [[1, 1, 1, 2, 2, 2, 0, 0]] * 2
    assert batch.row_images.tolist() == [[0, 1, 0], [2, 3, 0]]


def test_without_images_there_is_no_room_for_them():
    batch = next(iterator([5, 4, 3, 4]))
    assert batch.images.shape == (0, 2, 2, 3)
    assert batch.row_images.shape == (2, 0)


SHARDED = dataclasses.replace(SPEC, rows=4, tensors=8, frames=4, images=10, shards=2)


def shards(own: list[int], *, fixed: bool = False, frames: int = 1) -> BatchIterator:
    """Shard s has examples 100 s, 100 s + 1, ..., 5 positions each, every one with frames."""

    def stream(shard: int):
        return lambda number: (shard, sequence(100 * shard + number, 5, frames=frames, tensors=1))

    return BatchIterator({shard: stream(shard) for shard in own}, SHARDED, PAD, fixed=fixed)


def test_shards_stand_one_behind_the_other_with_their_payloads():
    batch = next(shards([0, 1]))
    assert batch.shards == 2 and batch.source[:, 0].tolist() == [0, 0, 1, 1]
    assert batch.tokens[:, 0].tolist() == [0, 1, 100, 101]
    assert batch.frames[:, 0, 0, 0].tolist() == [0, 1, 100, 101]
    at = batch.modality == Modality.FRAME
    assert batch.payload_index[at].tolist() == [0, 1, 0, 1]  # counted within a shard
    found = batch.gather(batch.frames, batch.payload_index)[:, :, 0, 0, 0]
    np.testing.assert_array_equal(np.asarray(found)[at], batch.tokens[at])


def test_a_process_makes_its_own_shards_and_no_others():
    whole, first, second = shards([0, 1]), shards([0]), shards([1])
    for _ in range(3):
        both, left, right = next(whole), next(first), next(second)
        for name in ("tokens", "segment", "frames", "tensors", "payload_index"):
            np.testing.assert_array_equal(
                getattr(both, name), np.concatenate([getattr(left, name), getattr(right, name)])
            )
    again = shards([1])
    again.go_to(whole.positions)  # the positions of all shards, as a checkpoint holds them
    assert_equal(next(again), next(second))


def test_fixed_shapes_keep_room_for_absent_payloads():
    free, fixed = next(shards([0, 1], frames=0)), next(shards([0, 1], fixed=True, frames=0))
    assert len(free.frames) == 0 and len(fixed.frames) == 4
    assert free.row_images.shape == (4, 0) and fixed.row_images.shape == (4, 3)


def test_budgets_that_shards_cannot_share():
    with pytest.raises(ValueError, match=r"data.frames = 5 must be a multiple of data.shards = 2"):
        dataclasses.replace(SHARDED, frames=5)


def test_rows_that_many_positions_share_get_the_whole_sum_of_their_gradients():
    table = jnp.zeros((3, 2), jnp.bfloat16)
    index = jnp.asarray([1] * 4096 + [7], jnp.int32)  # beyond the end means the last one
    gradient = jax.grad(lambda table: rows_at(table, index).astype(jnp.float32).sum())(table)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(jnp.float32), [[0, 0], [4096, 4096], [1, 1]])
