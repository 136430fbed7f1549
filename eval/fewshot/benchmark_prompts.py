"""Prompts of a benchmark and a model's answers to them: names ranked, or texts written; over one or several orders of the same
shots.

Dimension key: N prompts, C choices.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from generalist.data.images import read_image
from generalist.eval.fewshot.published import Benchmark, Example
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import context, prompt, rank
from generalist.inference.rows import filled
from generalist.inference.sampling import Decoding
from generalist.inference.shots import example_parts
from generalist.tokenizers.sequence import CHUNK_END

SHOTS = (0, 4, 8, 16, 32)  # those of Flamingo's tables
ASKED_AT_ONCE = 16  # prompts read in one call
CHOICES_AT_ONCE = 64  # choices scored in one call, over all of its prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """How a benchmark is asked."""

    shots: tuple[int, ...] = SHOTS
    """Numbers of shots, one row of results each."""
    seeds: int = 3
    """Number of draws of shots; the score is the mean over them."""
    retrieve: bool = False
    """Take the nearest images by the frozen encoder instead of random ones; nothing is drawn, so one seed is enough."""
    permutations: int = 1
    """Number of orders of the same shots whose log-likelihoods are averaged; the first is the order without permutation."""
    beams: int = 3
    """Beams of the search for written answers."""
    tokens: int | None = None
    """Maximum number of ids of a written answer; None: the benchmark's."""
    template: str | None = None
    """Text of a prompt that ends with `{answer}` and may have `{question}`; None: the benchmark's."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) != len(self.shots):
            raise ValueError(f"shots must be different numbers of at least 0, got {self.shots}")
        for name in ("seeds", "permutations", "beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")
        if self.template is not None and not self.template.endswith("{answer}"):
            raise ValueError(f"a template must end with {{answer}}, got {self.template!r}")


class Asked:
    """A benchmark as prompts for one set of weights."""

    def __init__(self, generalist: Generalist, benchmark: Benchmark, asking: Asking):
        self.generalist, self.benchmark, self.asking = generalist, benchmark, asking
        self.template = (asking.template or benchmark.template).removesuffix("{answer}")
        self.tokens = asking.tokens or benchmark.tokens
        if benchmark.kind == "classify":  # room for the longest name
            encode = generalist.tokenizers.text.encode
            self.tokens = max(len(encode(f" {name}")) for name in benchmark.classes)
        # A support stands in hundreds of prompts, and measuring it may mean reading its image.
        self._lengths: dict[tuple[Path, str, bool, bool], int] = {}

    def parts(self, example: Example, *, answered: bool, with_image: bool = True) -> list[Any]:
        """A shot, or the query up to the place of its answer."""
        with_image = with_image and self.generalist.sees  # a language model answers blindly
        # Without the space at the end: an answer brings its own (`example_parts`).
        before = self.template.replace("{question}", example.question).rstrip()
        ended = self.generalist.assembler.marks.ended
        image, answer = example.image if with_image else None, example.shown if answered else ""
        return example_parts(image, before, answer, ended=ended)

    def prompt(self, query: int, shots: Sequence[int], *, with_images: bool = True) -> list[Any]:
        """The shots, with or without their images, followed by the query."""
        supports = [self.benchmark.supports[one] for one in shots]
        parts = [part for one in supports for part in self.parts(one, answered=True, with_image=with_images)]
        return [*parts, *self.parts(self.benchmark.queries[query], answered=False)]

    def length(self, example: Example, *, answered: bool, with_image: bool = True) -> int:
        """Number of positions that an example takes within a prompt."""
        key = (example.image, example.question + "\0" + example.shown, answered, with_image)
        if key not in self._lengths:
            assembler = self.generalist.assembler
            # The size of an image decides its number of positions only if it enters as patches.
            by_size = "patches" in assembler.images.split("+")
            parts = [
                part if not isinstance(part, Path) else read_image(part) if by_size else np.zeros((16, 16, 3), np.uint8)
                for part in self.parts(example, answered=answered, with_image=with_image)
            ]
            # The next image would end the chunk; a shot of text alone has its end already, and ends only once.
            parts += [CHUNK_END] if answered and parts[-1:] != [CHUNK_END] else []
            # Without the beginning mark, which a prompt has once.
            self._lengths[key] = len(assembler.document(parts, is_open=True)) - len(assembler.marks.begin)
        return self._lengths[key]

    def fitting(self, query: int, shots: Sequence[int], *, with_images: bool) -> int:
        """Number of shots, counted from the last, that fit before the query and its answer; -1 if not even the query fits."""
        asked = self.length(self.benchmark.queries[query], answered=False)
        room = context(self.generalist) - len(self.generalist.assembler.marks.begin) - asked - self.tokens
        supports = [self.benchmark.supports[one] for one in reversed(shots)]
        used = np.cumsum([0, *(self.length(one, answered=True, with_image=with_images) for one in supports)])
        # How many of these sums are within the room, less one for the sum of no shots.
        return int(np.searchsorted(used, room, side="right")) - 1


def choose(asked: Asked, prompts: list[list[list[Any]]]) -> list[dict[str, Any]]:
    """The class with the likeliest name for each query, by the mean of its log-likelihoods over several prompts.

    Args:
        asked: the benchmark.
        prompts: query → order of the shots → parts.
    """
    classes = asked.benchmark.classes
    flat = [one for several in prompts for one in several]
    # Names begin with a space, like the answers of the shots.
    likelihoods = log_likelihoods(asked.generalist, flat, [f" {name}" for name in classes])
    answers, start = [], 0
    for several in prompts:
        mean = likelihoods[start : start + len(several)].mean(axis=0)  # (C,)
        start += len(several)
        answer: dict[str, Any] = {"answer": classes[int(mean.argmax())]}
        if asked.benchmark.metric == "auc":
            # A score that ranks queries: the last class, which is looked for, against all others.
            answer["log_odds"] = float(mean[-1] - np.logaddexp.reduce(mean[:-1]))
        answers.append(answer)
    return answers


def log_likelihoods(
    generalist: Generalist, prompts: list[list[Any]], choices: Sequence[str]
) -> Float[np.ndarray, "N C"]:
    """Log-likelihood of every choice after every prompt, computed in chunks that fit into memory."""
    # Few choices: several prompts per call, every prompt read once for each of its choices.
    if len(choices) <= CHOICES_AT_ONCE:
        at_once = max(1, CHOICES_AT_ONCE // len(choices))
        # Filled up to one shape, so that the last chunk compiles nothing; what is added is cut off again.
        chunks = [filled(prompts[at : at + at_once], at_once) for at in range(0, len(prompts), at_once)]
        return np.concatenate([rank(generalist, chunk, choices) for chunk in chunks])[: len(prompts)]
    # Many choices (1,000 in ImageNet): each prompt is read once, and all choices continue from there.
    rows = []
    for parts in prompts:
        after = generalist.read(parts[:-1]) if len(parts) > 1 else None
        several = [choices[at : at + CHOICES_AT_ONCE] for at in range(0, len(choices), CHOICES_AT_ONCE)]
        rows.append(np.concatenate([rank(generalist, [parts[-1:]], some, after)[0] for some in several]))
    return np.stack(rows)


def write(asked: Asked, prompts: list[list[list[Any]]]) -> list[dict[str, Any]]:
    """The text that the model writes for each query; of the texts after several orders of the shots, the one with the best mean
    log-likelihood after all of them.

    Args:
        asked: the benchmark.
        prompts: query → order of the shots → parts.
    """
    decoding, encode = Decoding(tokens=asked.tokens, beams=asked.asking.beams), asked.generalist.tokenizers.text.encode
    flat = [one for several in prompts for one in several]
    chunks = [filled(flat[at : at + ASKED_AT_ONCE], ASKED_AT_ONCE) for at in range(0, len(flat), ASKED_AT_ONCE)]
    texts = [text for chunk in chunks for text in prompt(asked.generalist, chunk, decoding)]
    answers, start = [], 0
    for several in prompts:
        # Without repetition, in order.
        written = list(dict.fromkeys(text for text in texts[start : start + len(several)] if text.strip()))
        start += len(several)
        # Encoded again, a text may have more ids than when it was written, and then more than there is room for.
        lengths = {text: count for text in written if (count := len(encode(text))) <= asked.tokens}
        if len(lengths) > 1:
            ranked = rank(asked.generalist, several, filled(list(lengths), len(several)))[:, : len(lengths)]
            # Per id, or the shortest text would win; the end mark is one, too.
            means = ranked.mean(axis=0) / (np.array(list(lengths.values())) + 1)
            written = [list(lengths)[int(means.argmax())]]
        answers.append({"answer": written[0].strip() if written else ""})
    return answers
