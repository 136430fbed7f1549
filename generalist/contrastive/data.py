"""Pairs of an image and a text, augmented anew in each epoch: emoji drawings with their names, or a user's own pairs.

Dimension key: N pairs, H height, W width, S pixels per side, L text pieces.
"""

import dataclasses
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int, UInt8

from generalist.contrastive.config import ContrastiveConfig
from generalist.contrastive.towers import PADDING
from generalist.data.documents import Documents, open_documents, tell
from generalist.data.drawn_batches import DrawnBatches
from generalist.data.emoji import Drawing, augment, drawings
from generalist.data.files import DocumentError
from generalist.data.formats.documents import DocumentOpening
from generalist.data.images import read_image
from generalist.system.cache import index_folder
from generalist.system.processes import cores
from generalist.tokenizers.text import TextTokenizer
from generalist.vision.encoder import Preparation

TEMPLATES = ("{}", "a picture of {}", "a drawing of {}", "an emoji of {}", "a small icon: {}")
"""Sentences that a name is put into: one of them, drawn at random, in training; all of them, averaged, in zero-shot
classification (CLIP, section 3.1.4)."""


@runtime_checkable
class Pairs(Protocol):
    """Images with texts."""

    def __len__(self) -> int: ...

    def texts(self) -> Iterable[str]:
        """Texts that pieces are learnt from: all or, of many, enough."""

    def shown(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
        """A pair as it is."""

    def readable(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], str] | None:
        """A pair as it is; None if its image can't be read, so that the pair is left out."""

    def drawn(self, index: int, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
        """A pair as training sees it, augmented at random."""


@dataclasses.dataclass(frozen=True)
class EmojiPairs:
    """Drawings with their full names."""

    drawings: tuple[Drawing, ...]

    def __len__(self) -> int:
        return len(self.drawings)

    def texts(self) -> list[str]:
        return [drawing.name for drawing in self.drawings]

    def shown(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
        return self.drawings[index].image(), self.drawings[index].name

    def readable(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], str] | None:
        return self.shown(index)

    def drawn(self, index: int, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
        drawing = self.drawings[index]
        return augment(drawing.rgba(), rng), TEMPLATES[rng.integers(len(TEMPLATES))].format(drawing.name)


class OwnPairs:
    """A user's own pairs. A pair whose image can't be read is left out, as long as these are few (`Documents`)."""

    def __init__(self, documents: Documents):
        self.documents = documents
        self.pairs = documents.pairs()
        if others := len(documents) - len(self.pairs):
            tell(
                f"note: {others:,} of {len(documents):,} documents of {documents.path} are left out: they do not consist of one "
                "image and one text after it"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def texts(self) -> Iterable[str]:
        return self.documents.texts()

    def shown(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
        image, text = self.documents.pair(int(self.pairs[index]))
        return read_image(image), text

    def readable(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], str] | None:
        """A pair as it is; None if its image can't be read, so that the pair is left out.

        Raises:
            TooManyBroken: it is one too many.
        """
        try:
            return self.shown(index)
        except DocumentError as error:
            self.documents.leave_out(int(self.pairs[index]), error)
        return None

    def drawn(self, index: int, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
        """A random crop of at least 0.7 of each side; the next readable pair replaces one that can't be read.

        Raises:
            DocumentError: no image can be read.
        """
        # The replacement depends on the index alone, not on what was left out before: a resumed run sees the same pairs.
        following = (self.readable((index + step) % len(self)) for step in range(len(self)))
        found = next((one for one in following if one is not None), None)
        if found is None:
            raise DocumentError(f"no image of {self.documents.path} can be read: repair them")
        image, text = found
        # Never mirrored, since texts may say left and right.
        height, width = (max(1, round(length * rng.uniform(0.7, 1.0))) for length in image.shape[:2])
        top, left = (int(rng.integers(room + 1)) for room in (image.shape[0] - height, image.shape[1] - width))
        return image[top : top + height, left : left + width], text


def text_ids(text: TextTokenizer, texts: list[str], length: int) -> Int[np.ndarray, "N L"]:
    """Texts as int32 ids, cut or padded with `PADDING` to `length`."""
    ids = np.full((len(texts), length), PADDING, np.int32)
    for row, one in zip(ids, texts, strict=True):
        pieces = text.encode(one)[:length]
        row[: len(pieces)] = pieces
    return ids


@dataclasses.dataclass(frozen=True)
class _Draw(grain.transforms.RandomMap):
    """The number of a pair → its pixels and text ids."""

    pairs: Pairs
    prepare: Preparation
    text: TextTokenizer
    length: int

    def random_map(
        self, element: int, rng: np.random.Generator
    ) -> tuple[UInt8[np.ndarray, "S S 3"], Int[np.ndarray, "L"]]:
        image, text = self.pairs.drawn(int(element), rng)
        return self.prepare(image), text_ids(self.text, [text], self.length)[0]


def check_batch(pairs: int, batch: int) -> None:
    """Raises `ValueError` if there are fewer pairs than a batch needs."""
    if pairs < batch:
        raise ValueError(f"there are {pairs} pairs for a batch of {batch}: lower --batch, or add pairs")


class PairBatches(DrawnBatches):
    """Endless batches of pixels and text ids, shuffled anew in each epoch.

    Args:
        pairs: what is trained on.
        prepare: turns an image into pixels.
        text: turns a text into ids.
        length: ids per text.
        batch: pairs per batch.
        seed: of the order and of the augmentation.

    Raises:
        ValueError: there are fewer pairs than a batch needs.
    """

    def __init__(self, pairs: Pairs, prepare: Preparation, text: TextTokenizer, *, length: int, batch: int, seed: int):
        check_batch(len(pairs), batch)
        super().__init__(_Draw(pairs, prepare, text, length), len(pairs), batch=batch, seed=seed)


def open_pairs(config: ContrastiveConfig) -> Pairs:
    """The pairs that are trained on.

    Raises:
        DocumentError: the user's own pairs, or held-out ones, cannot be read.
        MissingImages: the packages with the drawings are not installed.
    """
    if config.pairs is None:
        return EmojiPairs(drawings("train"))
    opening = DocumentOpening(index=index_folder(), workers=cores())
    for path in filter(None, (config.heldout, config.pairs)):
        documents = open_documents(path, config.unreadable, tell, opening=opening, workers=cores(), whole=config.check)
    return OwnPairs(documents)


def open_heldout(config: ContrastiveConfig) -> Pairs | None:
    """The user's own pairs that are retrieved at the end, which `open_pairs` has looked at; None: there are none."""
    if config.heldout is None:
        return None
    opening = DocumentOpening(index=index_folder(), workers=cores())
    return OwnPairs(Documents(config.heldout, config.unreadable, opening=opening, checked=True))


def learn_text(config: ContrastiveConfig, pairs: Pairs) -> TextTokenizer:
    """A text tokenizer learned from the texts of the pairs."""
    # With the templates, whose words are in the texts of emoji and in those of zero-shot classification.
    return TextTokenizer.train([*pairs.texts(), *TEMPLATES], config.towers.text_pieces)


def open_batches(config: ContrastiveConfig, pairs: Pairs, text: TextTokenizer) -> PairBatches:
    """The batches of a run."""
    towers = config.towers
    prepare = Preparation(size=towers.size, crop=False)
    return PairBatches(pairs, prepare, text, length=towers.text_length, batch=config.batch, seed=config.training.seed)
