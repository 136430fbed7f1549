"""The user's image files: opened in one place, and read as 8 bits per colour or refused, never clipped.

8 bits or less; CMYK, YCbCr       as they are; palettes are looked up, transparency is laid on white
16 bits of grey (PNG, PGM, TIFF)  divided by 257: 65,535 is white; 12 bits in a TIFF by 4,095 / 255
16 bits per colour                the upper 8
32 bits, integers or floats       refused: nothing says which value is black and which is white
several frames or pages           the first

Dimension key: H height, W width, C channels.
"""

import dataclasses
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from generalist.data.files import DocumentError, is_file
from generalist.data.formats.places import Place, read_range

LARGEST_IMAGE = 64_000_000  # pixels: more is a mistake, or meant to exhaust the memory
LARGEST_ENCODED = 2**28  # bytes of an image within another file, which is read whole
# No format that is a program (Pillow runs Ghostscript for EPS), and none for which Pillow needs a plugin.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Endings of image files, also of formats that are not read: a name with such an ending is meant as an image.
ENDINGS = (
    *(".apng", ".avif", ".bmp", ".dds", ".eps", ".exr", ".gif", ".heic", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg"),
    *(".jpg", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".svg", ".tga", ".tif", ".tiff", ".webp"),
)
# The last bytes of complete files, by format. A file with another ending may be complete, with something appended.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
# Tags of a TIFF: BitsPerSample and PhotometricInterpretation, with one value of the latter (TIFF 6.0, section 8).
BITS, PHOTOMETRIC = 258, 262
WHITE_IS_ZERO = 0
# A tag of EXIF, and those of its values whose images lie on their side.
ORIENTATION = 0x0112
ON_ITS_SIDE = (5, 6, 7, 8)

Size = tuple[float, float]
"""Height and width in pixels."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image in memory, as PNG, JPEG or another of the formats."""

    content: bytes = dataclasses.field(repr=False)
    name: str
    """The file and record that it comes from, for messages."""

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
    """The file and record that it comes from, for messages."""

    def __str__(self) -> str:
        return self.name


ImageRef = Place | Encoded | Extract
"""An image that is read and decoded only when it is used: a file, or encoded bytes."""


def read_image(path: ImageRef, annotated: Size | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image, rotated upright as its camera recorded; transparency is laid on white.

    Args:
        annotated: the size that annotations of places give: the image is read as they mean it, which may be not upright.

    Raises:
        DocumentError: it is no image, broken, larger than 64 million pixels, of a kind of numbers without a known range, or of
            another aspect than its annotations.
    """
    with opened(path) as image:
        if annotated is None or _is_upright(image, path, annotated):
            ImageOps.exif_transpose(image, in_place=True)
        # Modes I and F are one channel of more than 8 bits, which Pillow would clip at 255 instead of scaling it.
        layers = _transparent(_grey(image, path) if image.mode.startswith(("I", "F")) else image, path)
    white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, layers).convert("RGB"))


def check_image(path: ImageRef, annotated: Size | None = None) -> None:
    """Checks an image without reading its pixels, unless its file lacks the ending of a complete one.

    Args:
        annotated: see `read_image`.

    Raises:
        DocumentError: the file is missing, or an error of `read_image` that shows at the file's beginning or end.
    """
    if not is_there(path):
        hint = " (folders are separated by / here)" if "\\" in str(path) else ""
        raise DocumentError(f"there is no image {path}: put it there{hint}")
    # Opening reads the header alone.
    with opened(path) as image:
        if image.mode.startswith(("I", "F")):
            _range(image, path)
        if annotated is not None:
            _is_upright(image, path, annotated)
        # Every file ends with the empty bytes: other formats have no known ending, and are not read for it.
        if not _ends(path, ENDS.get(str(image.format), b"")):
            image.load()


class TooManyPixels(DocumentError):
    """An image that is larger than any that is read."""


def is_there(image: ImageRef) -> bool:
    """Whether an image that is a file of its own is there; what is in another one is."""
    return isinstance(image, Encoded | Extract) or is_file(image)


@contextmanager
def opened(path: ImageRef) -> Iterator[Image.Image]:
    """An opened image; any error until it is closed names it.

    Raises:
        DocumentError: it is no image, broken, larger than 64 million pixels, or has a transparency that Pillow would misread.
    """
    try:
        # Not by its name: Pillow would map the file into memory, and then rotate it wrongly (a TIFF that lies on its side).
        with _stream(path) as file, Image.open(file, formats=FORMATS) as image:
            # By the header, before any pixel is decoded: a small file can unpack to more than the memory holds.
            if image.width * image.height > LARGEST_IMAGE:
                raise TooManyPixels(f"{path} has {image.width} × {image.height} pixels: make it smaller")
            if "transparency" in image.info and any(tile.args == "RGB;16B" for tile in image.tile):
                # Pillow looks for the 16-bit colour among colours of 8 bits.
                raise DocumentError(
                    f"{path} has one transparent colour of 16 bits: save it with 8, or with an opacity channel"
                )
            yield image
    except DocumentError:
        raise
    # Pillow's own limits are higher, but checked first, when the file is opened; the warning is raised only under `-W error`.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"{path} has too many pixels: make it smaller ({error})") from error
    except UnidentifiedImageError as error:
        raise DocumentError(
            f"{path} is no image that can be read (it is none of {', '.join(FORMATS)}): convert it, or get it again"
        ) from error
    except Exception as error:  # broken files make Pillow's decoders raise almost anything, such as a SyntaxError
        raise DocumentError(f"{path} is no image that can be read ({error}): get it again") from error


def pixels(image: Image.Image) -> Shaped[np.ndarray, "H W *C"]:
    """The values of an image in a data set, (H, W) for grey ones: grey, RGB and RGBA as they are; palettes, whose values are only
    indices of colours, and all other modes of 8 bits or less, converted to one of these."""
    if image.mode in ("L", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    clear = image.mode in ("LA", "La", "PA") or "transparency" in image.info
    return np.asarray(image.convert("L" if image.mode == "1" else "RGBA" if clear else "RGB"))


def _is_upright(image: Image.Image, path: ImageRef, annotated: Size) -> bool:
    """Whether annotations are of the image upright, and not of its pixels as they are stored, as COCO's are. Their size tells; if
    both have the same aspect, the stored ones are meant.

    Raises:
        DocumentError: neither has the annotations' aspect, up to rounding.
    """
    height, width = annotated
    sizes = [(image.height, image.width)]
    if sizes[0] == annotated:
        return False
    # Pillow gives the upright size of a TIFF. Only here, since a PNG without this tag is decoded to look for it.
    if image.format != "TIFF" and image.getexif().get(ORIENTATION) in ON_ITS_SIDE:
        sizes.append((image.width, image.height))
    # A resized copy has sides of whole pixels, so that either may be off by one.
    differences = [abs(tall * width - wide * height) for tall, wide in sizes]
    if min(differences) > max(height, width):
        raise DocumentError(
            f"{path} has {image.width} × {image.height} pixels, but its annotations are of {width:g} × {height:g}: get the image "
            "that was annotated, or a copy of another size with the same aspect"
        )
    return differences.index(min(differences)) == 1


def _stream(path: ImageRef) -> AbstractContextManager[Any]:
    """What an image is read from."""
    if isinstance(path, Encoded | Extract):
        size = path.size if isinstance(path, Extract) else len(path.content)
        if size > LARGEST_ENCODED:
            raise DocumentError(f"{path} has {size:,} bytes, more than an image may have: make it smaller")
        return io.BytesIO(path.content if isinstance(path, Encoded) else read_range(path.file, path.offset, size))
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise DocumentError(f"{path} is no file (but a folder, a pipe or a device): put the image there")
    return path.open("rb")


def _ends(path: ImageRef, end: bytes) -> bool:
    with _stream(path) as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - len(end)))
        return file.read() == end


def _transparent(image: Image.Image, path: ImageRef) -> Image.Image:
    """The image as RGBA.

    Raises:
        DocumentError: Pillow does not convert its colours (LAB).
    """
    if image.mode == "La":  # premultiplied grey, which Pillow converts to RGBA only by way of LA
        image = image.convert("LA")
    if image.mode == "RGBX":  # the fourth channel is padding, not opacity
        image = image.convert("RGB")
    try:
        return image.convert("RGBA")
    except ValueError as error:
        raise DocumentError(
            f"{path} has colours of the mode {image.mode}, which is not supported: save it as RGB"
        ) from error


def _range(image: Image.Image, path: ImageRef) -> int:
    """The value of white in an image with one channel of more than 8 bits, whose black is 0.

    Raises:
        DocumentError: its file does not say.
    """
    if image.mode.startswith("I;16"):
        # A TIFF may use fewer than 16 bits, such as the 12 of a camera's sensor.
        tags = getattr(image, "tag_v2", {})
        return 2 ** int(tags.get(BITS, (16,))[0]) - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, which Pillow holds as 32
        return 2**16 - 1
    numbers = "floats" if image.mode == "F" else "signed or 32-bit integers"
    raise DocumentError(
        f"{path} holds {numbers}, and does not say which values are black and white: save it as 8 or 16 bits per pixel, "
        "scaled by its known range, such as numpy.uint16(65535 * (values - low) / (high - low))"
    )


def _grey(image: Image.Image, path: ImageRef) -> Image.Image:
    """One channel of more than 8 bits as 8 bits of grey, with the transparency that a PNG may give to one value."""
    white, clear = _range(image, path), image.info.get("transparency")
    values = np.asarray(image)  # (H, W)
    levels = np.rint(values * (255 / white)).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts such images only at 8 bits
        levels = 255 - levels
    # Compared before the rounding, which would make several values one; without transparency nothing equals None.
    shown = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (Image.fromarray(levels), shown))
