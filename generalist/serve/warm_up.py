"""Everything that requests will need is compiled before the first of them: each piece of a prompt, each step."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jaxtyping import Int32

from generalist.inference.policy import some_value
from generalist.inference.sampling import Decoding
from generalist.inference.weights import Weights
from generalist.serve.chat_lanes import ChatLanes
from generalist.serve.demonstrations import positions_of_step, sees_each_image
from generalist.serve.pieces import whole_prompts
from generalist.serve.sessions import Pool
from generalist.system.processes import cores
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import Sequence


def warm_up(weights: Weights, chat: ChatLanes, pools: list[Pool], told: Callable[[str], None]) -> None:
    """Runs each step once, and forgets what was read and played. The compiler works on as many steps as there are processors.

    Args:
        told: takes a line after each part.
    """
    if weights.encoder is not None:
        _ = weights.features  # compiled once, and not for each thread
    parts: list[tuple[str, Callable[[], None]]] = [("texts", lambda: write(weights, chat))]
    for pool in pools:
        name = f"steps of {', '.join(pool.layouts[:3])}{' ...' if len(pool.layouts) > 3 else ''}"
        parts.append((name, partial(play, weights, pool)))
    with concurrent.futures.ThreadPoolExecutor(min(len(parts), cores())) as workers:
        names = {workers.submit(run): name for name, run in parts}
        for number, done in enumerate(concurrent.futures.as_completed(names), 1):
            done.result()
            told(f"compiled {number} of {len(parts)}: {names[done]}")


def write(weights: Weights, chat: ChatLanes) -> None:
    """Reads prompts of each kind and writes after them."""
    for sequence in prompts(weights, chat):
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
    chat.exchange(weights)
    chat.reused = chat.read_positions = 0


def prompts(weights: Weights, chat: ChatLanes) -> Iterator[Sequence]:
    """Prompts whose last pieces have every size, with and without an image in them; and one of two pieces, the first of which is
    copied when it is asked for twice."""
    longer = weights.assembler.document([_ids(chat.sizes[-1] + 1)], is_open=True)
    if len(longer) < chat.context and not whole_prompts(weights):
        yield longer
    starts: list[list[np.ndarray]] = [[]]
    if sees_images(weights):
        starts.append([np.zeros((64, 64, 3), np.uint8)])
    for image, size in itertools.product(starts, chat.sizes):
        begun = len(weights.assembler.document([_ids(1), *image], is_open=True)) - 1
        # What stands in front of the image leaves the last piece this size.
        count = (size - begun) % chat.sizes[-1] if image else max(1, size - begun)
        if whole_prompts(weights):
            count = max(1, size - begun)
        sequence = weights.assembler.document([*([_ids(count)] if count else []), *image], is_open=True)
        if len(sequence) < chat.context and len(sequence.images) <= chat.images:
            yield sequence
        if weights.projects and (sequence.modality == Modality.IMAGE).any():
            return  # the image is a piece of its own, and there is one size of it


def _ids(count: int) -> Int32[np.ndarray, "n"]:
    """A text of that many ids, of no meaning."""
    return np.zeros(count, np.int32)


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
    policy.reset([0], [demonstration(weights, pool.layouts[0], pool.prefix)], [0])
    pool.exchange(weights)


def demonstration(weights: Weights, name: str, room: int) -> Sequence:
    """A prefix with as many shown steps as fit, of no meaning; an empty one if none may be shown."""
    layout = weights.layouts[name]
    steps = 0 if sees_each_image(weights, layout) else room // positions_of_step(weights, layout)
    if not steps:
        return weights.assembler.prefix(layout, "")
    seen, acted = layout.observation, layout.action
    prompts = [(seen.stack([some_value(seen.space)] * steps), acted.stack([some_value(acted.space)] * steps))]
    return weights.assembler.prefix(layout, "", prompts)
