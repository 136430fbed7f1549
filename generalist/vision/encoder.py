"""The interface to frozen vision encoders: an image becomes a grid of features.

Dimension key: N images, H and W pixels, C colours (1, 3 or 4), S pixels per side of an encoder's input, T grid cells, F channels.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from generalist.model.projector import pooled
from generalist.system.platforms import target_platform
from generalist.tokenizers.image import to_rgb

AT_ONCE, ON_ACCELERATORS = 16, 64  # images of one chunk on a CPU and elsewhere, see `VisionEncoder.encode`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Conversion of an image of any size to an encoder's input pixels."""

    size: int
    """S: pixels per side."""
    crop: bool
    """Resize the shorter side to `shortest` and crop the centre (CLIP), or stretch both sides to S (SigLIP)."""
    shortest: int = 0
    resample: Image.Resampling = Image.Resampling.BICUBIC

    @property
    def cuts(self) -> bool:
        """Whether borders of an image are cut off if it is no square."""
        return self.crop

    def __call__(self, image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "S S 3"]:
        """The image in colour, blended with white by its alpha, at the encoder's size."""
        picture = Image.fromarray(np.ascontiguousarray(to_rgb(image)))
        if not self.crop:
            return np.asarray(picture.resize((self.size, self.size), self.resample))
        return _middle(np.asarray(picture.resize(_shorter_side(picture, self.shortest), self.resample)), self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvenPreparation(Preparation):
    """A preparation that crops the centre as open_clip does, by torchvision's `CenterCrop`: half a pixel becomes the even number,
    where the published processors take the one below."""

    def __call__(self, image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "S S 3"]:
        picture = Image.fromarray(np.ascontiguousarray(to_rgb(image)))
        resized = np.asarray(picture.resize(_shorter_side(picture, self.shortest), self.resample))
        # Python rounds halves to the even number too.
        top, left = (round((length - self.size) / 2) for length in resized.shape[:2])
        return resized[top : top + self.size, left : left + self.size]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedPreparation(Preparation):
    """A preparation that pads to a square first, or resizes to another size than that which is cut out (LLaVA)."""

    # A class of its own, so that the fingerprints of the usual preparation, which are made from its fields, stay as they are.
    background: tuple[int, int, int] | None = None
    """Colour of the padding; None: none."""
    stretched: tuple[int, int] | None = None
    """Width and height that both sides are stretched to before the centre is cut out; None: the shorter side is resized."""

    @property
    def cuts(self) -> bool:
        # Padded or stretched, the whole image is resized; what is cut off is what it is too large by.
        return max(self.stretched or (self.shortest,)) > self.size

    def __call__(self, image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "S S 3"]:
        picture = Image.fromarray(np.ascontiguousarray(to_rgb(image)))
        if self.background is not None:
            whole = Image.new("RGB", (max(picture.size),) * 2, self.background)
            whole.paste(picture, ((whole.width - picture.width) // 2, (whole.height - picture.height) // 2))
            picture = whole
        target = self.stretched or _shorter_side(picture, self.shortest)
        return _middle(np.asarray(picture.resize(target, self.resample)), self.size)


def _shorter_side(picture: Image.Image, pixels: int) -> tuple[int, int]:
    """Width and height of a picture whose shorter side has this many pixels."""
    width, height = picture.size
    # int() truncates, as the published processors do: another rounding would shift the crop by a pixel.
    other = max(1, int(pixels * max(width, height) / min(width, height)))
    return (pixels, other) if width <= height else (other, pixels)


def _middle(pixels: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The centre of an image, `size` pixels per side, padded with black if it is smaller."""
    missing = [max(0, size - length) for length in pixels.shape[:2]]
    if any(missing):
        # An odd row or column goes above or to the left, as the published processors round up there.
        around = [(-(-gap // 2), gap // 2) for gap in missing]
        pixels = np.pad(pixels, (*around, (0, 0)))
    top, left = ((length - size) // 2 for length in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionEncoder:
    """A frozen encoder. It is also the `Visual` of an assembler whose model computes features itself."""

    name: str
    prepare: Preparation
    cells: int
    """T: cells of the grid."""
    channels: int
    """F."""
    weights_hash: str
    """Identifies the weights: SHA-256 of their files, with the standardisation of pixels if it can vary."""
    params: Any
    apply: Callable[[Any, UInt8[Array, "N S S 3"]], Float[Array, "N T F"]]
    """Parameters and prepared pixels → features; can be compiled."""
    folder: Path | None = None
    """Folder of its files, to be copied with saved weights; None if they come with a package."""

    @property
    def fingerprint(self) -> str:
        """Hash of the weights and of the preparation: equal fingerprints give equal features."""
        # The preparation enters as the text of its fields: a field added or renamed there changes every fingerprint, and all
        # stored features are computed again.
        return hashlib.sha256(f"{self.weights_hash} {self.prepare}".encode()).hexdigest()[:16]

    @property
    def empty(self) -> UInt8[np.ndarray, "0 S S 3"]:
        """Pixels of zero images."""
        return np.zeros((0, self.prepare.size, self.prepare.size, 3), np.uint8)

    def __call__(self, images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N S S 3"]:
        """Pixels of images, as the encoder takes them."""
        # np.stack refuses an empty list.
        return np.stack([self.prepare(image) for image in images]) if len(images) else self.empty

    def compiled(
        self, params: Any = None, *, alone: bool = True, positions: int = 0
    ) -> Callable[[UInt8[Array, "N S S 3"]], Float[Array, "N T F"]]:
        """A compiled function from pixels to features.

        Args:
            params: the parameters as placed on devices; None: on the first device.
            alone: see `encode`.
            positions: see `encode`.
        """
        # Parameters are an argument: captured, they would be constants of the program and stored with it.
        compiled = jax.jit(lambda params, pixels: self.encode(params, pixels, alone=alone, positions=positions))
        placed = self.params if params is None else params
        return lambda pixels: compiled(placed, pixels)

    def encode(
        self, params: Any, pixels: UInt8[Array, "N S S 3"], *, alone: bool = True, positions: int = 0
    ) -> Float[Array, "N T F"]:
        """`apply`, in the form that suits the platform.

        Args:
            alone: whether one device does all of it, in chunks. On a CPU, batches of a few images keep their activations in the
                caches: half the time. Elsewhere those of hundreds of large images would take the whole memory.
            positions: number of cells that the grid is averaged to, where no more is kept of it; 0: all cells are.

        Raises:
            ValueError: the grid cannot be averaged so.
        """

        def features(chunk: UInt8[Array, "n S S 3"]) -> Float[Array, "n T F"]:
            found = self.apply(params, chunk)
            return pooled(found, positions) if positions else found

        at_once = AT_ONCE if target_platform() == "cpu" else ON_ACCELERATORS
        if not alone or len(pixels) <= at_once or len(pixels) % at_once:
            return features(pixels)
        # Equal chunks only: a remainder would be a second shape to compile. (N, S, S, 3) → (N / 16, 16, S, S, 3).
        chunks = pixels.reshape(-1, at_once, *pixels.shape[1:])
        return jax.lax.map(features, chunks).reshape(-1, positions or self.cells, self.channels)
