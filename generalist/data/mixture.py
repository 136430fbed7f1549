"""The mixture: one endless, deterministic stream of examples from all sources, each with its share of the tokens."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from generalist.data.packing import Draw
from generalist.data.windows import Examples
from generalist.tokenizers.sequence import Sequence as TokenSequence

SAMPLES = 12  # examples a part of a source that its mean length is estimated from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A source by the name that metrics show, its share of the tokens, and its parts (tasks), which share it equally."""

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


def mix(sources: Sequence[Source], *, seed: int, rank: int = 0, world: int = 1) -> Draw:
    """The stream of examples by number: (source id, sequence).

    Every part is shuffled anew each epoch. Of `world` processes each reads its own share of every part.

    Raises:
        ValueError: a source is empty, or has fewer examples than there are processes.
    """
    parts, weights = [], []
    for number, source in enumerate(sources):
        for index, examples in enumerate(source.parts):
            if len(examples) < world:
                raise ValueError(f"source {source.name} has a part with {len(examples)} examples for {world} processes")
            order = grain.MapDataset.range(len(examples)).seed(seed + 1000 * number + index)
            order = order[rank::world] if world > 1 else order
            drawn = order.shuffle().repeat().random_map(_Draw(number, examples))
            parts.append(drawn)
            weights.append(source.weight / len(source.parts) / mean_length(examples))
    total = sum(weights)
    stream = grain.MapDataset.mix(parts, weights=[weight / total for weight in weights])
    return lambda number: stream[number]


@dataclasses.dataclass(frozen=True)
class _Draw(grain.transforms.RandomMap):
    """Index of an example → its source's id and the example."""

    source: int
    examples: Examples

    def random_map(self, element: int, rng: np.random.Generator) -> tuple[int, TokenSequence]:
        return self.source, self.examples.example(int(element), rng)
