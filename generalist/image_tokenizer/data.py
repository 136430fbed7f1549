"""Images to train an image tokenizer on, augmented anew in each epoch: emoji drawings, or a folder of the user's own images.

Dimension key: H height, W width, S pixels per side.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import UInt8

from generalist.data.drawn_batches import DrawnBatches
from generalist.data.emoji import Drawing, augment, drawings
from generalist.data.files import DocumentError
from generalist.data.images import ENDINGS, check_image, read_image
from generalist.data.stable_hash import stable_hash
from generalist.image_tokenizer.config import ImageTokenizerConfig
from generalist.vision.encoder import Preparation

HELD_OUT = 20  # about one of so many of the user's own images


@runtime_checkable
class Images(Protocol):
    """What an image tokenizer is trained and tested on."""

    def __len__(self) -> int: ...

    def shown(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """An image as it is."""

    def drawn(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
        """An image as training sees it, augmented at random."""


@dataclasses.dataclass(frozen=True)
class EmojiImages:
    """Drawings; in training half of them as they are, the others moved, scaled and on another ground."""

    drawings: Sequence[Drawing]

    def __len__(self) -> int:
        return len(self.drawings)

    def shown(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        return self.drawings[index].image()

    def drawn(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
        return self.shown(index) if rng.random() < 0.5 else augment(self.drawings[index].rgba(), rng)


@dataclasses.dataclass(frozen=True)
class OwnImages:
    """Image files; in training a random crop of each."""

    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.files)

    def shown(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        return read_image(self.files[index])

    def drawn(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
        image = self.shown(index)
        height, width = (max(1, round(length * rng.uniform(0.7, 1.0))) for length in image.shape[:2])
        top, left = (int(rng.integers(room + 1)) for room in (image.shape[0] - height, image.shape[1] - width))
        return image[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class _Draw(grain.transforms.RandomMap):
    """The number of an image → its pixels."""

    images: Images
    prepare: Preparation

    def random_map(self, element: int, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "S S 3"]]:
        return (self.prepare(self.images.drawn(int(element), rng)),)


def open_images(config: ImageTokenizerConfig) -> tuple[Images, Images]:
    """The images that are trained on, and held-out ones.

    Raises:
        FileNotFoundError: the folder does not exist, or holds too few images for one to be held out.
        DocumentError: one of them is no image that can be read.
        ValueError: there are fewer images than a batch needs.
        MissingImages: the packages with the drawings are not installed.
    """
    train, heldout = _own_images(Path(config.images)) if config.images is not None else _drawings()
    if len(train) < config.batch:
        raise ValueError(f"there are {len(train)} images for a batch of {config.batch}: lower --batch, or add images")
    return train, heldout


def _drawings() -> tuple[Images, Images]:
    # Held-out drawings of known things, and drawings of things that no training drawing shows.
    return EmojiImages(drawings("train")), EmojiImages((*drawings("drawings"), *drawings("names")))


def _own_images(folder: Path) -> tuple[Images, Images]:
    if not folder.is_dir():
        raise FileNotFoundError(f"images: there is no folder {folder}: name a folder of images")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if len(files) < HELD_OUT:
        raise FileNotFoundError(f"images: {folder} holds {len(files)} images, fewer than {HELD_OUT}: add images")
    for file in files:  # now, and not after an hour of training
        try:
            check_image(file)
        except OSError as error:
            raise DocumentError(f"{file} cannot be read ({error}): repair or remove it") from error
    # By its name: another file more or less moves none to the other side, where it would be scored though it was trained on.
    numbers = [stable_hash(file.relative_to(folder).as_posix()) for file in files]
    held = [number % HELD_OUT == 0 for number in numbers]
    if not any(held):
        held[numbers.index(min(numbers))] = True
    heldout = [file for file, is_held in zip(files, held, strict=True) if is_held]
    for file in heldout:
        read_image(file)  # all of it: otherwise it would first be decoded after the training
    return OwnImages([file for file, is_held in zip(files, held, strict=True) if not is_held]), OwnImages(heldout)


def open_batches(config: ImageTokenizerConfig, images: Images) -> DrawnBatches:
    """The batches of a run."""
    draw = _Draw(images, Preparation(size=config.shape.size, crop=False))
    return DrawnBatches(draw, len(images), batch=config.batch, seed=config.training.seed)
