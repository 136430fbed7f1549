"""The image tokenizer in use: images to codes and codes to images, and its folder.

    config.json        the shape of the network and the number of steps it was trained for
    model.safetensors  its parameters

Dimension key: N images, H height, W width, C colours, S pixels per side, T codes of an image.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int32, Shaped, UInt8

from generalist.model.params import flat, nested
from generalist.system.files import whole_folder, write_json
from generalist.vision.autoencoder import Autoencoder, AutoencoderConfig, rounded, to_codes, to_digits
from generalist.vision.encoder import Preparation
from generalist.weights.folder import WeightsError, WeightsFolder, save_tensors
from generalist.weights.recipe import tensor

ARCHITECTURE = "GeneralistImageTokenizer"
AT_ONCE = 32  # images per call: one shape, one compilation


@dataclasses.dataclass(frozen=True)
class ImageTokenizer:
    """A trained autoencoder: both directions in one object, so that they cannot drift apart."""

    config: AutoencoderConfig
    params: Any

    @classmethod
    def load(cls, folder: Path | str) -> "ImageTokenizer":
        """Reads what `save` wrote. Nothing in the folder is trusted, and nothing in it is run.

        Raises:
            WeightsError: the folder holds no image tokenizer, or its settings or its parameters are damaged.
        """
        weights = WeightsFolder(Path(folder))
        path = weights.folder / "config.json"
        if weights.architecture != ARCHITECTURE:
            raise WeightsError(
                f"{path} describes a {weights.architecture}, not an image tokenizer of `train.py image_tokenizer`"
            )
        levels = weights.setting("levels", list)
        if not all(type(level) is int for level in levels):
            raise WeightsError(f"{path} has levels = {levels!r:.60}: they must be whole numbers")
        sizes = {name: weights.setting(name) for name in ("size", "patch", "width", "blocks")}
        try:
            config = AutoencoderConfig(levels=tuple(levels), **sizes)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from error
        recipes = {path: tensor(path, *leaf.shape) for path, leaf in flat(_shapes(config)).items()}
        return cls(config, nested({path: jnp.asarray(array) for path, array in weights.read(recipes).items()}))

    def save(self, folder: Path | str) -> None:
        """Writes a folder that `load` reads; it is complete or absent.

        Raises:
            FileExistsError: the folder exists.
        """
        with whole_folder(Path(folder)) as whole:
            arrays = {path: np.asarray(leaf) for path, leaf in flat(jax.device_get(self.params)).items()}
            save_tensors(arrays, whole / "model.safetensors")
            write_json(whole / "config.json", {"architectures": [ARCHITECTURE], **dataclasses.asdict(self.config)})

    @property
    def side(self) -> int:
        """Codes along each side of an image."""
        return self.config.side

    @property
    def codebook(self) -> int:
        """Number of different codes."""
        return self.config.codebook

    @cached_property
    def fingerprint(self) -> str:
        """Hash of shape and parameters: equal fingerprints give equal codes."""
        found = hashlib.sha256(repr(self.config).encode())
        for path, leaf in sorted(flat(self.params).items()):
            found.update(path.encode() + np.asarray(leaf).tobytes())
        return found.hexdigest()[:16]

    @cached_property
    def prepare(self) -> Preparation:
        """The conversion of images to pixels, as in training."""
        return Preparation(size=self.config.size, crop=False)

    def encode(self, images: Sequence[UInt8[np.ndarray, "_H _W _C"]]) -> Int32[np.ndarray, "N T"]:
        """The codes of images of any size, row by row of each image."""
        size = self.config.size
        pixels = np.reshape([self.prepare(image) for image in images], (-1, size, size, 3)).astype(np.uint8)
        return self._run(self._compiled[0], pixels, np.zeros((0, self.config.cells), np.int32))

    def decode(self, codes: Int[np.ndarray, "N T"]) -> UInt8[np.ndarray, "N S S 3"]:
        """The images of codes.

        Raises:
            ValueError: there are not as many codes as an image has, or one is outside the codebook.
        """
        codes = np.asarray(codes, np.int32)
        if codes.ndim != 2 or codes.shape[1] != self.config.cells:
            raise ValueError(f"an image has {self.config.cells} codes, got codes of shape {codes.shape}")
        if codes.size and (codes.min() < 0 or codes.max() >= self.config.codebook):
            raise ValueError(
                f"codes go from 0 to {self.config.codebook - 1}, got {codes.min()} to {codes.max()}: they are of another "
                "tokenizer"
            )
        return self._run(self._compiled[1], codes, np.zeros((0, self.config.size, self.config.size, 3), np.uint8))

    @cached_property
    def _compiled(self) -> tuple[Callable, Callable]:
        graph, config = graph_of(self.config), self.config

        def encode(params: Any, pixels: UInt8[Array, "N S S 3"]) -> Int[Array, "N T"]:
            digits = jnp.round(nnx.merge(graph, params).latents(standardised(pixels)))
            return to_codes(digits, config.levels).reshape(len(pixels), -1)

        def decode(params: Any, codes: Int[Array, "N T"]) -> UInt8[Array, "N S S 3"]:
            cells = codes.reshape(len(codes), config.side, config.side)
            return to_pixels(nnx.merge(graph, params).images(to_digits(cells, config.levels)))

        return jax.jit(encode), jax.jit(decode)

    def _run(
        self, compiled: Callable, inputs: Shaped[np.ndarray, "N ..."], empty: Shaped[np.ndarray, "0 ..."]
    ) -> Shaped[np.ndarray, "N ..."]:
        """Runs chunks of one size; the last one is filled up with copies, whose results are cut off."""
        found = [empty]
        for start in range(0, len(inputs), AT_ONCE):
            chunk = inputs[start : start + AT_ONCE]
            whole = np.resize(chunk, (AT_ONCE, *chunk.shape[1:]))
            found.append(np.asarray(compiled(self.params, whole))[: len(chunk)])
        return np.concatenate(found)


def fresh_autoencoder(config: AutoencoderConfig, seed: int) -> Autoencoder:
    """A network with random weights."""
    return Autoencoder(config, rngs=nnx.Rngs(seed))


def graph_of(config: AutoencoderConfig) -> nnx.GraphDef:
    """The network without its parameters."""
    return nnx.split(nnx.eval_shape(lambda: fresh_autoencoder(config, 0)), nnx.Param)[0]


def _shapes(config: AutoencoderConfig) -> Any:
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: fresh_autoencoder(config, 0)), nnx.Param))


def standardised(pixels: Shaped[Array, "N S S 3"]) -> Float[Array, "N S S 3"]:
    """Pixels from -1 to 1."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(images: Float[Array, "N S S 3"]) -> UInt8[Array, "N S S 3"]:
    """The inverse, rounded; what is beyond black and white is cut off."""
    return jnp.round(jnp.clip((images + 1.0) * 127.5, 0, 255)).astype(jnp.uint8)


def straight_pixels(images: Float[Array, "N S S 3"]) -> Float[Array, "N S S 3"]:
    """The same as floats from -1 to 1, with a gradient: what the encoder sees of a decoded image."""
    return rounded((jnp.clip(images, -1, 1) + 1.0) * 127.5) / 127.5 - 1.0
