"""Images as patches with their positions (Gato, section 2.1 and appendix C.3), or as frames of one size.

Dimension key: T images, H height, W width, C channels, P patches, S pixels per side of a frame.
"""

import numpy as np
from jaxtyping import Int32, Shaped, UInt8
from PIL import Image

from generalist.tokenizers.pieces import PATCH_SIZE, Modality, Piece

PLACES = 128
"""Parts into which an image's height and width are divided to quantise patch positions (Gato, appendix C.3)."""

LEVELS = 40
"""Grey levels per standard deviation of a standardised pixel."""
LEAST_DEVIATION = 8
"""Added to every deviation, in grey levels: pixels that hardly ever change must not be amplified into noise."""


def to_rgb(images: Shaped[np.ndarray, "*T H W C"]) -> UInt8[np.ndarray, "*T H W 3"]:
    """Images with 1 (grey), 3 (RGB) or 4 (RGBA) channels as RGB, blended with white by alpha.

    Raises:
        ValueError: another number of channels or another dtype.
    """
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape[-3:]:
        raise ValueError(
            f"an image must be uint8 H×W×C with 1, 3 or 4 channels, got {images.dtype} of shape {images.shape}"
        )
    channels = images.shape[-1]
    if channels == 1:
        return np.repeat(images, 3, axis=-1)
    if channels == 3:
        return images
    # Integer arithmetic, rounded by the 127: float blending would differ between machines. uint32 holds 255 · 255 + 127.
    alpha = images[..., 3:].astype(np.uint32)
    return ((images[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def moved(images: Shaped[np.ndarray, "*T H W C"], down: int, right: int) -> Shaped[np.ndarray, "*T H W C"]:
    """Images shifted by `down` and `right` pixels (negative: up, left), every image by the same amount.

    Pixels that enter at an edge repeat the edge's pixels.
    """
    # Padded by the shift on all sides, then a window of the old size is cut out, moved the other way.
    size = (abs(down), abs(right))
    around = [(0, 0)] * (images.ndim - 3) + [(size[0],) * 2, (size[1],) * 2, (0, 0)]
    top, left = size[0] - down, size[1] - right
    height, width = images.shape[-3:-1]
    return np.pad(images, around, mode="edge")[..., top : top + height, left : left + width, :]


def patchify(image: UInt8[np.ndarray, "H W *C"]) -> tuple[UInt8[np.ndarray, "P 16 16 3"], Int32[np.ndarray, "P 4"]]:
    """Cuts an image into 16×16 patches in raster order.

    Height and width are padded with black at the bottom and the right to multiples of 16.

    Returns:
        Patches and their intervals.
    """
    return patchify_all(_with_channels(np.asarray(image))[None])


def patchify_all(
    images: UInt8[np.ndarray, "T H W C"],
) -> tuple[UInt8[np.ndarray, "P 16 16 3"], Int32[np.ndarray, "P 4"]]:
    """`patchify` of several images of one size, one after the other."""
    images = to_rgb(images)
    count, height, width, _ = images.shape
    # Negated floor division rounds up without going through floats.
    rows, columns = -(-height // PATCH_SIZE), -(-width // PATCH_SIZE)
    bottom, right = rows * PATCH_SIZE - height, columns * PATCH_SIZE - width
    if bottom or right:
        images = np.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
    # (T, rows, 16, columns, 16, 3) → (T, rows, columns, 16, 16, 3): raster order of whole patches.
    cut = images.reshape(count, rows, PATCH_SIZE, columns, PATCH_SIZE, 3).swapaxes(2, 3)
    patches = cut.reshape(count * rows * columns, PATCH_SIZE, PATCH_SIZE, 3)
    return patches, np.tile(patch_intervals(rows, columns), (count, 1))


def patch_intervals(rows: int, columns: int) -> Int32[np.ndarray, "P 4"]:
    """Position of each patch of a grid: row low, row high, column low, column high in 0..128."""
    # Relative to the image's size, so that a patch in the middle has the same position in images of all sizes.
    row, column = _edges(rows), _edges(columns)
    intervals = np.empty((rows, columns, 4), np.int32)
    intervals[..., 0], intervals[..., 1] = row[:-1, None], row[1:, None]
    intervals[..., 2], intervals[..., 3] = column[:-1], column[1:]
    return intervals.reshape(-1, 4)


def to_frame(image: UInt8[np.ndarray, "H W *C"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """An image stretched to `size` × `size` pixels, whatever its aspect ratio."""
    rgb = to_rgb(_with_channels(np.asarray(image)))
    # Without resampling: recorded frames already have this size, and their pixels must stay exact.
    if rgb.shape[:2] == (size, size):
        return rgb
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize((size, size), Image.Resampling.BILINEAR))


def standardised(
    frames: UInt8[np.ndarray, "T S S 3"], mean: UInt8[np.ndarray, "S S 3"], deviation: UInt8[np.ndarray, "S S 3"]
) -> UInt8[np.ndarray, "T S S 3"]:
    """Frames by how far each pixel is from its mean: 128 at the mean, `LEVELS` more or less per deviation.

    In Atari a ball is one pixel among seven thousand that never change: standardised, it is what the network sees first.

    Args:
        frames: the frames.
        mean: over the frames of a layout.
        deviation: their standard deviation.
    """
    # float32 suffices: the result has 256 levels.
    scale = LEVELS / (deviation.astype(np.float32) + LEAST_DEVIATION)
    levels = np.rint((frames - mean.astype(np.float32)) * scale + 128)
    return np.clip(levels, 0, 255).astype(np.uint8)


def patch_piece(images: UInt8[np.ndarray, "T H W *C"], *, pad: int) -> Piece:
    """The patches of images, one image per step."""
    patches, intervals = patchify_all(images if images.ndim == 4 else images[..., None])
    # All images of an array have one shape, so every step takes the same number of positions.
    lengths = np.full((len(images),), len(patches) // max(1, len(images)), np.int32)
    # At a patch's position the payload speaks; the token is padding and is never embedded.
    tokens = np.full((len(patches),), pad, np.int32)
    return Piece(Modality.PATCH, tokens, lengths, payload=patches, intervals=intervals)


def frame_piece(images: UInt8[np.ndarray, "T H W *C"], *, pad: int, frame_size: int, frame_tokens: int) -> Piece:
    """Images as frames, one per step, each taking `frame_tokens` positions."""
    # Recorded frames come in their final size: passing them through avoids a copy per training example.
    if images.shape[1:] == (frame_size, frame_size, 3) and images.dtype == np.uint8:
        frames = images
    else:
        frames = np.stack([to_frame(image, frame_size) for image in images])
    tokens = np.full((len(images) * frame_tokens,), pad, np.int32)
    return Piece(Modality.FRAME, tokens, np.full((len(images),), frame_tokens, np.int32), payload=frames)


def image_piece(images: UInt8[np.ndarray, "T H W C"], *, marker: int) -> Piece:
    """Images, one per step, for cross-attention: the sequence itself holds only the `marker` token."""
    count = len(images)
    tokens, lengths = np.full((count,), marker, np.int32), np.ones((count,), np.int32)
    # Kept at full size: the frozen encoder resizes to its own input, and resizing twice would blur.
    return Piece(Modality.IMAGE, tokens, lengths, payload=to_rgb(images))


def patch_count(height: int, width: int) -> int:
    """Number of patches of an image of `height` × `width` pixels."""
    return -(-height // PATCH_SIZE) * -(-width // PATCH_SIZE)


def _edges(parts: int) -> Int32[np.ndarray, "edges"]:
    """The `parts` + 1 edges of equal intervals of 0..128, rounded half up."""
    # Not np.rint, which rounds halves to even and would shift some edges.
    return np.floor(np.arange(parts + 1) * PLACES / parts + 0.5).astype(np.int32)


def _with_channels(image: UInt8[np.ndarray, "H W *C"]) -> UInt8[np.ndarray, "H W C"]:
    return image[..., None] if image.ndim == 2 else image
