"""Episodes that bind new words to new images, in the manner of *Frozen*'s open-ended tasks (Tsimpoukelli et al., 2021).

An episode shows a few classes of drawings under made-up names, which hold for this episode alone: the only way to name its
images is to look for the most similar one shown before. What makes a model learn that rather than the names by heart are many
classes of which each is rare, the same few again and again within an episode, and names that change from one to the next
(Chan et al., 2022):

    bos  <image> tomi chunk_end  <image> zuka chunk_end  <image> zuka chunk_end  <image> tomi ...

A name is predicted wherever its class was shown before. Classes are the things of `generalist.data.emoji`: those of the split
`names` and a tenth of all made-up names are never trained on.
"""

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from generalist.data.emoji import Drawing, Split, drawings, stable_hash, variant
from generalist.tokenizers.sequence import Assembler, Part, Predicted
from generalist.tokenizers.sequence import Sequence as TokenSequence

_SYLLABLES = tuple(map("".join, itertools.product("bdfgklmnprstvz", "aeiou")))
HELD_OUT_NAMES = 10  # percent
LEAST_WAYS = 2

Instance = tuple[Drawing, int]
"""A drawing and the number of its variant."""


@functools.cache
def made_up_names(split: Literal["train", "heldout"]) -> tuple[str, ...]:
    """Words of two syllables that no language of the data has a use for, such as ` tomi`; the same on every machine."""
    words = (f" {first}{second}" for first, second in itertools.product(_SYLLABLES, repeat=2) if first != second)
    return tuple(word for word in words if (stable_hash(word) % 100 < HELD_OUT_NAMES) == (split == "heldout"))


@functools.cache
def classes(split: Split) -> Mapping[str, tuple[Drawing, ...]]:
    """The drawings of every thing of a split."""
    found: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings(split):
        found[drawing.thing].append(drawing)
    return {thing: tuple(several) for thing, several in sorted(found.items())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """Classes under the names that they have here, and images of them in the order in which they are shown."""

    names: tuple[str, ...]
    """Of each class."""
    things: tuple[str, ...]
    """What each class really is."""
    shown: tuple[tuple[int, Instance], ...]
    """Class and image."""

    def parts(self) -> list[Part]:
        """What `Assembler.document` reads: a name is predicted where its class was shown before."""
        parts: list[Part] = []
        seen: set[int] = set()
        for number, (drawing, change) in self.shown:
            name = self.names[number]
            parts += [variant(drawing, change), Predicted(name) if number in seen else name]
            seen.add(number)
        return parts


def draw_instances(several: Sequence[Drawing], count: int, variants: int, rng: np.random.Generator) -> list[Instance]:
    """Different images of one class, as long as there are any; then the same again."""
    total = len(several) * variants
    rounds = max(1, -(-count // total))
    picked = np.concatenate([rng.permutation(total) for _ in range(rounds)])[:count]
    return [(several[int(one) // variants], int(one) % variants) for one in picked]


def draw_episode(first: str, images: int, ways: int, variants: int, rng: np.random.Generator) -> Episode:
    """A training episode about one thing and `ways` - 1 others, each equally likely at every place."""
    pool, names = classes("train"), made_up_names("train")
    others = [thing for thing in pool if thing != first]
    things = [first, *(others[int(one)] for one in rng.choice(len(others), ways - 1, replace=False))]
    order = rng.integers(ways, size=images)
    instances = {
        number: iter(draw_instances(pool[thing], int((order == number).sum()), variants, rng))
        for number, thing in enumerate(things)
    }
    return Episode(
        names=tuple(names[int(one)] for one in rng.choice(len(names), ways, replace=False)),
        things=tuple(things),
        shown=tuple((int(number), next(instances[int(number)])) for number in order),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotExamples:
    """Endless episodes; an epoch has one about every class."""

    assembler: Assembler
    length: int
    """Positions at most; an episode ends earlier for it."""
    images: int
    """Of an episode at most."""
    ways: int
    """Classes of an episode at most."""
    variants: int

    def __len__(self) -> int:
        return len(classes("train"))

    def example(self, index: int, rng: np.random.Generator) -> TokenSequence:
        ways = int(rng.integers(LEAST_WAYS, self.ways + 1))
        # Few images as often as many: what is learnt from few is then carried over.
        images = int(rng.integers(2 * ways, max(self.images, 2 * ways) + 1))
        thing = list(classes("train"))[index]
        parts = draw_episode(thing, images, ways, self.variants, rng).parts()
        while len(sequence := self.assembler.document(parts)) > self.length:
            parts = parts[:-2]  # the last image and its name
        return sequence
