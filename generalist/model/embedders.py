"""Embedders of payloads: projected tensors, image patches (Gato), whole frames (a small convolutional network).

Dimension key: N tensors, F projection width, P patches, M frames, C channels, D width, K tokens per frame (MK of all frames).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from generalist.data.rows import rows_at
from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.layers import Linear, RMSNorm, smooth_rows
from generalist.system.platforms import target_platform

PATCH = 16  # pixels per side (Gato, section 2.2)
# Standard deviation of a weight: a tensor has tens of standardised numbers among thousands of columns.
PROJECTION_SPREAD = 0.2
POSITIONS = 128  # quantised rows and columns of a patch's position in its image (Gato, appendix C.3)


class GroupNorm(nnx.Module):
    """Group normalisation (Wu & He, 2018) over space and the channels of each group, in float32."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        del rngs  # constant initialisation: nothing to draw
        self.groups = groups
        self.scale, self.bias = nnx.Param(jnp.ones((channels,))), nnx.Param(jnp.zeros((channels,)))

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        batch, height, width, channels = x.shape
        y = x.astype(jnp.float32).reshape(batch, height, width, self.groups, channels // self.groups)
        mean = jnp.mean(y, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(y - mean), axis=(1, 2, 4), keepdims=True)
        y = ((y - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
        scale, bias = (one[...].astype(jnp.float32)[None, None, None] for one in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)


def column_convolution(
    x: Float[Array, "N H W C"], kernel: Float[Array, "K K C O"], stride: int
) -> Float[Array, "N h w O"]:
    """A convolution with "SAME" padding as one matrix product over all neighbourhoods: on a CPU forward and backward together are
    1.3 to 1.5 times as fast as XLA's own convolution."""
    count, height, width, channels = x.shape
    size = len(kernel)
    rows, columns = -(-height // stride), -(-width // stride)

    def padding(length: int, places: int) -> tuple[int, int]:
        # XLA's "SAME" puts the odd pixel of padding at the end; weights trained on a GPU must give the same here.
        total = max((places - 1) * stride + size - length, 0)
        return total // 2, total - total // 2

    x = jnp.pad(x, ((0, 0), padding(height, rows), padding(width, columns), (0, 0)))
    shifted = [
        x[:, row : row + (rows - 1) * stride + 1 : stride, column : column + (columns - 1) * stride + 1 : stride]
        for row in range(size)
        for column in range(size)
    ]
    neighbourhoods = jnp.concatenate(shifted, axis=-1).reshape(-1, size * size * channels)
    # The neighbourhood's axes are (row, column, channel), in the order of the kernel's.
    return (neighbourhoods @ kernel.reshape(size * size * channels, -1)).reshape(count, rows, columns, -1)


class Convolution(nnx.Module):
    """2-D convolution, channels last, He-initialised; the kernel is (size, size, inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, rngs: nnx.Rngs):
        fan_in = size * size * inputs
        self.stride = stride
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (size, size, inputs, outputs)) * (2 / fan_in) ** 0.5)
        self.bias = nnx.Param(jnp.zeros((outputs,)))

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        kernel = self.kernel[...].astype(x.dtype)
        if target_platform() == "cpu":
            y = column_convolution(x, kernel, self.stride)
        else:
            strides = (self.stride, self.stride)
            y = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + self.bias[...].astype(x.dtype)[None, None, None]


class TensorEmbedder(nnx.Module):
    """One embedding per tensor: a linear map in which every layout has its own columns (JAT, section 3) to a width with room for
    conjunctions, such as a cell's type and colour, and a second map from there to the model's width."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        # Linear divides its spread by the square root of the inputs; here most inputs are zero, so that is undone.
        spread = PROJECTION_SPREAD * spec.projection_width**0.5
        inner = spec.config.tensor_hidden
        self.projection = Linear(spec.projection_width, inner, rngs=rngs, scale=spread)
        self.norm = RMSNorm(inner, rngs=rngs)
        self.hidden = Linear(inner, spec.config.width, rngs=rngs)

    def __call__(self, tensors: Float[Array, "N F"]) -> Float[Array, "N D"]:
        return self.hidden(jax.nn.gelu(self.norm(self.projection(tensors))))


class PatchEmbedder(nnx.Module):
    """Gato's patch embedding (appendix C.2): one pre-activation ResNet block with GroupNorm and GELU, then a linear map,
    plus learned embeddings of the patch's row and column. The paper does not publish the channel width: it is a setting.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        channels = config.patch_channels
        self.stem = Convolution(3, channels, 1, rngs=rngs)
        self.norms = nnx.List([GroupNorm(channels, min(32, channels // 4), rngs=rngs) for _ in range(2)])
        self.convolutions = nnx.List([Convolution(channels, channels, 3, rngs=rngs) for _ in range(2)])
        self.out = Linear(PATCH * PATCH * channels, config.width, rngs=rngs)
        self.row = nnx.Param(smooth_rows(rngs.params(), POSITIONS, config.width, 0.1))
        self.column = nnx.Param(smooth_rows(rngs.params(), POSITIONS, config.width, 0.1))

    def __call__(
        self,
        patches: UInt8[Array, "P 16 16 3"],
        intervals: Int[Array, "P 4"],
        dtype: DTypeLike,
        key: Array | None = None,
    ) -> Float[Array, "P D"]:
        """Embeddings of patches. `intervals`: row low, row high, column low, column high in 0..128. With a `key` (training) a
        position is drawn uniformly from its interval; without (evaluation) it is the rounded mean (Gato, appendix C.3)."""
        # Pixels to [-1, 1], then divided by the square root of the patch size (Gato, section 2.2).
        x = (patches.astype(dtype) / 127.5 - 1.0) / PATCH**0.5
        x = self.stem(x)
        y = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(jax.nn.gelu(norm(y)))
        x = self.out((x + y).reshape(len(patches), -1))
        low, high = intervals[:, 0::2], intervals[:, 1::2]  # (P, 2) each: of rows and of columns
        if key is None:
            place = (low + high) // 2
        else:
            # Truncated, so never `high`, with which the neighbouring patch's interval begins.
            place = low + (jax.random.uniform(key, low.shape) * (high - low)).astype(jnp.int32)
        # The last interval ends at 128, one past the table.
        place = jnp.clip(place, 0, POSITIONS - 1)
        row, column = rows_at(self.row[...], place[:, 0]), rows_at(self.column[...], place[:, 1])
        return x + row.astype(dtype) + column.astype(dtype)


class FrameEmbedder(nnx.Module):
    """A small convolutional network: K embeddings per image (JAT, section 3, does the same with one).

    The stem takes non-overlapping 4×4 blocks, which is a reshape and one matrix product, fast on every platform.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        first, second = config.frame_channels, 2 * config.frame_channels
        self.tokens = config.frame_tokens
        # Twice the variance: a ReLU follows, which halves it (He et al., 2015).
        self.stem = Linear(4 * 4 * 3, first, rngs=rngs, scale=2**0.5, bias=True)
        self.convolutions = nnx.List(
            [
                Convolution(first, second, 3, stride=2, rngs=rngs),
                Convolution(second, second, 3, stride=2, rngs=rngs),
            ]
        )
        cells = -(-config.frame_size // 16)  # two strides of 2 after the stem's 4, each rounding up
        self.out = Linear(cells * cells * second, config.frame_tokens * config.width, rngs=rngs, bias=True)

    def __call__(self, frames: UInt8[Array, "M S S 3"], dtype: DTypeLike) -> Float[Array, "MK D"]:
        """K embeddings per frame, consecutive."""
        count, size, _, _ = frames.shape
        x = frames.astype(dtype) / 127.5 - 1.0
        # (M, rows, 4, columns, 4, 3) → (M, rows, columns, 4 · 4 · 3): each block's pixels side by side.
        x = x.reshape(count, size // 4, 4, size // 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
        x = jax.nn.relu(self.stem(x.reshape(count, size // 4, size // 4, 48)))
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        return self.out(x.reshape(count, -1)).reshape(count * self.tokens, -1)  # (M, K · D) → (M · K, D)
