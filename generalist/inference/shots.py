"""Shots: answered examples that precede a question, read from a file, chosen at random or by similarity (RICES).

A file is JSONL, or JSON or YAML with a list:

    {"image": "cat.png", "answer": "a cat"}                                      the image, then its answer
    {"image": "dog.png", "question": "what is this?", "answer": "a dog"}         with a question between
    {"question": "what is a plum?", "answer": "a fruit"}                         text alone

Dimension key: H height, W width, C colours, N images, F channels of the encoder's features, k images that are chosen.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, UInt8

from generalist.data.files import DocumentError, check_letters, decoded, json_lines, named, parsed, whole
from generalist.data.images import check_image, read_image
from generalist.inference.rows import filled
from generalist.inference.weights import ENCODED_AT_ONCE, Weights
from generalist.tokenizers.sequence import CHUNK_END

TEMPLATE = "question: {question} answer: {answer}"
KEYS = {"image", "question", "answer"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shot:
    """A question about an image with its answer; without an answer it is a query."""

    image: Path | UInt8[np.ndarray, "H W C"] | None = None
    """A file, or pixels."""
    question: str = ""
    answer: str = ""

    @property
    def pixels(self) -> UInt8[np.ndarray, "H W C"] | None:
        """The image, read anew each time, so that only one of many queries is in memory.

        Raises:
            DocumentError: the file cannot be read.
        """
        return read_image(self.image) if isinstance(self.image, Path) else self.image

    def parts(self, template: str = TEMPLATE, *, with_image: bool = True, ended: bool = False) -> list[Any]:
        """The parts of a prompt: image, question and answer, or up to the place of the answer.

        A template's text before `{answer}` is used if there is a question; otherwise the answer follows the image.

        Args:
            ended: as in `example_parts`.
        """
        before = template.partition("{answer}")[0].format(question=self.question).rstrip() if self.question else ""
        return example_parts(self.pixels if with_image else None, before, self.answer, ended=ended)


def example_parts(image: Any | None, before: str, answer: str, *, ended: bool = False) -> list[Any]:
    """The parts of an example in a prompt: an image, the text before the answer, and the answer; empty ones are left out.

    Args:
        ended: mark the end of an answer about an image too, of models to which an image ends nothing (`Marks.ended`).
    """
    parts: list[Any] = [image] if image is not None else []
    parts += [before] if before else []
    if answer:
        # Answers begin with a space, as words within a text do: their pieces are then those that training saw.
        parts.append(f" {answer.strip()}")
        # The next image ends a chunk by itself; after text alone the end must be marked.
        parts += [] if image is not None and not ended else [CHUNK_END]
    return parts


def check_template(template: str) -> str:
    """The template, checked for its places of question and answer.

    Raises:
        ValueError: a place is missing, repeated or unknown.
    """
    before, found, after = template.partition("{answer}")
    # Any other brace would make `format` fail later, in the middle of an evaluation.
    if not found or after or before.count("{question}") != 1 or "{" in before.replace("{question}", ""):
        raise ValueError(f"a template has {{question}} once and ends with {{answer}}, got {template!r}")
    return template


def load_shots(path: Path, *, answered: bool = True) -> list[Shot]:
    """The shots of a file, all checked; images must be in the file's folder or below it.

    Args:
        answered: every entry must have an answer (shots), or none may (queries).

    Raises:
        DocumentError: the file is missing or damaged, or one of its entries is; the message names the entry.
    """
    # All entries are checked now: a broken image in the last one must not end an evaluation after an hour.
    shots = [_shot(entry, path, where, answered) for where, entry in _entries(path)]
    if not shots:
        raise DocumentError(f"{path} has no entries: write one per line")
    return shots


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The place and content of each entry: lines, or the members of the list in a JSON or YAML file."""
    if path.suffix.lower() == ".json":
        try:
            loaded = parsed(whole(path), str(path))
        except DocumentError as error:
            raise DocumentError(f"{error}; a file with one entry per line must end in .jsonl") from error
    elif path.suffix.lower() in (".yaml", ".yml"):
        import yaml  # imported here: only YAML files need it

        try:
            text = decoded(whole(path), str(path))
            loaded, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise DocumentError(f"{path} is not YAML ({error})") from error
        # PyYAML silently keeps the last of equal keys, so they are looked for in the tree.
        for number, node in enumerate(root.value if isinstance(root, yaml.SequenceNode) else [], 1):
            keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise DocumentError(
                    f"{path} entry {number} has {twice[0]!r} twice, and one of them would be lost: remove one"
                )
    else:
        yield from json_lines(path)
        return
    if not isinstance(loaded, list):
        raise DocumentError(f"{path} holds {type(loaded).__name__} instead of a list of shots")
    yield from ((f"{path} entry {number}", entry) for number, entry in enumerate(loaded, 1))


def _shot(entry: Any, path: Path, where: str, answered: bool) -> Shot:
    """One checked entry."""
    if not isinstance(entry, dict) or not entry:
        raise DocumentError(f"{where} holds {entry!r:.60} instead of an image, a question and an answer")
    if unknown := sorted(set(map(str, entry)) - KEYS):
        raise DocumentError(f"{where} has {unknown[0]!r}: known are {', '.join(sorted(KEYS))}")
    for key, value in entry.items():
        if not isinstance(value, str) or not value.strip():
            # YAML reads `answer: no` as a boolean and `answer: 3` as a number.
            quoted = "" if value is None or isinstance(value, str | list | dict) else ": put it in quotes"
            raise DocumentError(f"{where}: its {key} is {value!r:.60} instead of text{quoted}")
        check_letters(value, f"{where}: its {key}")
    if answered and "answer" not in entry:
        raise DocumentError(f"{where} has no answer: give it one, or leave the shot out")
    if not answered and "answer" in entry:
        raise DocumentError(f"{where} has an answer, but a query must not: remove it")
    if "image" not in entry and "question" not in entry:
        raise DocumentError(f"{where} has neither an image nor a question: add one")
    image = None
    if "image" in entry:
        image = named(path.parent, entry["image"], where)
        try:
            check_image(image)
        except DocumentError as error:
            raise DocumentError(f"{where}: {error}") from error
    return Shot(image=image, question=entry.get("question", ""), answer=entry.get("answer", ""))


class Images(Sequence):
    """A sequence of images that are read when they are accessed."""

    def __init__(self, images: Sequence[Path | UInt8[np.ndarray, "_H _W _C"]]):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        image = self._images[index]
        return read_image(image) if isinstance(image, Path) else image


def mean_features(weights: Weights, images: Sequence[UInt8[np.ndarray, "_H _W _C"]]) -> Float32[np.ndarray, "N F"]:
    """The frozen encoder's mean features of N images, at least one, scaled to length 1. A few images at a time are in memory."""
    assert weights.encoder is not None
    means = []
    for start in range(0, len(images), ENCODED_AT_ONCE):
        chunk = [weights.encoder.prepare(images[at]) for at in range(start, min(start + ENCODED_AT_ONCE, len(images)))]
        pixels = np.stack(filled(chunk, ENCODED_AT_ONCE))
        # Features are (images, cells, F); the mean over the cells describes the whole image.
        means.append(np.asarray(weights.features(jnp.asarray(pixels)))[: len(chunk)].mean(axis=1))
    # Scaled to length 1, a dot product is the cosine of the angle; 1e-9 guards features that are all zero.
    whole = np.concatenate(means).astype(np.float32)
    return whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-9)


class Retriever:
    """Finds the nearest images by the frozen encoder's features: RICES (Flamingo, section 3.4, after Yang et al., 2022).

    Raises:
        ValueError: the weights have no frozen encoder, or there are no images.
    """

    def __init__(self, generalist: Weights, images: Sequence[UInt8[np.ndarray, "_H _W _C"]]):
        # By the frozen encoder alone, as in Flamingo: training does not change what is similar.
        if generalist.encoder is None:
            raise ValueError(
                "retrieval compares images with the frozen encoder, but these weights have none: draw shots at random"
            )
        if not images:
            raise ValueError("there are no images to retrieve from")
        self._generalist = generalist
        self.features = mean_features(generalist, images)

    def nearest(self, image: UInt8[np.ndarray, "H W C"], count: int) -> Int[np.ndarray, "k"]:
        """Indices of the `count` most similar images, the most similar one last: next to the query."""
        # Stable, so that equal images (copies in a data set) come in the order of the file on every machine.
        likeness = self.features @ mean_features(self._generalist, [image])[0]
        return np.argsort(-likeness, kind="stable")[:count][::-1].astype(np.int64)
