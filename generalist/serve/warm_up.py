"""Everything that requests will need is compiled before the first of them: each piece of a prompt, each step."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from generalist.inference.sampling import Decoding
from generalist.inference.weights import Weights
from generalist.serve.chat_lanes import ChatLanes
from generalist.serve.sessions import Pool
from generalist.tokenizers.sequence import Sequence

WORD = "word "


def warm_up(weights: Weights, chat: ChatLanes, pools: list[Pool], told: Callable[[str], None]) -> None:
    """Runs each step once, and forgets what was read and played.

    Args:
        told: takes a line about what is compiled next.
    """
    for number, sequence in enumerate(prompts(weights, chat), 1):
        told(f"compiling: prompt {number}")
        pieces = chat.pieces(sequence)
        drawn = Decoding(temperature=1.0, top_k=5, top_p=0.9)
        # The second is given a copy of what the first one holds, in another lane if there is one.
        lanes = [chat.take(sequence, pieces, drawn, 0, True) for _ in range(min(2, chat.free))]
        for lane in lanes:
            while lane.reading:
                chat.read(lane)
            chat.write([lane])
        again = [chat.take(sequence, pieces, Decoding(), 0, False) for _ in range(min(1, chat.free))]
        for lane in [*lanes, *again]:
            chat.release(lane)
    for pool in pools:
        told(f"compiling: steps of {', '.join(pool.layouts[:3])}{' ...' if len(pool.layouts) > 3 else ''}")
        play(weights, pool)
        pool.exchange(weights)
    chat.exchange(weights)
    chat.reused = chat.read_positions = 0


def prompts(weights: Weights, chat: ChatLanes) -> Iterator[Sequence]:
    """Prompts that need pieces of every size, with and without images in them."""
    starts: list[list[np.ndarray]] = [[]]
    if sees_images(weights):
        starts.append([np.zeros((64, 64, 3), np.uint8)])
    for start, size in itertools.product(starts, chat.sizes):
        given = len(weights.assembler.document([*start, WORD], is_open=True))
        words = 1
        # The last piece has exactly this size, if the parts before leave room for it.
        while given < size and given < chat.context - 1:
            words += 1
            given = len(weights.assembler.document([*start, WORD * words], is_open=True))
        sequence = weights.assembler.document([*start, WORD * words], is_open=True)
        if len(sequence) < chat.context and len(sequence.images) <= chat.images:
            yield sequence


def sees_images(weights: Weights) -> bool:
    """Whether documents of these weights may have images."""
    try:
        weights.assembler.document([np.zeros((8, 8, 3), np.uint8)], is_open=True)
    except ValueError:
        return False
    return True


def play(weights: Weights, pool: Pool) -> None:
    """Begins an episode in every lane of a pool and gives each a step, one lane after the other: images that are the same are
    encoded once, so that each number of different images is a shape of its own."""
    policy = pool.policy
    for lane in range(policy.lanes):
        layout = pool.layouts[lane % len(pool.layouts)]
        policy.assign(lane, layout)
        policy.reset([lane], [""], [0])
        observations = [None] * policy.lanes
        observations[lane] = weights.layouts[layout].observation.space.sample()
        policy.act(observations)
