"""Image files that a user brings: opened in one place, and read as 8 bits a colour or refused, never cut off.

8 bits or less; CMYK, YCbCr       as they are; palettes are looked up, transparency is laid on white
16 bits of grey (PNG, PGM, TIFF)  divided by 257: 65,535 is white; 12 bits in a TIFF by 4,095 / 255
16 bits a colour                  the upper 8
32 bits, whole numbers or floats  refused: nothing says what is black and what is white
several frames or pages           the first
"""

import dataclasses
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from generalist.data.files import DocumentError, is_file
from generalist.data.formats.places import Place, read_range

LARGEST_IMAGE = 64_000_000  # pixels: more is a mistake, or meant to exhaust the memory
LARGEST_ENCODED = 2**28  # bytes, of an image within another file, which is read whole
# No format that is a program (EPS is run by another one), and none that Pillow needs a plugin for.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# How names of images end, of formats that are read or not: what ends so is meant as an image.
ENDINGS = (
    *(".apng", ".avif", ".bmp", ".dds", ".eps", ".exr", ".gif", ".heic", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg"),
    *(".jpg", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".svg", ".tga", ".tif", ".tiff", ".webp"),
)
# How whole files of a format end. One that ends otherwise may be whole all the same, with something behind it.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
# Tags of a TIFF.
BITS, PHOTOMETRIC = 258, 262
WHITE_IS_ZERO = 0


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image in memory, as PNG, JPEG or another of the formats."""

    content: bytes = dataclasses.field(repr=False)
    name: str
    """File and record that it is from, for messages."""

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Extract:
    """An image that is a part of a larger file, read when it is used."""

    file: Place
    offset: int
    """Bytes before it."""
    size: int
    """Its bytes."""
    name: str
    """File and record that it is from, for messages."""

    def __str__(self) -> str:
        return self.name


ImageRef = Place | Encoded | Extract
"""An image that is read and decoded only when it is used: a file, or encoded bytes."""


def read_image(path: ImageRef) -> np.ndarray:
    """An image, uint8 (H, W, 3), upright as its camera says; transparency is laid on white.

    Raises:
        DocumentError: it is no image, broken, larger than 64 million pixels, or of numbers without a black and a white.
    """
    with opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        layers = _transparent(_grey(image, path) if image.mode.startswith(("I", "F")) else image, path)
    white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, layers).convert("RGB"))


def check_image(path: ImageRef) -> None:
    """Reads no pixel of an image, unless its file does not end as whole ones do.

    Raises:
        DocumentError: it is not there, or what `read_image` would find at its beginning, or at its end.
    """
    if not is_there(path):
        hint = " (between folders stands / here)" if "\\" in str(path) else ""
        raise DocumentError(f"there is no image {path}: put it there{hint}")
    with opened(path) as image:
        if image.mode.startswith(("I", "F")):
            _range(image, path)
        if not _ends(path, ENDS.get(str(image.format), b"")):
            image.load()


def is_there(image: ImageRef) -> bool:
    """Whether an image that is a file of its own is there; what is in another one is."""
    return isinstance(image, Encoded | Extract) or is_file(image)


@contextmanager
def opened(path: ImageRef) -> Iterator[Image.Image]:
    """An image, opened; whatever goes wrong with it until it is closed names it.

    Raises:
        DocumentError: it is no image, broken, larger than 64 million pixels, or has a transparency that Pillow would misread.
    """
    try:
        # Not by its name: what Pillow then maps into memory it turns wrongly (a TIFF that lies on its side).
        with _stream(path) as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise DocumentError(f"{path} has {image.width} × {image.height} pixels: make it smaller")
            if "transparency" in image.info and any(tile.args == "RGB;16B" for tile in image.tile):
                # Pillow looks for a colour of 16 bits among colours of 8.
                raise DocumentError(
                    f"{path} has one transparent colour of 16 bits: save it with 8, or with an opacity channel"
                )
            yield image
    except DocumentError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DocumentError(f"{path} has too many pixels: make it smaller ({error})") from error
    except UnidentifiedImageError as error:
        raise DocumentError(
            f"{path} is no image that can be read (it is none of {', '.join(FORMATS)}): convert it, or get it again"
        ) from error
    except Exception as error:  # a broken file ends Pillow's decoders in many ways
        raise DocumentError(f"{path} is no image that can be read ({error}): get it again") from error


def pixels(image: Image.Image) -> np.ndarray:
    """The values of an image that another tool stored: grey, RGB or RGBA as they are; palettes, whose values are mere numbers of
    colours, and what else has 8 bits or less, as one of those."""
    if image.mode in ("L", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    clear = image.mode in ("LA", "La", "PA") or "transparency" in image.info
    return np.asarray(image.convert("L" if image.mode == "1" else "RGBA" if clear else "RGB"))


def _stream(path: ImageRef) -> AbstractContextManager[Any]:
    """What an image is read from."""
    if isinstance(path, Encoded | Extract):
        size = path.size if isinstance(path, Extract) else len(path.content)
        if size > LARGEST_ENCODED:
            raise DocumentError(f"{path} has {size:,} bytes, more than an image may have: make it smaller")
        return io.BytesIO(path.content if isinstance(path, Encoded) else read_range(path.file, path.offset, size))
    return path.open("rb")


def _ends(path: ImageRef, end: bytes) -> bool:
    with _stream(path) as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - len(end)))
        return file.read() == end


def _transparent(image: Image.Image, path: ImageRef) -> Image.Image:
    """As RGBA.

    Raises:
        DocumentError: its colours are of a kind that is not converted (LAB).
    """
    if image.mode == "La":  # grey multiplied by its opacity, which Pillow takes back but not in one go
        image = image.convert("LA")
    if image.mode == "RGBX":  # the fourth is no transparency
        image = image.convert("RGB")
    try:
        return image.convert("RGBA")
    except ValueError as error:
        raise DocumentError(
            f"{path} has colours of the kind {image.mode}, which is not read: save it as RGB"
        ) from error


def _range(image: Image.Image, path: ImageRef) -> int:
    """The white of an image of one deep channel, whose black is 0.

    Raises:
        DocumentError: its file does not say.
    """
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        return 2 ** int(tags.get(BITS, (16,))[0]) - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, which Pillow holds as 32
        return 2**16 - 1
    numbers = "floats" if image.mode == "F" else "signed or 32-bit whole numbers"
    raise DocumentError(
        f"{path} holds {numbers}, of which nothing says what is black and what is white: save it as 8 or 16 bits a pixel, "
        "scaled by the range that you know of it, such as numpy.uint16(65535 * (values - low) / (high - low))"
    )


def _grey(image: Image.Image, path: ImageRef) -> Image.Image:
    """One deep channel as 8 bits, with the transparency that a PNG may give to one of its values."""
    white, clear = _range(image, path), image.info.get("transparency")
    values = np.asarray(image)
    levels = np.rint(values * (255 / white)).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow minds at 8 bits alone
        levels = 255 - levels
    shown = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (Image.fromarray(levels), shown))
