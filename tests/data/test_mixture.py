"""The mixture: the same stream whoever draws it, and every shard its own share."""

import dataclasses

import numpy as np

from generalist.data.mixture import Opened, mix
from generalist.data.packing import Draw
from generalist.tokenizers.sequence import Sequence


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Examples of one position that carry their own number."""

    count: int

    def __len__(self) -> int:
        return self.count

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        zeros, none = np.zeros((1,), np.int32), np.zeros((0, 16, 16, 3), np.uint8)
        return Sequence(
            tokens=zeros + index,
            targets=zeros,
            loss_weight=np.ones((1,), np.float32),
            modality=zeros,
            local_position=zeros,
            payload_index=zeros,
            image=zeros,
            block=zeros,
            tensors=np.zeros((0, 3), np.float32),
            frames=none,
            patches=none,
            intervals=np.zeros((0, 4), np.int32),
            images=none,
        )


def drawn(stream: Draw, count: int) -> list[int]:
    return [int(stream(number)[1].tokens[0]) for number in range(count)]


def source(count: int) -> Opened:
    return Opened(name="numbers", weight=1.0, parts=[Numbers(count)])


def test_it_is_deterministic_and_goes_round():
    whole, again = mix([source(9)], seed=3)[0], mix([source(9)], seed=3)[0]
    assert drawn(whole, 27) == drawn(again, 27)
    assert sorted(drawn(whole, 9)) == list(range(9))


def test_shards_share_the_examples_whoever_makes_them():
    together, alone = (mix([source(9)], seed=3, own=own, shards=2) for own in ([0, 1], [1]))
    even, odd = (drawn(together[shard], 4) for shard in (0, 1))
    assert odd == drawn(alone[1], 4)
    assert {number % 2 for number in even} == {0} and {number % 2 for number in odd} == {1}


def test_a_part_smaller_than_the_shards_is_read_by_all():
    streams = mix([source(3)], seed=3, own=range(5), shards=5)
    orders = [drawn(stream, 3) for stream in streams.values()]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
