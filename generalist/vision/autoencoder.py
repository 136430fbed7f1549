"""The network of the image tokenizer: a convolutional autoencoder whose bottleneck is rounded to a fixed grid of codes.

    pixels ──patches──► blocks ──► D numbers per cell ──FSQ──► D whole numbers = one code ──► blocks ──patches──► pixels

FSQ (finite scalar quantization; Mentzer et al., 2023) rounds each of D numbers to one of a few levels, so the codebook is the
product of the levels: nothing is learned, no entry can die, and there is no auxiliary loss.

Dimension key: N images, H height, W width of an image, h and w of its grid of cells (H / patch, W / patch), D levels per code,
F features of a cell.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from generalist.model.embedders import Convolution
from generalist.model.layers import Linear, RMSNorm

LARGEST_CODEBOOK = 2**20
"""Each code is a row of the model's embedding."""
LARGEST = {"size": 4096, "patch": 4096, "width": 8192, "blocks": 128}
"""A folder from elsewhere may claim anything, and the network is built before its tensors are compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The shape of the image tokenizer."""

    size: int = 72
    """Height and width of an image, in pixels."""
    patch: int = 8
    """Height and width of the patch that one code stands for, in pixels; divides `size`."""
    levels: tuple[int, ...] = (8, 8, 6, 5)
    """Levels of each number of a code; their product is the size of the codebook."""
    width: int = 128
    """Features per cell."""
    blocks: int = 4
    """Residual blocks of the decoder; the encoder has half as many, rounded up."""

    def __post_init__(self) -> None:
        for name in ("size", "patch", "width", "blocks"):
            if not 1 <= getattr(self, name) <= LARGEST[name]:
                raise ValueError(
                    f"shape.{name} must be at least 1 and at most {LARGEST[name]}, got {getattr(self, name)}"
                )
        if self.size % self.patch:
            raise ValueError(f"shape.size ({self.size}) must be a multiple of shape.patch ({self.patch})")
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"shape.levels must be one or more numbers of at least 2, got {self.levels}")
        if self.codebook > LARGEST_CODEBOOK:
            raise ValueError(
                f"shape.levels {self.levels} give {self.codebook:,} codes, more than {LARGEST_CODEBOOK:,}: use fewer levels"
            )

    @property
    def codebook(self) -> int:
        """Number of different codes."""
        return math.prod(self.levels)

    @property
    def side(self) -> int:
        """Cells along each side of an image."""
        return self.size // self.patch

    @property
    def cells(self) -> int:
        """Codes per image."""
        return self.side**2


class ResidualBlock(nnx.Module):
    """`x + linear(gelu(convolution(norm(x))))`."""

    def __init__(self, width: int, depth: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, rngs=rngs)
        self.convolution = Convolution(width, width, 3, rngs=rngs)
        # Scaled down by the depth, so that the sum of all blocks begins with a variance of about 1.
        self.out = Linear(width, width, rngs=rngs, scale=depth**-0.5)

    def __call__(self, x: Float[Array, "N h w F"]) -> Float[Array, "N h w F"]:
        return x + self.out(jax.nn.gelu(self.convolution(self.norm(x))))


class Autoencoder(nnx.Module):
    """Encoder and decoder. Convolutions alone, so images of any size that is a multiple of the patch have codes."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, pixels, depth = config.width, 3 * config.patch**2, len(config.levels)
        self.stem = Linear(pixels, width, rngs=rngs, bias=True)
        # The smaller part: training runs it twice, on images and on their reconstructions.
        self.encoder = nnx.List([ResidualBlock(width, config.blocks, rngs=rngs) for _ in range(-(-config.blocks // 2))])
        self.norm = RMSNorm(width, rngs=rngs)
        self.narrow = Linear(width, depth, rngs=rngs, bias=True)
        self.wide = Convolution(depth, width, 3, rngs=rngs)
        self.decoder = nnx.List([ResidualBlock(width, config.blocks, rngs=rngs) for _ in range(config.blocks)])
        self.last_norm = RMSNorm(width, rngs=rngs)
        self.pixels = Linear(width, pixels, rngs=rngs, scale=0.5, bias=True)

    def latents(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N h w D"]:
        """The bounded numbers that are rounded. `images`: from -1 to 1."""
        x = self.stem(patches(images, self.config.patch))
        for block in self.encoder:
            x = block(x)
        return bounded(self.narrow(self.norm(x)).astype(jnp.float32), self.config.levels)

    def images(self, digits: Float[Array, "N h w D"]) -> Float[Array, "N H W 3"]:
        """Images, from about -1 to 1, of rounded numbers."""
        half = jnp.array([level / 2 for level in self.config.levels], jnp.float32)[None, None, None]
        x = self.wide((digits - (half - 0.5)) / half)  # about -1 to 1
        for block in self.decoder:
            x = block(x)
        return joined(self.pixels(self.last_norm(x)), self.config.patch)


def bounded(x: Float[Array, "*B D"], levels: tuple[int, ...]) -> Float[Array, "*B D"]:
    """Any numbers to numbers whose roundings are 0 to level - 1 in each dimension.

    FSQ's bound (Mentzer et al., 2023, section 3) moved by half the levels, so that the least level is 0.
    """
    top = jnp.array([level - 1 for level in levels], jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    # A little beyond both ends, so that the outermost levels are as easily reached as the others.
    return (top + 0.98) * jax.nn.sigmoid(2 * x) - 0.49


def rounded(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Rounds; the gradient is that of the identity (straight-through estimator)."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def to_codes(digits: Float[Array, "*B D"], levels: tuple[int, ...]) -> Int[Array, "*B"]:
    """One whole number per code: the digits in the mixed radix of the levels, the first one least significant."""
    radix = np.concatenate([[1], np.cumprod(levels[:-1])]).astype(np.int32)
    return (digits.astype(jnp.int32) * radix.reshape((1,) * (digits.ndim - 1) + (-1,))).sum(axis=-1)


def to_digits(codes: Int[Array, "*B"], levels: tuple[int, ...]) -> Float[Array, "*B D"]:
    """The inverse of `to_codes`."""
    digits, rest = [], codes
    for level in levels:
        digits.append(rest % level)
        rest = rest // level
    return jnp.stack(digits, axis=-1).astype(jnp.float32)


def patches(images: Float[Array, "N H W C"], patch: int) -> Float[Array, "N h w P"]:
    """The pixels of each patch side by side, P = patch² C."""
    count, height, width, channels = images.shape
    x = images.reshape(count, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, height // patch, width // patch, -1)


def joined(x: Float[Array, "N h w P"], patch: int) -> Float[Array, "N H W C"]:
    """The inverse of `patches`."""
    count, rows, columns, _ = x.shape
    x = x.reshape(count, rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, rows * patch, columns * patch, -1)
