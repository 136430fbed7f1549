"""Retrieval of texts by images and of images by texts, and zero-shot classification.

Dimension key: N pairs, M texts, C classes, T templates, E embedding width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from generalist.eval.results.scores import proportion


def retrieval(
    images: Float[np.ndarray, "N E"], texts: Float[np.ndarray, "N E"], names: Sequence[str], at: Sequence[int] = (1, 5)
) -> dict[str, Any]:
    """R@k in percent with intervals, image to text and text to image: is the right one among the k most similar?

    Args:
        images: unit embeddings of the images.
        texts: unit embeddings of their texts.
        names: the texts; of equal ones each is right.
        at: values of k.

    Raises:
        ValueError: there are no pairs, their numbers differ, or an embedding is not finite.
    """
    if not len(images) or not len(images) == len(texts) == len(names):
        raise ValueError(f"retrieval needs pairs, got {len(images)} images, {len(texts)} texts and {len(names)} names")
    # NaN compares as neither above nor below: every right answer would come first.
    for embeddings in (images, texts):
        if not np.isfinite(embeddings).all():
            raise ValueError("an embedding is not finite: nothing is more or less similar to it")
    same = np.array(names)[:, None] == np.array(names)[None]  # (N, N)
    result: dict[str, Any] = {"items": len(names)}
    similar = np.asarray(images) @ np.asarray(texts).T  # (N, N)
    for direction, scores in (("image_to_text", similar), ("text_to_image", similar.T)):
        # Wrong ones that are at least as similar as the best right one: a tie is no success, or a model that embeds everything
        # alike would be perfect.
        best = np.where(same, scores, -np.inf).max(axis=1, keepdims=True)
        before = ((scores >= best) & ~same).sum(axis=1)  # (N,)
        for k in at:
            found = proportion(int((before < k).sum()), len(names))
            result[f"{direction}_r{k}"] = dataclasses.asdict(found)
    for k in at:
        # In a random order: the probability that one of m right ones is among the first k of N, averaged over the queries. It
        # is 1 - C(N - m, k) / C(N, k), whose quotient is multiplied up factor by factor.
        right = same.sum(axis=1).astype(float)
        missed = np.prod(
            [np.clip((len(names) - right - i) / (len(names) - i), 0, 1) for i in range(min(k, len(names)))], axis=0
        )
        result[f"chance_r{k}"] = float(100 * (1 - missed).mean())
    return result


def class_embeddings(
    embed: Callable[[list[str]], Float[np.ndarray, "M E"]], classes: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "C E"]:
    """One unit embedding per class: the mean of its unit embeddings in all templates, normalised again (CLIP, section 3.1.4).

    Args:
        embed: texts → unit embeddings.
        classes: names of the classes.
        templates: texts with `{}` in place of the class.

    Raises:
        ValueError: there is no template, or one without `{}`.
    """
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"every template needs {{}} where the class stands, got {list(templates)}")
    texts = [template.format(name) for name in classes for template in templates]
    embedded = np.asarray(embed(texts)).reshape(len(classes), len(templates), -1)  # (C, T, E)
    embedded = embedded.mean(axis=1)  # (C, E)
    return embedded / np.linalg.norm(embedded, axis=-1, keepdims=True)


def zero_shot(
    images: Float[np.ndarray, "N E"], classes: Float[np.ndarray, "C E"], labels: Sequence[int]
) -> dict[str, Any]:
    """Accuracy in percent, with its interval, of choosing the class with the most similar embedding.

    Args:
        images: unit embeddings of the images.
        classes: unit embeddings of the classes.
        labels: the right class of each image.

    Raises:
        ValueError: there is no image or class, a label is missing, or an embedding is not finite.
    """
    if not len(images) or not len(classes) or len(images) != len(labels):
        raise ValueError(
            "zero-shot classification needs images, a label for each, and classes, "
            f"got {len(images)}, {len(labels)} and {len(classes)}"
        )
    if not (np.isfinite(images).all() and np.isfinite(classes).all()):
        raise ValueError("an embedding is not finite: nothing is more or less similar to it")
    right = (np.asarray(images) @ np.asarray(classes).T).argmax(axis=1) == np.asarray(labels)
    return {
        "accuracy": dataclasses.asdict(proportion(int(right.sum()), len(right))),
        "chance": 100.0 / len(classes),
        "classes": len(classes),
        "items": len(right),
    }
