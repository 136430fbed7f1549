"""Several drawings of one text, the best ones first.

Dimension key: N images, S pixels per side, T cells of an image, M texts, E width of an embedding.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from generalist.contrastive.data import TEMPLATES
from generalist.contrastive.dual import DualEncoder
from generalist.inference.drawing import Drawn, Progress, draw_images
from generalist.inference.drawing_settings import DrawingSettings, check_counts
from generalist.inference.weights import Weights


def best_of(
    generalist: Weights,
    text: str,
    settings: DrawingSettings,
    *,
    count: int,
    candidates: int,
    towers: DualEncoder | None = None,
    given: Int[np.ndarray, "T"] | None = None,
    drawn: Bool[np.ndarray, "T"] | None = None,
    progress: Progress | None = None,
) -> Drawn:
    """The `count` best of `candidates` drawings of a text, the best first.

    Args:
        towers: drawings are ranked by the similarity that these find between image and text (as DALL·E does; Ramesh et al., 2021,
            section 2.6); None: by the weights' own estimate, `Drawn.fit`.
        given, drawn, progress: as in `draw_images`.

    Raises:
        ValueError: fewer candidates than images are wanted; and as `draw_images`.
    """
    check_counts(count, candidates)
    found = draw_images(generalist, [text] * candidates, settings, given=given, drawn=drawn, progress=progress)
    scores = found.fit if towers is None else similarity(towers, found.images, text)
    best = np.argsort(-scores, kind="stable")[:count]
    return Drawn(found.codes[best], found.images[best], found.fit[best])


def similarity(towers: DualEncoder, images: UInt8[np.ndarray, "N S S 3"], text: str) -> Float[np.ndarray, "N"]:
    """Cosine of each image's embedding and the text's, the mean over the templates that the towers were trained with."""
    return towers.embed_images(list(images)) @ text_embeddings(towers, [text])[0]


def text_embeddings(towers: DualEncoder, texts: list[str]) -> Float[np.ndarray, "M E"]:
    """One unit embedding per text: the mean over the templates that the towers were trained with, scaled to length 1."""
    embedded = towers.embed_texts([template.format(text) for text in texts for template in TEMPLATES])
    means = embedded.reshape(len(texts), len(TEMPLATES), -1).mean(axis=1)  # (M, E)
    return means / np.linalg.norm(means, axis=1, keepdims=True)
