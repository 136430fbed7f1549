"""An image as a published model is shown it: whole, with crops beside it (Gemma 3's pan and scan), or as an overview and tiles
(LLaVA 1.6).

Dimension key: H height, W width, S pixels per side of a tile, G grid cells per side of a tile, n positions.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from generalist.tokenizers.pieces import Modality

ROW_END = -1
"""`payload_index` of the position that ends a row of an image that is cut into tiles."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the encoder sees of an image, and the positions that it takes."""

    images: tuple[UInt8[np.ndarray, "_H _W 3"], ...]
    modality: Int32[np.ndarray, "n"]
    """IMAGE for the first position of each run of positions, else PROJECTED."""
    payload_index: Int32[np.ndarray, "n"]
    """Of IMAGE: which of `images`. Of PROJECTED: 0, or 1 + the number of the cell, counted over all images from the one at the
    first position on, or `ROW_END`."""


def one_by_one(images: list[UInt8[np.ndarray, "_H _W 3"]], count: int) -> Shown:
    """Images of `count` positions each."""
    first = np.arange(len(images) * count) % count == 0
    index = np.where(first, np.arange(len(images) * count) // count, 0)
    modality = np.where(first, np.int32(Modality.IMAGE), np.int32(Modality.PROJECTED))
    return Shown(tuple(images), modality.astype(np.int32), index.astype(np.int32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanAndScan:
    """Crops of long images, beside the image itself (Gemma 3, as its processor in transformers cuts them)."""

    smallest: int
    """Pixels of the shorter side of a crop."""
    most: int
    """Crops of an image."""
    ratio: float
    """Of the longer to the shorter side, below which an image has no crops."""

    def crops(self, image: UInt8[np.ndarray, "H W 3"]) -> list[UInt8[np.ndarray, "_H _W 3"]]:
        """The crops, from left to right or from top to bottom; none of an image that is not long."""
        height, width = image.shape[:2]
        long, short = max(height, width), min(height, width)
        if long / short < self.ratio:
            return []
        count = min(self.most, max(2, min(long // self.smallest, math.floor(long / short + 0.5))))
        size = math.ceil(long / count)
        if min(size, short) < self.smallest:
            return []
        starts = [size * number for number in range(count)]
        return [image[:, at : at + size] if width >= height else image[at : at + size] for at in starts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """An overview and tiles of an image at the best of several sizes (LLaVA 1.6: Liu et al., 2024, "AnyRes"), as its processor in
    transformers cuts them. Cells of the padding around the image have no positions, and each row of cells ends with one more."""

    size: int
    """S: pixels per side of a tile."""
    grid: int
    """G: grid cells per side of a tile."""
    sizes: tuple[tuple[int, int], ...]
    """Heights and widths that an image may be resized to, multiples of S."""
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def shown(self, image: UInt8[np.ndarray, "H W 3"]) -> Shown:
        """The overview and the tiles, row by row."""
        height, width = self._best(*image.shape[:2])
        picture = Image.fromarray(np.ascontiguousarray(image))
        whole = Image.new("RGB", (width, height))
        inner = picture.resize(_inside(picture.size, (width, height)), self.resample)
        whole.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
        pixels, size = np.asarray(whole), self.size
        tiles = [
            pixels[top : top + size, left : left + size]
            for top in range(0, height, size)
            for left in range(0, width, size)
        ]
        overview = np.asarray(picture.resize((size, size), self.resample))
        cells = self._cells(height // size, width // size, *image.shape[:2])
        index = np.concatenate([1 + np.arange(self.grid**2), cells])
        modality = np.full(index.shape, Modality.PROJECTED, np.int32)
        modality[0], index[0] = Modality.IMAGE, 0
        return Shown((overview, *tiles), modality, index.astype(np.int32))

    def _best(self, height: int, width: int) -> tuple[int, int]:
        """The size that keeps most of the image's pixels and, among equals, wastes the fewest."""

        def kept(size: tuple[int, int]) -> tuple[int, int]:
            scale = min(size[1] / width, size[0] / height)
            used = min(int(width * scale) * int(height * scale), width * height)
            return used, used - size[0] * size[1]

        return max(self.sizes, key=kept)

    def _cells(self, rows: int, columns: int, height: int, width: int) -> Int32[np.ndarray, "_"]:
        """`payload_index` of the cells of all tiles, row by row, without those of the padding.

        Args:
            rows: of tiles.
        """
        down, right = np.indices((rows * self.grid, columns * self.grid))
        tile = down // self.grid * columns + right // self.grid
        cell = down % self.grid * self.grid + right % self.grid
        index = 1 + (1 + tile) * self.grid**2 + cell
        have_rows, have_columns = index.shape
        if width / height > have_columns / have_rows:
            gap = (have_rows - int(round(height * (have_columns / width), 7))) // 2
            index = index[gap : have_rows - gap]
        else:
            gap = (have_columns - int(round(width * (have_rows / height), 7))) // 2
            index = index[:, gap : have_columns - gap]
        return np.pad(index, ((0, 0), (0, 1)), constant_values=ROW_END).astype(np.int32).reshape(-1)


def _inside(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the largest picture of the same shape within a room."""
    across, down = room[0] / size[0], room[1] / size[1]
    if across < down:
        return room[0], min(math.ceil(size[1] * across), room[1])
    return min(math.ceil(size[0] * down), room[0]), room[1]
