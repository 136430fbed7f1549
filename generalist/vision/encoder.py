"""The interface to frozen vision encoders: an image becomes a grid of features.

Dimension key: N images, S pixels on a side, T grid cells, F channels.
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

from generalist.model.constrain import target_platform
from generalist.tokenizers.image import to_rgb

AT_ONCE = 16  # images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """How an image of any size becomes the pixels that an encoder takes."""

    size: int
    """S: pixels on a side."""
    crop: bool
    """Resize the shorter side to `shortest` and cut out the middle (CLIP), or stretch both sides to S (SigLIP)."""
    shortest: int = 0
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """An image, uint8 (H, W, 1, 3 or 4) → uint8 (S, S, 3). Transparency is laid on white."""
        picture = Image.fromarray(np.ascontiguousarray(to_rgb(image)))
        if not self.crop:
            return np.asarray(picture.resize((self.size, self.size), self.resample))
        width, height = picture.size
        short, long = min(width, height), max(width, height)
        other = max(1, int(self.shortest * long / short))
        target = (self.shortest, other) if width <= height else (other, self.shortest)
        return _middle(np.asarray(picture.resize(target, self.resample)), self.size)


def _middle(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle (size, size) of an image, black where it is smaller."""
    missing = [max(0, size - length) for length in pixels.shape[:2]]
    if any(missing):
        around = [(-(-gap // 2), gap // 2) for gap in missing]
        pixels = np.pad(pixels, (*around, (0, 0)))
    top, left = ((length - size) // 2 for length in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionEncoder:
    """A frozen encoder; it also is the `Visual` of an assembler whose model computes features as it goes."""

    name: str
    prepare: Preparation
    cells: int
    """T: cells of the grid."""
    channels: int
    """F."""
    weights_hash: str
    """What they are known by: SHA-256 of the files that they came from, and how they standardise pixels where that may vary."""
    params: Any
    apply: Callable[[Any, UInt8[Array, "N S S 3"]], Float[Array, "N T F"]]
    """Parameters and prepared pixels to features; can be compiled."""
    folder: Path | None = None
    """Where its files lie, for whoever copies them; None where a package brings them."""

    @property
    def fingerprint(self) -> str:
        """Another one means other features: of the weights and of how images are prepared."""
        return hashlib.sha256(f"{self.weights_hash} {self.prepare}".encode()).hexdigest()[:16]

    @property
    def empty(self) -> np.ndarray:
        """No pixels."""
        return np.zeros((0, self.prepare.size, self.prepare.size, 3), np.uint8)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images, uint8 (N, H, W, C) → pixels as the encoder takes them, uint8 (N, S, S, 3)."""
        return np.stack([self.prepare(image) for image in images]) if len(images) else self.empty

    def compiled(
        self, params: Any = None, *, alone: bool = True
    ) -> Callable[[UInt8[Array, "N S S 3"]], Float[Array, "N T F"]]:
        """Pixels to features.

        Args:
            params: the parameters as they were laid out on devices; None: on the first one.
            alone: see `encode`.
        """
        compiled = jax.jit(lambda params, pixels: self.encode(params, pixels, alone=alone))
        placed = self.params if params is None else params
        return lambda pixels: compiled(placed, pixels)

    def encode(self, params: Any, pixels: UInt8[Array, "N S S 3"], *, alone: bool = True) -> Float[Array, "N T F"]:
        """`apply`, as it suits the machine.

        Args:
            alone: whether one device does it. On a CPU it takes a few images at a time, whose activations stay in the caches:
                half the time.
        """
        if target_platform() != "cpu" or not alone or len(pixels) <= AT_ONCE or len(pixels) % AT_ONCE:
            return self.apply(params, pixels)
        chunks = pixels.reshape(-1, AT_ONCE, *pixels.shape[1:])
        return jax.lax.map(lambda chunk: self.apply(params, chunk), chunks).reshape(-1, self.cells, self.channels)
