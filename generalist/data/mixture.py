"""The mixture: one endless, deterministic stream of examples from all sources, each with its share of the tokens."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from generalist.data.examples import Examples
from generalist.data.packing import Draw
from generalist.tokenizers.sequence import Sequence as TokenSequence

SAMPLES = 12  # examples a part of a source that its mean length is estimated from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """An open source by the name that metrics show, its share of the tokens, and its parts (tasks), which share it as the square
    roots of their sizes: long tasks, which have more to learn, get more, and short ones are not drowned."""

    name: str
    weight: float
    parts: Sequence[Examples]

    def __post_init__(self) -> None:
        if not self.parts or any(len(part) == 0 for part in self.parts):
            raise ValueError(f"source {self.name} has no examples: set data.{self.name}.weight to 0 or record it again")


def mean_length(examples: Examples) -> float:
    """Positions of an example, estimated from a few."""
    rng = np.random.default_rng(0)
    return float(np.mean([len(examples.example(int(rng.integers(len(examples))), rng).tokens) for _ in range(SAMPLES)]))


def mix(sources: Sequence[Opened], *, seed: int, own: Sequence[int] = (0,), shards: int = 1) -> dict[int, Draw]:
    """The streams of examples by number, (source id, sequence), for a batch's shards that are `own`.

    Every part is shuffled anew each epoch. Of several shards each reads its own share of every part; a part with fewer examples
    than shards is read whole by all, each in an order of its own.
    """
    shares = np.concatenate([_draws(source) for source in sources])
    shares /= shares.sum()

    def stream(shard: int) -> Draw:
        parts = []
        for number, source in enumerate(sources):
            for index, examples in enumerate(source.parts):
                order = grain.MapDataset.range(len(examples)).seed(seed + 1000 * number + index + 1_000_000 * shard)
                order = order[shard::shards] if 1 < shards <= len(examples) else order
                parts.append(order.shuffle().repeat().random_map(_Draw(number, examples)))
        mixed = grain.MapDataset.mix(parts, weights=shares.tolist())
        return lambda number: mixed[number]

    return {shard: stream(shard) for shard in own}


def _draws(source: Opened) -> np.ndarray:
    """How often each part of a source is drawn from, float (parts,), so that the source has its share of the tokens."""
    lengths = np.array([mean_length(examples) for examples in source.parts])
    tokens = np.sqrt([len(examples) * length for examples, length in zip(source.parts, lengths, strict=True)])
    return source.weight * tokens / tokens.sum() / lengths


@dataclasses.dataclass(frozen=True)
class _Draw(grain.transforms.RandomMap):
    """Index of an example → its source's id and the example."""

    source: int
    examples: Examples

    def random_map(self, element: int, rng: np.random.Generator) -> tuple[int, TokenSequence]:
        return self.source, self.examples.example(int(element), rng)
