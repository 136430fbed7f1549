"""What drawings are judged by: towers that took no part in drawing them, and the frozen encoder.

Dimension key: N images, H height, W width, S pixels per side of the encoder's input, F features.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from generalist.contrastive.dual import DualEncoder
from generalist.data.emoji import Drawing
from generalist.eval.held_out.drawing import Truth, scores
from generalist.inference.best_of import text_embeddings
from generalist.vision.load import load_encoder

ENCODER_SIZE = 96  # pixels per side of the frozen encoder's input
AT_ONCE = 32  # images per call: one shape, one compilation


class Judge:
    """Scores lists of images, one for each of the names that were asked for.

    Args:
        towers: folder of the towers.
        asked: real drawings of the names, whose things occur in `train`.
        train: all training drawings.
        others: more drawings, whose names are among those to choose from.
        seed: of the names to choose from.

    Raises:
        WeightsError, ImportError: the towers' folder is damaged, or the encoder is missing.
    """

    def __init__(
        self, towers: str, asked: Sequence[Drawing], train: Sequence[Drawing], others: Sequence[Drawing], seed: int
    ):
        encoder = load_encoder("efficientnet_lite0", ENCODER_SIZE)
        assert encoder is not None, "this name is that of an encoder"
        self._towers, self._seed = DualEncoder.load(towers), seed
        self._prepare, self._encode = encoder.prepare, encoder.compiled()
        names = sorted({one.name for one in (*train, *others)})
        things = sorted({one.thing for one in train})
        self._truth = Truth(
            features=self.features([one.image() for one in asked]),
            train=self.features([one.image() for one in train]),
            labels=np.array([things.index(one.thing) for one in train]),
            right=[things.index(one.thing) for one in asked],
            names=text_embeddings(self._towers, names),
            own=[names.index(one.name) for one in asked],
        )

    def features(self, images: Sequence[UInt8[np.ndarray, "_H _W 3"]]) -> Float[np.ndarray, "N F"]:
        """The encoder's features of images, the mean over the grid."""
        pixels, found = np.stack([self._prepare(image) for image in images]), []
        for start in range(0, len(pixels), AT_ONCE):
            chunk = pixels[start : start + AT_ONCE]
            whole = jnp.asarray(np.resize(chunk, (AT_ONCE, *chunk.shape[1:])))  # filled up with copies
            found.append(np.asarray(self._encode(whole).mean(axis=1))[: len(chunk)])
        return np.concatenate(found)

    def scores(self, images: Sequence[UInt8[np.ndarray, "_H _W 3"]]) -> dict[str, Any]:
        """All scores of one image per name, as JSON values."""
        return scores(self._towers.embed_images(list(images)), self.features(images), self._truth, self._seed)
