"""Trained towers in use: images and texts to embeddings.

Dimension key: N images or texts, H height, W width, C colours, E embedding width.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Shaped, UInt8

from generalist.config.versions import from_stored
from generalist.contrastive.config import ContrastiveConfig
from generalist.contrastive.data import text_ids
from generalist.contrastive.towers import Towers
from generalist.model.params import flat, nested
from generalist.tokenizers.text import TextTokenizer
from generalist.vision.encoder import Preparation
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.recipe import tensor

EMBEDDED_AT_ONCE = 64  # images or texts per call: one shape, so one compilation


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """Trained towers, which embed images and texts in one space."""

    config: ContrastiveConfig
    text: TextTokenizer
    params: Any

    @classmethod
    def load(cls, folder: Path | str) -> "DualEncoder":
        """Loads the towers of a finished run.

        Args:
            folder: of the run.

        Raises:
            WeightsError: the folder holds no contrastive run, or its settings or weights are damaged.
            ValueError: the text tokenizer is damaged.
        """
        weights = WeightsFolder(Path(folder))
        try:
            config = from_stored(ContrastiveConfig, weights.config, weights.folder / "config.json")
        except ValueError as error:
            raise WeightsError(str(error)) from error
        # What the settings describe is compared with the file: a tensor that is missing, too much or of another shape is refused.
        shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: fresh_towers(config)), nnx.Param))
        recipes = {path: tensor(path, *leaf.shape) for path, leaf in flat(shapes).items()}
        params = nested({path: jnp.asarray(array) for path, array in weights.read(recipes).items()})
        text = TextTokenizer.load(weights.folder / "text.model")
        if text.size > config.towers.text_pieces:  # fewer where the texts have no more
            raise WeightsError(
                f"{weights.folder / 'text.model'} has {text.size} pieces, but the towers {config.towers.text_pieces}: restore it"
            )
        return cls(config, text, params)

    @cached_property
    def prepare(self) -> Preparation:
        """The conversion of images to pixels, as in training."""
        return Preparation(size=self.config.towers.size, crop=False)

    def embed_images(self, images: list[UInt8[np.ndarray, "H W C"]]) -> Float[np.ndarray, "N E"]:
        """Embeddings of length 1, float32; the images may be of different sizes."""
        size = self.prepare.size
        pixels = [self.prepare(image) for image in images]
        # With an explicit shape, an empty list works too.
        return self._embed(Towers.images, np.reshape(pixels, (-1, size, size, 3)).astype(np.uint8))

    def embed_texts(self, texts: list[str]) -> Float[np.ndarray, "N E"]:
        """Embeddings of length 1, float32."""
        return self._embed(Towers.texts, text_ids(self.text, texts, self.config.towers.text_length))

    @cached_property
    def _compiled(self) -> Callable:
        # The method is static, so there is one compiled program for images and one for texts.
        graph, _ = nnx.split(nnx.eval_shape(lambda: fresh_towers(self.config)), nnx.Param)
        run = jax.jit(lambda method, params, x: method(nnx.merge(graph, params), x, jnp.float32), static_argnums=0)
        return run

    def _embed(self, method: Callable, inputs: Shaped[np.ndarray, "N ..."]) -> Float[np.ndarray, "N E"]:
        """Embeds in chunks of one size; the last one is filled up with copies, whose results are cut off."""
        found = [np.zeros((0, self.config.towers.embedding), np.float32)]
        for start in range(0, len(inputs), EMBEDDED_AT_ONCE):
            chunk = inputs[start : start + EMBEDDED_AT_ONCE]
            filled = np.resize(chunk, (EMBEDDED_AT_ONCE, *chunk.shape[1:]))
            found.append(np.asarray(self._compiled(method, self.params, filled))[: len(chunk)])
        return np.concatenate(found)


def fresh_towers(config: ContrastiveConfig) -> Towers:
    """Both towers with random weights."""
    return Towers(config.towers, config.loss, rngs=nnx.Rngs(config.training.seed))
