"""Files of published image tokenizers (`vq`): a .pt, .pth or .ckpt of PyTorch, or safetensors; nothing in them is run.

The sizes of the network follow from the tensors. That of its images does not: `config.json` beside the file may have it.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError, safe_open

from generalist.vision.vq import CODEBOOK, Layout, Level, VqConfig, level_names, tensor_shapes
from generalist.weights.folder import WeightsError, few, mismatch, read_json
from generalist.weights.recipe import Tensor
from generalist.weights.torch_zip import Stored, TorchFile, type_of

SIZE = 256  # of the images that the published ones were trained on
IGNORED = r"loss\..+|quantize\.codebook_used"
"""Tensors of the training: the discriminator's and the perceptual loss's, and which codes were used of late."""
HELD = ("ema", "model", "state_dict")
"""What holds the tensors in a file that has more than them; the first one that is there."""
KNOWN = "`train.py image_tokenizer`, LlamaGen or taming-transformers"
_PYTORCH, _SAFETENSORS = (".pt", ".pth", ".ckpt", ".bin"), ".safetensors"
_Shapes = dict[str, tuple[int, ...]]
_File = tuple[_Shapes, dict[str, str], Callable[[str], Tensor]]
"""Name → shape, name → type as safetensors names it, and what reads a tensor."""


def read_published(path: Path) -> tuple[VqConfig, dict[str, Float[Array, "*_S"]]]:
    """The shape and the parameters of a published image tokenizer.

    Args:
        path: a file, or a folder with one such file and perhaps `config.json`, whose `size` is that of the images.

    Raises:
        WeightsError: there is no such file, or it is damaged, needs more than tensors, or holds other tensors.
    """
    file, size = _found(path)
    shapes, types, read = _opened_safetensors(file) if file.suffix == _SAFETENSORS else _opened_torch(file)
    try:
        config = config_of(shapes, size)
    except ValueError as error:
        raise WeightsError(f"{file}: {error}") from error
    wanted = tensor_shapes(config)
    if faults := mismatch(wanted, shapes, types, re.compile(IGNORED)):
        raise WeightsError(f"{file} is not an image tokenizer of {KNOWN}: {faults}")
    params = {name: read(name).astype(np.float32) for name in wanted}
    if broken := [name for name, array in params.items() if not np.isfinite(array).all()]:
        raise WeightsError(f"{file} has non-finite numbers in {few(broken)}: download it again")
    return config, jax.device_put(params)


def _found(path: Path) -> tuple[Path, int]:
    """The file with the tensors, and the size of images."""
    if not path.is_dir():
        if not path.is_file() or path.suffix not in (*_PYTORCH, _SAFETENSORS):
            problem = "is no image tokenizer" if path.exists() else "is not there"
            raise WeightsError(
                f"{path} {problem}: name a file that ends in {', '.join((*_PYTORCH, _SAFETENSORS))}, a folder with one, or that "
                "of `train.py image_tokenizer`"
            )
        return path, SIZE
    files = sorted(one for one in path.iterdir() if one.suffix in (*_PYTORCH, _SAFETENSORS) and one.is_file())
    if len(files) != 1:
        names = few([one.name for one in files]) or "none"
        raise WeightsError(f"{path} must hold one file of an image tokenizer, but has {names}: name the file itself")
    settings = path / "config.json"
    given = read_json(settings) if settings.is_file() else {}
    if not isinstance(given, dict) or (settings.is_file() and "size" not in given):
        raise WeightsError(
            f'{settings} has no "size", the height and width of images in pixels: add it, for example {{"size": {SIZE}}}, or '
            f"name the file itself, whose images have {SIZE}"
        )
    size = given.get("size", SIZE)
    if type(size) is not int or size < 1:
        raise WeightsError(f"{settings} has size = {size!r:.60}: it must be the height and width of images in pixels")
    return files[0], size


def _opened_torch(file: Path) -> _File:
    opened = TorchFile(file)
    content = opened.content
    held = next((name for name in HELD if isinstance(content, dict) and isinstance(content.get(name), dict)), None)
    tensors = content if held is None else content[held]
    if not isinstance(tensors, dict):
        raise WeightsError(f"{file} holds {type(tensors).__name__} instead of tensors by their names")
    stored = {name: one for name, one in tensors.items() if isinstance(name, str) and isinstance(one, Stored)}
    shapes, types = (
        {name: one.shape for name, one in stored.items()},
        {name: type_of(one) for name, one in stored.items()},
    )
    return shapes, types, lambda name: opened.tensor(stored[name])


def _opened_safetensors(file: Path) -> _File:
    shapes, types = {}, {}
    try:
        with safe_open(file, framework="numpy") as opened:
            for name in sorted(opened.keys()):
                entry = opened.get_slice(name)
                shapes[name], types[name] = tuple(entry.get_shape()), str(entry.get_dtype())
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is truncated or not a safetensors file ({error})") from error

    def read(name: str) -> Tensor:
        with safe_open(file, framework="numpy") as opened:
            return opened.get_tensor(name)

    return shapes, types, read


def config_of(shapes: _Shapes, size: int) -> VqConfig:
    """The settings that a file's tensors have; whether all others fit is left to the check."""
    layout: Layout = "llamagen" if any(name.startswith("encoder.conv_blocks.") for name in shapes) else "taming"
    codebook, width = _axes(shapes, CODEBOOK, 2)
    return VqConfig(
        layout=layout,
        size=size,
        stem=_axes(shapes, "encoder.conv_in.weight", 4)[0],
        encoder=_levels(shapes, layout, "encoder"),
        decoder=_levels(shapes, layout, "decoder"),
        latent=_axes(shapes, "encoder.conv_out.weight", 4)[0],
        width=width,
        codebook=codebook,
    )


def _levels(shapes: _Shapes, layout: Layout, half: str) -> tuple[Level, ...]:
    """The resolutions of the encoder or of the decoder, in the order of the computation."""
    pattern = r"conv_blocks\.(\d+)\.res" if layout == "llamagen" else r"(?:down|up)\.(\d+)\.block"
    places = {found[1] for name in shapes if (found := re.match(rf"{half}\.{pattern}\.", name))}
    starts = (name.removesuffix(".conv1.weight") for name in shapes if name.endswith(".conv1.weight"))
    blocks = Counter(start.rpartition(".")[0] for start in starts)
    levels = []
    for index in range(len(places)):
        residual, attention, _ = level_names(layout, half, index, len(places))
        width = _axes(shapes, f"{residual}.0.conv1.weight", 4)[0]
        levels.append(Level(width, blocks[residual], f"{attention}.0.q.weight" in shapes))
    if not levels:
        raise WeightsError(f"it has no residual blocks of an {half}: it is not an image tokenizer of {KNOWN}")
    return tuple(levels)


def _axes(shapes: _Shapes, name: str, count: int) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != count or 0 in shape:
        found = f"a {name} of shape {shape}" if name in shapes else f"no {name}"
        raise WeightsError(f"it has {found}: it is not an image tokenizer of {KNOWN}")
    return shape
