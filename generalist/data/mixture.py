"""The mixture: one endless, deterministic stream of examples from all sources, each with its share of the tokens.

Dimension key: P parts of a source.
"""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Float

from generalist.data.examples import Examples
from generalist.data.packing import Draw
from generalist.tokenizers.sequence import Sequence as TokenSequence

SAMPLES = 12  # examples per part from which its mean length is estimated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """An open source: the name that metrics show, its share of the tokens, and its parts (tasks). Parts divide the share in
    proportion to the square roots of their sizes: long tasks, with more to learn, get more, and short ones are not drowned."""

    name: str
    weight: float
    parts: Sequence[Examples]

    def __post_init__(self) -> None:
        if not self.parts or any(len(part) == 0 for part in self.parts):
            raise ValueError(f"source {self.name} has no examples: set data.{self.name}.weight to 0 or record it again")


def mean_length(examples: Examples) -> float:
    """Positions per example, estimated from a few."""
    # Always the same draws: every process and every resumed run must compute the same shares.
    rng = np.random.default_rng(0)
    return float(np.mean([len(examples.example(int(rng.integers(len(examples))), rng).tokens) for _ in range(SAMPLES)]))


def mix(sources: Sequence[Opened], *, seed: int, own: Sequence[int] = (0,), shards: int = 1) -> dict[int, Draw]:
    """The streams of examples, number → (source id, sequence), of the batch's shards listed in `own`.

    Every part is reshuffled in each epoch. Of several shards, each reads its own share of every part; a part with fewer examples
    than shards is read whole by every shard, each in its own order.
    """
    shares = np.concatenate([_draws(source) for source in sources])
    shares /= shares.sum()

    def stream(shard: int) -> Draw:
        parts = []
        for number, source in enumerate(sources):
            for index, examples in enumerate(source.parts):
                # Distinct seeds for up to 1,000 parts per source and 1,000 sources: equal ones would shuffle in step.
                order = grain.MapDataset.range(len(examples)).seed(seed + 1000 * number + index + 1_000_000 * shard)
                # Cut before shuffling, so that the shards' shares stay disjoint in every epoch.
                order = order[shard::shards] if 1 < shards <= len(examples) else order
                parts.append(order.shuffle().repeat().random_map(_Draw(number, examples)))
        # Random access by number, nothing iterated: a position of the stream is the number alone.
        mixed = grain.MapDataset.mix(parts, weights=shares.tolist())
        return lambda number: mixed[number]

    return {shard: stream(shard) for shard in own}


def _draws(source: Opened) -> Float[np.ndarray, "P"]:
    """Relative frequency with which each part of a source is drawn, so that the source gets its share of the tokens."""
    lengths = np.array([mean_length(examples) for examples in source.parts])
    tokens = np.sqrt([len(examples) * length for examples, length in zip(source.parts, lengths, strict=True)])
    # Shares are of tokens, but what is drawn are examples: long ones are drawn less often.
    return source.weight * tokens / tokens.sum() / lengths


@dataclasses.dataclass(frozen=True)
class _Draw(grain.transforms.RandomMap):
    """Index of an example → its source's id and the example."""

    source: int
    examples: Examples

    def random_map(self, element: int, rng: np.random.Generator) -> tuple[int, TokenSequence]:
        return self.source, self.examples.example(int(element), rng)
