"""Scores of drawn images: are they of what was asked for, like real ones, and no copies of training images?

Dimension key: N images, M other images, C names or classes, E width of an embedding, F features.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from generalist.eval.results.scores import Estimate, proportion


def named(
    images: Float[np.ndarray, "N E"], names: Float[np.ndarray, "C E"], right: Sequence[int], seed: int, among: int = 100
) -> Bool[np.ndarray, "N"]:
    """Whether each image's own name is the most similar one among `among` names, drawn at random with it.

    Args:
        images: unit embeddings.
        names: unit embeddings of different names.
        right: index of each image's own name.
    """
    rng, count, hits = np.random.default_rng(seed), len(names), []
    for image, own in zip(images, right, strict=True):
        others = rng.choice(count - 1, min(among, count) - 1, replace=False)
        others += others >= own
        # A tie is no success: an embedding of everything alike would otherwise be perfect.
        hits.append((names[others] @ image < names[own] @ image).all())
    return np.array(hits, bool)


def nearest_class(
    images: Float[np.ndarray, "N F"],
    right: Sequence[int],
    known: Float[np.ndarray, "M F"],
    labels: Int[np.ndarray, "M"],
) -> Estimate:
    """Percent of the images whose features are nearest, by their cosine, to the mean features of their own class.

    Args:
        right: class of each image.
        known: features of real images.
        labels: their classes, from 0.
    """
    means = np.stack([known[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    found = (unit(images) @ unit(means).T).argmax(axis=1)
    return proportion(int((found == np.asarray(right)).sum()), len(images))


def discrepancy(drawn: Float[np.ndarray, "N F"], real: Float[np.ndarray, "N F"]) -> Estimate:
    """Squared maximum mean discrepancy of two equally large sets, unbiased (Gretton et al., 2012, lemma 6), times 1000; about 0
    for two samples of one distribution. The kernel is Gaussian, its width the median distance of the real features.

    The interval is 1.96 standard errors of the leave-one-out jackknife to both sides.

    Raises:
        ValueError: the sets differ in size, or have fewer than three images.
    """
    count = len(drawn)
    if count != len(real) or count < 3:
        raise ValueError(
            f"a discrepancy needs two equally large sets of at least 3 images, got {count} and {len(real)}"
        )
    both = np.concatenate([drawn, real]).astype(np.float64)
    squares = np.square(both).sum(axis=1)
    distance = np.maximum(squares[:, None] + squares[None] - 2 * both @ both.T, 0)
    width = np.median(distance[count:, count:][np.triu_indices(count, 1)])
    kernel = np.exp(-distance / max(width, np.finfo(float).tiny))
    terms = kernel[:count, :count] + kernel[count:, count:] - kernel[:count, count:] - kernel[:count, count:].T
    np.fill_diagonal(terms, 0)
    total, rows = terms.sum(), terms.sum(axis=1)
    value = total / (count * (count - 1))
    without = (total - 2 * rows) / ((count - 1) * (count - 2))  # each image and its counterpart left out
    error = np.sqrt((count - 1) / count * np.square(without - without.mean()).sum())
    low, value, high = (1000 * float(number) for number in (value - 1.96 * error, value, value + 1.96 * error))
    return Estimate(value=value, low=low, high=high)


def nearest_distance(images: Float[np.ndarray, "N F"], train: Float[np.ndarray, "M F"]) -> float:
    """Median over the images of 1 - the largest cosine to a training image's features: near 0 for copies."""
    return float(np.median(1 - (unit(images) @ unit(train).T).max(axis=1)))


def unit(x: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N F"]:
    """The vectors scaled to length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """Real drawings that drawn images are compared with."""

    features: Float[np.ndarray, "N F"]
    """Of the real drawings of the names that are drawn, in their order."""
    train: Float[np.ndarray, "M F"]
    labels: Int[np.ndarray, "M"]
    """Class of each training drawing, from 0."""
    right: Sequence[int]
    """Class of each drawn name."""
    names: Float[np.ndarray, "C E"]
    """The judge's embeddings of all names."""
    own: Sequence[int]
    """Index of each drawn name among them."""


def scores(images: Float[np.ndarray, "N E"], features: Float[np.ndarray, "N F"], truth: Truth, seed: int) -> dict:
    """All scores of one image per name, as JSON values.

    Args:
        images: the judge's embeddings of the images.
        features: those of the frozen encoder.
    """
    hits = named(images, truth.names, truth.own, seed)
    found = {
        "named": proportion(int(hits.sum()), len(hits)),
        "thing": nearest_class(features, truth.right, truth.train, truth.labels),
        "discrepancy": discrepancy(features, truth.features),
    }
    return {name: dataclasses.asdict(one) for name, one in found.items()} | {
        "nearest": nearest_distance(features, truth.train),
        "hits": hits.tolist(),
    }
