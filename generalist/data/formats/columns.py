"""The values of an episode's steps, a column per part.

Dimension key: T steps, H height, W width, C channels.
"""

import abc
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from generalist.data.formats.faults import BrokenRecord
from generalist.data.images import FORMATS, LARGEST_IMAGE, pixels


class Frames(abc.ABC):
    """T images that are read and decoded only when a window asks for them: of a video, of a large array on disk."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, steps: slice) -> "Frames":
        """The images of some steps, still undecoded."""

    @abc.abstractmethod
    def decode(self) -> UInt8[np.ndarray, "T H W C"]:
        """All of them.

        Raises:
            BrokenRecord: one can't be read; the message names the file and the frame.
        """

    @property
    def nbytes(self) -> int:
        """Memory that they take undecoded."""
        return 0

    @property
    def encoded(self) -> Sequence[bytes] | None:
        """The file of each image, where they are stored so."""
        return None


class ArrayFrames(Frames):
    """Images that are an array already."""

    def __init__(self, images: UInt8[np.ndarray, "T H W C"]):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, steps: slice) -> "ArrayFrames":
        return ArrayFrames(self._images[steps])

    def decode(self) -> UInt8[np.ndarray, "T H W C"]:
        """See `Frames.decode`."""
        return self._images

    @property
    def nbytes(self) -> int:
        """See `Frames.nbytes`."""
        return self._images.nbytes


class EncodedFrames(Frames):
    """Images that are JPEG, PNG or the like.

    Args:
        images: T of them.
        shape: (H, W, C) that each must have.
        where: file and record, for messages.
        first: number of the first one within the record.
    """

    def __init__(self, images: Sequence[bytes], shape: tuple[int | None, ...], where: str, first: int = 0):
        self._images, self._shape, self._where, self._first = images, shape, where, first

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, steps: slice) -> "EncodedFrames":
        # A message about frame 3 of a window should name its number within the episode.
        first = self._first + steps.indices(len(self))[0]
        return EncodedFrames(self._images[steps], self._shape, self._where, first)

    def decode(self) -> UInt8[np.ndarray, "T H W C"]:
        """See `Frames.decode`."""
        images = []
        for number, encoded in enumerate(self._images, start=self._first):
            image = decode_image(encoded, f"{self._where}, frame {number}")
            # `np.stack` would refuse other sizes too, but without saying which frame of which file has them.
            if any(should not in (None, size) for should, size in zip(self._shape, image.shape, strict=True)):
                raise BrokenRecord(
                    f"{self._where}, frame {number} has the shape {image.shape}, where {self._shape} is expected"
                )
            images.append(image)
        # (T, H, W, C); a window of no frames keeps its rank, so that whoever joins windows needs no case for it.
        return np.stack(images) if images else np.empty((0, *(size or 0 for size in self._shape)), np.uint8)

    @property
    def encoded(self) -> Sequence[bytes]:
        """See `Frames.encoded`."""
        return self._images

    @property
    def nbytes(self) -> int:
        """See `Frames.nbytes`."""
        return sum(map(len, self._images))


def decode_image(encoded: bytes, where: str) -> UInt8[np.ndarray, "H W C"]:
    """One image of 8 bits a colour.

    Raises:
        BrokenRecord: it is none that is read, broken, too large, or of more bits.
    """
    values = _opened(encoded, where)
    # Depth maps and other images of 16 bits would lose their meaning if they were scaled to 8 as photographs are.
    if values.dtype != np.uint8:
        raise BrokenRecord(f"{where} has colours of the type {values.dtype}: store 8 bits a colour")
    # (H, W) of grey to (H, W, 1)
    return values if values.ndim == 3 else values[..., None]


def _opened(encoded: bytes, where: str) -> Shaped[np.ndarray, "H W *C"]:
    try:
        # `formats` keeps Pillow from formats that run other programs (EPS); opening reads the header only.
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            # Before anything is decoded: a PNG of some kilobytes can declare gigabytes of one colour.
            if image.width * image.height > LARGEST_IMAGE:
                raise BrokenRecord(f"it has {image.width} × {image.height} pixels")
            return pixels(image)
    except Exception as error:  # a broken file ends Pillow's decoders in many ways
        raise BrokenRecord(f"{where} can't be read ({error})") from error


# Images as a list and not as an array: NumPy's byte strings lose zeros at their ends, and arrays of objects are
# texts.
Column = np.ndarray | list[bytes] | Frames
"""(T, ...) values of one part of every step, texts as bytes or str in an array of objects; T encoded images; or T frames.
Images are never a bare array, which could be numbers."""


def decode(column: Column) -> Shaped[np.ndarray, "T ..."]:
    """Images from what encodes them, (T, H, W, C); anything else as it is.

    Raises:
        BrokenRecord: an image can't be read, has too many pixels, or another size than the first one.
    """
    if isinstance(column, np.ndarray):
        return column
    if isinstance(column, Frames):
        return column.decode()
    images = [_opened(encoded, f"image {step}") for step, encoded in enumerate(column)]
    if len({image.shape for image in images}) > 1:
        raise BrokenRecord(f"its images have several sizes: {images[0].shape} and others")
    stacked = np.stack(images)
    # (T, H, W) of grey to (T, H, W, 1)
    return stacked if stacked.ndim == 4 else stacked[..., None]


def nbytes(column: Any) -> int:
    """Memory that a column takes."""
    if isinstance(column, list):
        return sum(map(len, column))
    # `nbytes` of such an array counts its pointers, not the texts that they lead to.
    if isinstance(column, np.ndarray) and column.dtype == object:
        return sum(len(value) for value in column.reshape(-1))
    return int(column.nbytes)
