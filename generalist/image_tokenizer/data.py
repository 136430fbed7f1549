"""Images to train an image tokenizer on, augmented anew in each epoch: emoji drawings, or a folder of the user's own images.

Dimension key: H height, W width, S pixels per side.
"""

import dataclasses
import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import UInt8

from generalist.data.drawn_batches import DrawnBatches
from generalist.data.emoji import Drawing, augment, drawings
from generalist.data.files import DocumentError, json_file
from generalist.data.images import ENDINGS, check_image, read_image
from generalist.data.stable_hash import stable_hash
from generalist.image_tokenizer.config import ImageTokenizerConfig
from generalist.system.files import write_json
from generalist.vision.encoder import Preparation

HELD_OUT = 20  # about one of so many of the user's own images
HELD_OUT_FILE = "held_out.json"  # in the run's folder: names of these images


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


def open_images(config: ImageTokenizerConfig, recorded: Set[str] = frozenset()) -> tuple[Images, Images]:
    """The images that are trained on, and held-out ones.

    Args:
        recorded: names of own images that the run has held out so far (`recorded_names`).

    Raises:
        FileNotFoundError: the folder does not exist, holds too few images for one to be held out, or none of the recorded ones.
        DocumentError: one of them is no image that can be read, or a folder or a link can't be followed.
        ValueError: there are fewer images than a batch needs.
        MissingImages: the packages with the drawings are not installed.
    """
    train, heldout = _drawings() if config.images is None else _own_images(Path(config.images), recorded)
    if len(train) < config.batch:
        raise ValueError(f"there are {len(train)} images for a batch of {config.batch}: lower --batch, or add images")
    return train, heldout


def _drawings() -> tuple[Images, Images]:
    # Held-out drawings of known things, and drawings of things that no training drawing shows.
    return EmojiImages(drawings("train")), EmojiImages((*drawings("drawings"), *drawings("names")))


def _own_images(folder: Path, recorded: Set[str]) -> tuple[Images, Images]:
    if not folder.is_dir():
        raise FileNotFoundError(f"images: there is no folder {folder}: name a folder of images")
    files = _image_files(folder)
    if len(files) < HELD_OUT:
        raise FileNotFoundError(f"images: {folder} holds {len(files)} images, fewer than {HELD_OUT}: add images")
    for file in files:  # now, and not after an hour of training
        try:
            check_image(file)
        except OSError as error:
            raise DocumentError(f"{file} cannot be read ({error}): repair or remove it") from error
    held = _held_out([file.relative_to(folder).as_posix() for file in files], recorded)
    if not any(held):
        raise FileNotFoundError(
            f"images: {folder} no longer holds any image that the run has held out, such as {min(recorded)}: restore one, or "
            "train in another folder with --name"
        )
    heldout = [file for file, is_held in zip(files, held, strict=True) if is_held]
    for file in heldout:
        read_image(file)  # all of it: otherwise it would first be decoded after the training
    return OwnImages([file for file, is_held in zip(files, held, strict=True) if not is_held]), OwnImages(heldout)


def _held_out(names: Sequence[str], recorded: Set[str]) -> list[bool]:
    """Which of the images are held out; none of them if all recorded ones are gone."""
    # By its name: another file more or less moves none to the other side, where it would be scored though it was trained on.
    numbers = [stable_hash(name) for name in names]
    held = [number % HELD_OUT == 0 or name in recorded for name, number in zip(names, numbers, strict=True)]
    # Only once: which number is the smallest does depend on the other files.
    if not any(held) and not recorded:
        held[numbers.index(min(numbers))] = True
    return held


def _image_files(folder: Path) -> list[Path]:
    """All files with an image's name in a folder and those within it, links included, each image once.

    Raises:
        DocumentError: a folder can't be read, a link is broken, or an image's name is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise DocumentError(
            f"images: the folder {error.filename!r} cannot be read ({error.strerror}): make it readable, or remove it"
        ) from error

    root = Path(os.path.realpath(folder))
    found, seen = [], {root}

    def is_new(path: Path, endings: Sequence[str] | None = None) -> bool:
        real = Path(os.path.realpath(path))
        # Each folder and file once, by the name that it has without links, if that is read: under two names an image could be
        # both trained on and held out.
        is_read = real.is_relative_to(root) and (endings is None or real.suffix.lower() in endings)
        if real in seen or (path.is_symlink() and is_read):
            return False
        seen.add(real)
        return True

    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in sorted(folders) if is_new(Path(place, name))]
        for path in (Path(place, name) for name in sorted(names)):
            # Whatever its name, since it may have led to a folder of images. Not `Path.exists`, which may raise here.
            if path.is_symlink() and not os.path.exists(path):
                raise DocumentError(f"images: {str(path)!r} is a broken link: restore what it leads to, or remove it")
            if path.suffix.lower() in ENDINGS and is_new(path, ENDINGS):
                found.append(path)
    for path in found:
        try:
            str(path.relative_to(folder)).encode()
        except UnicodeEncodeError as error:
            raise DocumentError(
                f"images: the name of the file {str(path)!r} is not UTF-8: rename the file or its folder"
            ) from error
    return sorted(found)


def recorded_names(config: ImageTokenizerConfig) -> Set[str]:
    """Names of the own images that a run has held out so far; none if it has not begun, or earlier versions began it.

    Raises:
        DocumentError: their file is damaged.
    """
    path = config.folder / HELD_OUT_FILE
    if not path.exists():
        return frozenset()
    names = json_file(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DocumentError(f"{path} is no list of names: restore it, or train in another folder with --name")
    return frozenset(names)


def record_names(config: ImageTokenizerConfig, heldout: Images, recorded: Set[str]) -> None:
    """Keeps the names of the run's held-out images and those recorded before: it trains on none of them when it continues."""
    if config.images is not None and isinstance(heldout, OwnImages):
        names = {file.relative_to(config.images).as_posix() for file in heldout.files}
        write_json(config.folder / HELD_OUT_FILE, sorted(names | recorded))


def open_batches(config: ImageTokenizerConfig, images: Images) -> DrawnBatches:
    """The batches of a run."""
    draw = _Draw(images, Preparation(size=config.shape.size, crop=False))
    return DrawnBatches(draw, len(images), batch=config.batch, seed=config.training.seed)
