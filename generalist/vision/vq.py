"""The network of published image tokenizers: VQGAN (Esser et al., 2021) and LlamaGen's (Sun et al., 2024), which is the same
with other names and a normalised codebook. It is used as it is, and not trained here.

    pixels ──blocks, halvings──► D numbers per cell ──nearest row of the codebook = one code──► blocks, doublings──► pixels

Each half of the network is a list of steps, which both the computation and the check of a file's tensors walk. Parameters have
the names and shapes of the files.

Dimension key: N images, H height, W width, C and O channels, h and w the grid of cells, D width of a code, G groups, K codes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from generalist.vision.autoencoder import LARGEST_CODEBOOK

GROUPS, EPSILON = 32, 1e-6  # of every group norm
CODEBOOK = "quantize.embedding.weight"
LARGEST_SIZE = 4096  # pixels per side

Params = Mapping[str, Array]
Layout = Literal["llamagen", "taming"]


class Level(NamedTuple):
    """The blocks of one resolution."""

    width: int
    blocks: int
    attention: bool


class Step(NamedTuple):
    """One layer: its parameters begin with `name`."""

    kind: Literal["conv", "residual", "attention", "norm", "halve", "double"]
    name: str
    inputs: int
    outputs: int
    kernel: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class VqConfig:
    """The shape of the network, and the size of its images."""

    layout: Layout
    """Whose names the tensors have. LlamaGen's codes and codebook have length 1."""
    size: int
    """Height and width of an image, in pixels."""
    stem: int
    """Channels of the first convolution."""
    encoder: tuple[Level, ...]
    """From the highest resolution to the lowest."""
    decoder: tuple[Level, ...]
    """From the lowest resolution to the highest."""
    latent: int
    """Channels between a network and the codebook's projection."""
    width: int
    """Numbers per code."""
    codebook: int
    """Number of different codes."""

    def __post_init__(self) -> None:
        if len(self.encoder) != len(self.decoder):
            raise ValueError(f"its encoder has {len(self.encoder)} resolutions, but its decoder {len(self.decoder)}")
        if not self.patch <= self.size <= LARGEST_SIZE or self.size % self.patch:
            raise ValueError(f"size must be a multiple of {self.patch} up to {LARGEST_SIZE}, got {self.size}")
        if self.codebook > LARGEST_CODEBOOK:
            raise ValueError(f"its codebook has {self.codebook:,} codes, more than {LARGEST_CODEBOOK:,}")
        for channels in (self.stem, *(level.width for level in (*self.encoder, *self.decoder))):
            if not channels or channels % GROUPS:
                raise ValueError(f"its layers must have multiples of {GROUPS} channels, got {channels}")

    @property
    def patch(self) -> int:
        """Height and width of what one code stands for, in pixels."""
        return 2 ** (len(self.encoder) - 1)

    @property
    def side(self) -> int:
        """Cells along each side of an image."""
        return self.size // self.patch

    @property
    def cells(self) -> int:
        """Codes per image."""
        return self.side**2


def level_names(layout: Layout, half: str, index: int, count: int) -> tuple[str, str, str]:
    """How the names of a level's residual blocks, attention and change of resolution begin.

    Args:
        half: encoder or decoder.
        index: the level's place in the order of the computation.
        count: number of levels.
    """
    change = "downsample.conv" if half == "encoder" else "upsample.conv"
    if layout == "llamagen":
        level, blocks = f"{half}.conv_blocks.{index}", "res"
    elif half == "encoder":
        level, blocks = f"encoder.down.{index}", "block"
    else:  # counted from the highest resolution, which is the decoder's last
        level, blocks = f"decoder.up.{count - 1 - index}", "block"
    return f"{level}.{blocks}", f"{level}.attn", f"{level}.{change}"


def encoder_steps(config: VqConfig) -> list[Step]:
    """The steps from pixels to the numbers whose nearest codes are looked up."""
    width = config.encoder[-1].width
    return [
        Step("conv", "encoder.conv_in", 3, config.stem),
        *_level_steps(config.layout, "encoder", config.encoder, config.stem),
        *_middle(config.layout, "encoder", width),
        Step("norm", "encoder.norm_out", width, width),
        Step("conv", "encoder.conv_out", width, config.latent),
        Step("conv", "quant_conv", config.latent, config.width, 1),
    ]


def decoder_steps(config: VqConfig) -> list[Step]:
    """The steps from rows of the codebook to pixels."""
    first, last = config.decoder[0].width, config.decoder[-1].width
    return [
        Step("conv", "post_quant_conv", config.width, config.latent, 1),
        Step("conv", "decoder.conv_in", config.latent, first),
        *_middle(config.layout, "decoder", first),
        *_level_steps(config.layout, "decoder", config.decoder, first),
        Step("norm", "decoder.norm_out", last, last),
        Step("conv", "decoder.conv_out", last, 3),
    ]


def _level_steps(layout: Layout, half: str, levels: Sequence[Level], channels: int) -> Iterator[Step]:
    for index, level in enumerate(levels):
        residual, attention, change = level_names(layout, half, index, len(levels))
        for block in range(level.blocks):
            yield Step("residual", f"{residual}.{block}", channels, level.width)
            channels = level.width
            if level.attention:
                yield Step("attention", f"{attention}.{block}", channels, channels)
        if index < len(levels) - 1:
            yield Step("halve" if half == "encoder" else "double", change, channels, channels)


def _middle(layout: Layout, half: str, width: int) -> Iterator[Step]:
    first, attention, last = ("0", "1", "2") if layout == "llamagen" else ("block_1", "attn_1", "block_2")
    yield Step("residual", f"{half}.mid.{first}", width, width)
    yield Step("attention", f"{half}.mid.{attention}", width, width)
    yield Step("residual", f"{half}.mid.{last}", width, width)


def tensor_shapes(config: VqConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors."""
    shapes: dict[str, tuple[int, ...]] = {CODEBOOK: (config.codebook, config.width)}
    for step in (*encoder_steps(config), *decoder_steps(config)):
        shapes |= _step_shapes(step)
    return shapes


def _step_shapes(step: Step) -> dict[str, tuple[int, ...]]:
    kind, name, inputs, outputs, kernel = step
    if kind == "norm":
        return {f"{name}.weight": (outputs,), f"{name}.bias": (outputs,)}
    if kind in ("conv", "halve", "double"):
        return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}
    if kind == "attention":
        parts = [
            Step("norm", "norm", inputs, inputs),
            *(Step("conv", one, inputs, inputs, 1) for one in ("q", "k", "v", "proj_out")),
        ]
    else:
        parts = [
            Step("norm", "norm1", inputs, inputs),
            Step("conv", "conv1", inputs, outputs),
            Step("norm", "norm2", outputs, outputs),
            Step("conv", "conv2", outputs, outputs),
            *([Step("conv", "nin_shortcut", inputs, outputs, 1)] if inputs != outputs else []),
        ]
    return {f"{name}.{key}": shape for part in parts for key, shape in _step_shapes(part).items()}


def encode(config: VqConfig, params: Params, images: Float[Array, "N H W 3"]) -> Int[Array, "N h w"]:
    """The codes of images, from -1 to 1."""
    # Whole precision, also on accelerators that multiply in less: codes are a hard choice.
    with jax.default_matmul_precision("highest"):
        latents = _through(encoder_steps(config), params, images)
        codebook = _codebook(config, params)
        if config.layout == "llamagen":
            latents = _normalised(latents)
        # Squared distances, but for the latents' own squares, which are the same for all codes.
        distances = (codebook**2).sum(axis=1)[None, None, None] - 2 * jnp.einsum("nhwd,kd->nhwk", latents, codebook)
        return jnp.argmin(distances, axis=-1)


def decode(config: VqConfig, params: Params, codes: Int[Array, "N h w"]) -> Float[Array, "N H W 3"]:
    """The images of codes, from about -1 to 1."""
    with jax.default_matmul_precision("highest"):
        return _through(decoder_steps(config), params, _codebook(config, params)[codes])


def _codebook(config: VqConfig, params: Params) -> Float[Array, "K D"]:
    return _normalised(params[CODEBOOK]) if config.layout == "llamagen" else params[CODEBOOK]


def _normalised(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _through(steps: Sequence[Step], params: Params, x: Float[Array, "N H W C"]) -> Float[Array, "N h w O"]:
    for kind, name, *_ in steps:
        if kind == "residual":
            x = _residual(params, name, x)
        elif kind == "attention":
            x = _attention(params, name, x)
        elif kind == "norm":
            x = jax.nn.silu(_norm(params, name, x))
        elif kind == "halve":  # padded below and on the right alone
            x = _conv(params, name, x, 2, ((0, 1), (0, 1)))
        elif kind == "double":
            x = _conv(params, name, x.repeat(2, axis=1).repeat(2, axis=2))
        else:
            x = _conv(params, name, x)
    return x


def _conv(
    params: Params,
    name: str,
    x: Float[Array, "N H W C"],
    stride: int = 1,
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME",
) -> Float[Array, "N h w O"]:
    y = jax.lax.conv_general_dilated(
        x, params[f"{name}.weight"], (stride, stride), padding, dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    return y + params[f"{name}.bias"][None, None, None]


def _norm(params: Params, name: str, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    grouped = x.reshape(len(x), -1, GROUPS, x.shape[-1] // GROUPS)  # (N, H W, G, C / G)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    scale = jax.lax.rsqrt(grouped.var(axis=(1, 3), keepdims=True) + EPSILON)
    normed = ((grouped - mean) * scale).reshape(x.shape)
    return normed * params[f"{name}.weight"][None, None, None] + params[f"{name}.bias"][None, None, None]


def _residual(params: Params, name: str, x: Float[Array, "N H W C"]) -> Float[Array, "N H W O"]:
    y = _conv(params, f"{name}.conv1", jax.nn.silu(_norm(params, f"{name}.norm1", x)))
    y = _conv(params, f"{name}.conv2", jax.nn.silu(_norm(params, f"{name}.norm2", y)))
    return y + (_conv(params, f"{name}.nin_shortcut", x) if x.shape != y.shape else x)


def _attention(params: Params, name: str, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """Attention with one head between all places of a grid."""
    normed = _norm(params, f"{name}.norm", x)
    queries, keys, values = (
        _conv(params, f"{name}.{part}", normed).reshape(len(x), -1, x.shape[-1]) for part in ("q", "k", "v")
    )
    weights = jax.nn.softmax(jnp.einsum("nqc,nkc->nqk", queries, keys) * x.shape[-1] ** -0.5, axis=-1)
    mixed = jnp.einsum("nqk,nkc->nqc", weights, values).reshape(x.shape)
    return x + _conv(params, f"{name}.proj_out", mixed)
