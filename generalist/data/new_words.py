"""Episodes that bind new words to new images, in the manner of *Frozen*'s open-ended tasks (Tsimpoukelli et al., 2021).

An episode shows a few classes of drawings under made-up names that are valid in this episode only: its images can be named only
by finding the most similar one shown before. A model learns this, rather than the names by heart, if classes are many and each is
rare, if the same few recur within an episode, and if names change from one episode to the next (Chan et al., 2022):

    bos  <image> tomi chunk_end  <image> zuka chunk_end  <image> zuka chunk_end  <image> tomi ...

A name is predicted wherever its class was shown before. Classes are the things of `generalist.data.emoji`; those of the split
`names` and a tenth of all made-up names are held out.
"""

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from generalist.data.emoji import Drawing, Split, drawings, variant
from generalist.data.stable_hash import stable_hash
from generalist.tokenizers.sequence import Assembler, Part, Predicted
from generalist.tokenizers.sequence import Sequence as TokenSequence

# 70 syllables, so 4,830 names, for some 1,600 classes: a class hardly ever gets the same name again.
_SYLLABLES = tuple(map("".join, itertools.product("bdfgklmnprstvz", "aeiou")))
HELD_OUT_NAMES = 10  # percent
LEAST_WAYS = 2  # with one class there is nothing to tell apart

Instance = tuple[Drawing, int]
"""A drawing and the number of its variant."""


@functools.cache
def made_up_names(split: Literal["train", "heldout"]) -> tuple[str, ...]:
    """Words of two syllables that hardly occur in the data, such as ` tomi`; the same on every machine."""
    # With a space in front, like the answers of other sources; without doubled syllables, such as the word `mama`.
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
    """Classes under their names in this episode, and their images in the order in which they are shown."""

    names: tuple[str, ...]
    """Name of each class in this episode."""
    things: tuple[str, ...]
    """The thing that each class really is."""
    shown: tuple[tuple[int, Instance], ...]
    """Class and image of each step."""

    def parts(self) -> list[Part]:
        """The parts for `Assembler.document`: a name is predicted if its class was shown before."""
        parts: list[Part] = []
        # The first name of a class cannot be known: a loss on it would only teach to guess.
        seen: set[int] = set()
        for number, (drawing, change) in self.shown:
            name = self.names[number]
            parts += [variant(drawing, change), Predicted(name) if number in seen else name]
            seen.add(number)
        return parts


def draw_instances(several: Sequence[Drawing], count: int, variants: int, rng: np.random.Generator) -> list[Instance]:
    """`count` images of one class, all different until every variant of every drawing was used.

    Args:
        several: the drawings of the class.
        count: number of images.
        variants: fixed variants of each drawing.
        rng: for the order.
    """
    total = len(several) * variants
    rounds = max(1, -(-count // total))  # rounded up
    picked = np.concatenate([rng.permutation(total) for _ in range(rounds)])[:count]
    return [(several[int(one) // variants], int(one) % variants) for one in picked]


def draw_episode(first: str, images: int, ways: int, variants: int, rng: np.random.Generator) -> Episode:
    """A training episode about one thing and `ways` - 1 others, each equally likely at every step.

    Args:
        first: the thing.
        images: number of images.
        ways: number of classes.
        variants: fixed variants of each drawing.
        rng: for all random choices.
    """
    pool, names = classes("train"), made_up_names("train")
    others = [thing for thing in pool if thing != first]
    things = [first, *(others[int(one)] for one in rng.choice(len(others), ways - 1, replace=False))]
    order = rng.integers(ways, size=images)  # (images,)
    # One iterator per class, so that no image comes twice while there are others.
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
    """Maximum number of positions; longer episodes are cut."""
    images: int
    """Maximum number of images per episode."""
    ways: int
    """Maximum number of classes per episode."""
    variants: int
    """Fixed variants of each drawing."""

    def __len__(self) -> int:
        return len(classes("train"))

    def example(self, index: int, rng: np.random.Generator) -> TokenSequence:
        ways = int(rng.integers(LEAST_WAYS, self.ways + 1))
        # At least two images per class in the mean, or hardly any name could be predicted. Short episodes are as likely as long
        # ones: what is learned in short ones carries over.
        images = int(rng.integers(2 * ways, max(self.images, 2 * ways) + 1))
        thing = list(classes("train"))[index]
        parts = draw_episode(thing, images, ways, self.variants, rng).parts()
        # Names vary in length, so whether an episode fits is known only once it is assembled.
        while len(sequence := self.assembler.document(parts)) > self.length:
            parts = parts[:-2]  # the last image and its name
        return sequence
