"""Images on their way into another data set: decoded a few at a time, each checked; PNG and JPEG stay as they are stored.

Dimension key: T steps, H height, W width, C channels.
"""

import io
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from generalist.data.formats.columns import Column, Frames, decode_image
from generalist.data.formats.faults import BrokenRecord
from generalist.envs.rlds import png

Encoding = Literal["png", "jpeg"]
AT_ONCE = 16
"""Frames of a video that are in memory."""
PASSED: dict[str | None, Encoding] = {"PNG": "png", "JPEG": "jpeg"}
"""Pillow's names of the formats whose files are taken over, since every reader knows them."""
# Not P (palettes) and CMYK: readers turn these into colours each in their own way.
MODES = ("L", "RGB", "RGBA")
"""Of images whose stored values are the pixels that readers see."""
Loaded = tuple[UInt8[np.ndarray, "H W C"], bytes | None]
"""An image, and the file that it may be taken over with."""


def loaded(column: Column, shape: tuple[int | None, ...] = (None, None, None)) -> Iterator[Loaded]:
    """The T images of a column.

    Args:
        shape: (H, W, C) that each must have; None: anything.

    Raises:
        BrokenRecord: one can't be read, has more than 8 bits, or another shape.
    """
    for first in range(0, len(column), AT_ONCE):
        # Of a video or an array on disk only these frames are decoded.
        several = column[first : first + AT_ONCE]
        files = several if isinstance(several, list) else several.encoded if isinstance(several, Frames) else None
        for place, image in enumerate(_decoded(several, first)):
            if (
                image.dtype != np.uint8
                or image.ndim != 3
                or any(wanted not in (None, got) for wanted, got in zip(shape, image.shape, strict=True))
            ):
                raise BrokenRecord(
                    f"image {first + place} is {image.dtype} {image.shape}, where uint8 {shape} should be"
                )
            # Encoding a JPEG anew would lose quality each time a set is converted.
            yield image, files[place] if files is not None and encoding(files[place]) else None


def _decoded(column: Column, first: int) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    if isinstance(column, Frames):
        yield from column.decode()
        return
    for step, content in enumerate(column, start=first):
        yield decode_image(content, f"image {step}")


def encoding(content: bytes) -> Encoding | None:
    """How an image is stored, if its file can be taken over as it is."""
    with Image.open(io.BytesIO(content)) as image:
        # A PNG may name one colour as transparent, which readers leave out or honour.
        plain = image.mode in MODES and "transparency" not in image.info
        return PASSED.get(image.format) if plain else None


def file_of(image: Loaded) -> bytes:
    """The file of an image: the one it came in, or PNG."""
    array, stored = image
    return png(array) if stored is None else stored
