"""The image tokenizer in use: images to codes and codes to images, and its folder.

    config.json        the shape of the network and the number of steps it was trained for
    model.safetensors  its parameters

or a published one (`vq_files`), which is used as it is.

Dimension key: N images, H height, W width, C colours, S pixels per side, T codes of an image.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial
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
from generalist.vision.vq import VqConfig
from generalist.vision.vq import decode as decode_vq
from generalist.vision.vq import encode as encode_vq
from generalist.vision.vq_files import read_published
from generalist.weights.folder import WeightsError, WeightsFolder, read_json, save_tensors
from generalist.weights.recipe import tensor

ARCHITECTURE, PUBLISHED = "GeneralistImageTokenizer", "PublishedImageTokenizer"
AT_ONCE = 32  # images per call: one shape, one compilation
AT_ONCE_PUBLISHED = 4  # whose networks are larger: 128 channels or more for every pixel
SETTLING = 1
"""Times that `encode` decodes what it found and encodes that. A decoded image then has the codes that it was decoded from, but
for a few: once leaves about one in three hundred, at 0.1 dB."""


@dataclasses.dataclass(frozen=True)
class ImageTokenizer:
    """A trained autoencoder: both directions in one object, so that they cannot drift apart."""

    config: AutoencoderConfig | VqConfig
    params: Any

    @classmethod
    def load(cls, folder: Path | str) -> "ImageTokenizer":
        """Reads what `save` wrote, or a published image tokenizer: a file, or a folder with one. Nothing in it is trusted, and
        nothing in it is run.

        Raises:
            WeightsError: the folder holds no image tokenizer, or its settings or its parameters are damaged.
        """
        if not _is_own(Path(folder)):
            return cls(*read_published(Path(folder)))
        weights = WeightsFolder(Path(folder))
        path = weights.folder / "config.json"
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
            if isinstance(self.config, VqConfig):  # all but the size follows from the tensors
                settings = {"architectures": [PUBLISHED], "size": self.config.size}
            else:
                settings = {"architectures": [ARCHITECTURE], **dataclasses.asdict(self.config)}
            write_json(whole / "config.json", settings)

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
        own = not isinstance(self.config, VqConfig)
        found = hashlib.sha256(repr((self.config, SETTLING) if own else self.config).encode())
        for path, leaf in sorted(flat(self.params).items()):
            found.update(path.encode() + np.asarray(leaf).tobytes())
        return found.hexdigest()[:16]

    @cached_property
    def prepare(self) -> Preparation:
        """The conversion of images to pixels, as in training."""
        return Preparation(size=self.config.size, crop=False)

    def encode(self, images: Sequence[UInt8[np.ndarray, "_H _W _C"]]) -> Int32[np.ndarray, "N T"]:
        """The codes of images of any size, row by row of each image; those of our own network have settled (`SETTLING`)."""
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
        config = self.config
        latent_codes, images = _published(config) if isinstance(config, VqConfig) else _rounding(config)

        def encode(params: Any, pixels: UInt8[Array, "N S S 3"]) -> Int[Array, "N T"]:
            return latent_codes(params, standardised(pixels)).reshape(len(pixels), -1)

        def decode(params: Any, codes: Int[Array, "N T"]) -> UInt8[Array, "N S S 3"]:
            return to_pixels(images(params, codes.reshape(len(codes), config.side, config.side)))

        def settled(params: Any, pixels: UInt8[Array, "N S S 3"]) -> Int[Array, "N T"]:
            codes = encode(params, pixels)
            for _ in range(SETTLING):
                codes = encode(params, decode(params, codes))
            return codes

        # A published model's codes are those that its own code finds.
        return jax.jit(encode if isinstance(config, VqConfig) else settled), jax.jit(decode)

    def _run(
        self, compiled: Callable, inputs: Shaped[np.ndarray, "N ..."], empty: Shaped[np.ndarray, "0 ..."]
    ) -> Shaped[np.ndarray, "N ..."]:
        """Runs chunks of one size; the last one is filled up with copies, whose results are cut off."""
        found, count = [empty], AT_ONCE_PUBLISHED if isinstance(self.config, VqConfig) else AT_ONCE
        for start in range(0, len(inputs), count):
            chunk = inputs[start : start + count]
            whole = np.resize(chunk, (count, *chunk.shape[1:]))
            found.append(np.asarray(compiled(self.params, whole))[: len(chunk)])
        return np.concatenate(found)


def _rounding(config: AutoencoderConfig) -> tuple[Callable, Callable]:
    """Images to codes and codes to images by our own network, as functions of its parameters."""
    graph = graph_of(config)

    def codes(params: Any, images: Float[Array, "N S S 3"]) -> Int[Array, "N h w"]:
        return to_codes(jnp.round(nnx.merge(graph, params).latents(images)), config.levels)

    def images(params: Any, codes: Int[Array, "N h w"]) -> Float[Array, "N S S 3"]:
        return nnx.merge(graph, params).images(to_digits(codes, config.levels))

    return codes, images


def _published(config: VqConfig) -> tuple[Callable, Callable]:
    """The same by a published network."""
    return partial(encode_vq, config), partial(decode_vq, config)


def _is_own(path: Path) -> bool:
    settings = path / "config.json"
    given = read_json(settings) if settings.is_file() else None
    return isinstance(given, dict) and given.get("architectures") == [ARCHITECTURE]


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
