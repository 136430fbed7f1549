"""What a run makes of a source: its parts as tokens, tokens per episode, and what a batch has of it.

Dimension key: L positions.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from generalist.data.batch import BUDGETS, BatchSpec
from generalist.data.document_examples import DocumentExamples
from generalist.data.examples import ControlExamples, Examples
from generalist.data.files import DocumentError
from generalist.data.formats.faults import TooManyBroken
from generalist.data.inspection.problems import Problem
from generalist.data.mixture import Opened, mix
from generalist.data.packing import Packer, Position
from generalist.data.recorded import opened
from generalist.data.source import Reading, Stored
from generalist.data.sources.recorded import Recorded
from generalist.data.spread import spread
from generalist.experiment.layout_fit import losses, sample
from generalist.experiment.subject import Subject
from generalist.run.shapes import NO_IMAGE, batch_spec
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.parts import ContinuousPart, Part
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.pieces import Sequence as TokenSequence
from generalist.tokenizers.spaces import TaskLayout

BATCHES = 4
"""That are packed to see what one has."""
DOCUMENTS = 256
"""From which tokens of texts are counted."""
EPISODES = 8
"""From which tokens per step are counted."""
FULL = 0.5
"""Share of a batch's positions, below which so much is padding that it should be mended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn(TokenSequence):
    """An example with where it is from."""

    part: int
    """Number of the source's part."""
    index: int
    """Number of the example within it."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A part of a source whose examples say where they are from."""

    examples: Examples
    part: int

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, index: int, rng: np.random.Generator) -> Drawn:
        """See `Examples.example`."""
        return Drawn(**vars(self.examples.example(index, rng)), part=self.part, index=index)


def open_parts(about: Subject, tokenizers: Tokenizers, data: Stored) -> list[Labelled]:
    """The source's parts, such as the tasks of a suite, as training opens them."""
    # Opened exactly as training does, so that counts hold for it.
    reading = Reading(assembler=tokenizers.assembler, layouts=tokenizers.layouts, length=about.config.data.length)
    return [Labelled(part, number) for number, part in enumerate(about.source.open(data, reading))]


def shard_spec(about: Subject, tokenizers: Tokenizers) -> BatchSpec:
    """The sizes of a shard of a batch."""
    visual = tokenizers.visual
    image = NO_IMAGE if visual is None else (visual.empty.shape[1:], str(visual.empty.dtype))
    return batch_spec(about.config, tokenizers.model_spec(), *image).shard


class Stream:
    """The stream of examples that a run's first shard reads of this source alone. Instead of a source's number each example has
    its own in the stream, so that a batch says which example a position is of."""

    def __init__(self, about: Subject, parts: Sequence[Labelled]):
        source = Opened(name=about.name, weight=1.0, parts=parts)
        config = about.config
        # The first shard of the run's own seed, so that these are the examples that it begins with.
        self._draw = mix([source], seed=config.training.seed, shards=config.data.shards)[0]
        self.drawn: dict[int, Drawn] = {}

    def __call__(self, number: int) -> tuple[int, Drawn]:
        """See `packing.Draw`."""
        _, sequence = self._draw(number)
        assert isinstance(sequence, Drawn)
        self.drawn[number] = sequence
        return number, sequence


@contextlib.contextmanager
def naming(about: Subject) -> Iterator[None]:
    """The source's name in messages of packing, which names it by its number: here that of an example."""
    try:
        yield
    except TooManyBroken:
        raise
    except ValueError as error:
        # In a `Stream` the number is an example's, which means nothing to a user.
        raise ValueError(re.sub(r"of source \d+ ", f"of {about.name} ", str(error))) from error


def measure(about: Subject, tokenizers: Tokenizers, data: Stored) -> tuple[dict[str, Any], list[Problem]]:
    """How a run sees the source, as JSON values, and what does not fit.

    Raises:
        ValueError: the source has no examples.
        TooManyBroken: more of its records can't be read than may be left out.
    """
    parts = open_parts(about, tokenizers, data)
    described = [_part(about, one, tokenizers) for one in parts]
    found = {
        "preset": about.config.name,
        "learnt_from": "this source alone" if about.run is None else str(about.run),
        "text_pieces": tokenizers.text.size,
        "examples": sum(map(len, parts)),
        "parts": described,
        # Sources that make examples without end have no number of tokens.
        "tokens": sum(one["tokens"] for one in described if one["tokens"] is not None) or None,
    }
    try:
        with naming(about):
            batch = _batch(about, tokenizers, parts)
    except TooManyBroken:
        raise  # other sizes of a batch would not help
    except ValueError as error:
        remedy = "raise the sizes of a batch (--data.length, --data.rows, ...), or take a shorter window (--data.SOURCE.steps)"
        return {**found, "batch": None}, [
            Problem(kind="does_not_fit", part=about.name, where="batch", what=str(error), remedy=remedy)
        ]
    return {**found, "batch": batch}, _padding(about, batch)


def _part(about: Subject, labelled: Labelled, tokenizers: Tokenizers) -> dict[str, Any]:
    """A part of the source; of control windows with their layout."""
    examples = labelled.examples
    if not isinstance(examples, ControlExamples):
        found: dict[str, Any] = {"name": about.name, "examples": len(examples), "layout": None, "tokens": None}
        # Texts are cheap to count, so that more of them are than of the typical examples below.
        if isinstance(examples, DocumentExamples):
            found |= _text_tokens(examples)
        return found | _typical(labelled)
    layout, reader = examples.layout, examples.reader
    each = _per_step(examples)
    steps = int(reader.lengths.sum())
    # (N,): the instruction once, then the same number per step.
    per_episode = each["instruction"] + each["step"] * np.asarray(reader.lengths)
    # What the layout's codecs can't represent of the stored values, such as numbers beyond their bins.
    lost = losses(layout, sample([reader], layout.observation.space, layout.action.space, None))
    return {
        "name": layout.name,
        "examples": len(examples),
        "layout": [*_layout(layout, "observation"), *_layout(layout, "action")],
        "lost": lost,
        "episodes": len(reader),
        "steps": steps,
        "tokens_per_step": each["step"],
        "tokens_of_instruction": each["instruction"],
        "by_modality": each["by_modality"],
        "tokens_per_episode": {
            "min": float(per_episode.min()),
            "median": float(np.median(per_episode)),
            "max": float(per_episode.max()),
        },
        "tokens": float(per_episode.sum()),
        "window_steps": examples.steps,
        "window_seconds": _seconds(about, examples.steps),
        **_typical(labelled),
    }


def _text_tokens(examples: DocumentExamples) -> dict[str, Any]:
    """Tokens of the texts of documents, from a sample; those that can't be read are passed over."""
    encode = examples.assembler.text_tokenizer.encode
    counts = []
    for index in spread(len(examples.documents), DOCUMENTS).tolist():
        with contextlib.suppress(DocumentError):
            counts.append(sum(len(encode(part)) for part in examples.documents[index] if isinstance(part, str)))
    lengths = np.array(counts or [0])
    each = {"min": float(lengths.min()), "median": float(np.median(lengths)), "max": float(lengths.max())}
    return {"text_tokens_per_document": each, "tokens": float(lengths.mean()) * len(examples.documents)}


def _layout(layout: TaskLayout, role: str) -> list[dict[str, Any]]:
    """The parts of a layout's observation or action."""
    tokenizer = layout.observation if role == "observation" else layout.action
    return [
        {
            "role": role,
            "key": part.key,
            "kind": type(part).__name__.removesuffix("Part"),
            "shape": list(part.shape),
            "codec": _codec(part),
            "tokens_per_step": part.tokens_per_step,
            "columns": part.projection_size,
        }
        for part in tokenizer.parts
    ]


def _codec(part: Part) -> str:
    """How a part's numbers become tokens, for people."""
    if isinstance(part, ContinuousPart):
        return f"{type(part.codec).__name__}, {part.codec.bins} bins"
    sizes = getattr(getattr(part, "codec", None), "sizes", None)
    if sizes is not None:
        return f"{min(sizes)} to {max(sizes)} values" if len(set(sizes)) > 1 else f"{sizes[0]} values"
    return ""


def _per_step(examples: ControlExamples) -> dict[str, Any]:
    """Positions of an instruction and of a step, in the mean of some windows: texts vary in length."""
    counts, instructions, steps = np.zeros(len(Modality)), [], 0
    # Whatever most windows are: shown or hidden actions take different numbers of positions.
    hide = examples.hide_actions >= 0.5
    for index in spread(len(examples.reader), EPISODES).tolist():
        episode = examples.reader[index]
        window = episode.window(0, examples.steps)
        sequence = examples.assembler.control(examples.layout, "", *window, hide_actions=hide)
        # The instruction is counted apart, as it stands once per window.
        counts += np.bincount(sequence.modality, minlength=len(Modality))
        instructions.append(len(examples.assembler.instruction(episode.instruction)))
        # Episodes may be shorter than a window.
        steps += min(examples.steps, len(episode))
    return {
        "instruction": float(np.mean(instructions)),
        "step": float(counts.sum() / steps),
        "by_modality": _by_modality(counts / steps),
    }


def _typical(labelled: Labelled) -> dict[str, Any]:
    """Positions of examples, in the mean of a few: in all, predicted ones and by modality."""
    # The same examples each time, so that two inspections can be compared.
    rng = np.random.default_rng(0)
    drawn = [labelled.example(int(rng.integers(len(labelled))), rng) for _ in range(EPISODES)]
    by = np.stack([np.bincount(one.modality, minlength=len(Modality)) for one in drawn]).mean(axis=0)
    return {
        "example_tokens": float(np.mean([len(one) for one in drawn])),
        "example_predicted": float(
            np.mean([(one.loss_weight > 0).sum() + (one.action_weight > 0).sum() for one in drawn])
        ),
        "example_by_modality": _by_modality(by),
    }


def _by_modality(counts: np.ndarray) -> dict[str, float]:
    """Positions by the name of their modality, of those that there are."""
    return {Modality(kind).name.lower(): float(counts[kind]) for kind in np.flatnonzero(counts).tolist()}


def _seconds(about: Subject, steps: int) -> float | None:
    """How long a window of steps took, where the data set says its rate."""
    if not isinstance(about.source, Recorded):
        return None
    found = opened(about.source.dataset)
    return steps * found.every / found.episodes.rate if found.episodes.rate else None


def _batch(about: Subject, tokenizers: Tokenizers, parts: Sequence[Labelled]) -> dict[str, Any]:
    """What a batch has of this source, from batches that are packed of it alone.

    Raises:
        ValueError: an example does not fit into an empty shard.
    """
    spec, stream = shard_spec(about, tokenizers), Stream(about, parts)
    packer, position = Packer(stream, spec, tokenizers.assembler.vocabulary.pad), Position()
    # Positions, payloads per kind, and examples of all batches.
    used, counts, placed = 0, [], 0
    for _ in range(BATCHES):
        shard, position = packer.pack(position)
        used += int(shard.used.sum())
        counts.append(shard.counts)
        placed += int(shard.segments.sum())
    # Share of all positions of the packed shards that hold a token.
    filled = used / (BATCHES * spec.rows * spec.length)
    data = about.config.data
    budgets = {name: max(one[name] for one in counts) for name in BUDGETS}
    # Its share of a whole batch, if the batch is as full as of this source alone.
    of_batch = about.share * data.rows * data.length * filled
    # Tokens per example.
    mean = used / max(1, placed)
    examples = sum(map(len, parts))
    return {
        "rows": data.rows,
        "length": data.length,
        "share": about.share,
        "others": list(about.others),
        "tokens": of_batch,
        "examples": of_batch / mean,
        "epochs_per_1000_steps": 1000 * of_batch / mean / examples,
        "filled": filled,
        "budgets": {
            name: {"used": budgets[name], "room": getattr(spec, name)} for name in BUDGETS if getattr(spec, name)
        },
    }


def _padding(about: Subject, batch: dict[str, Any]) -> list[Problem]:
    """Whether rows are so empty that sizes should be others."""
    if batch["filled"] >= FULL:
        return []
    # Nine tenths: the next example would hardly have found room.
    full = [name for name, one in batch["budgets"].items() if one["used"] > 0.9 * one["room"]]
    what = f"batches of this source alone are {1 - batch['filled']:.0%} padding"
    remedy = (
        f"a batch's room for {' and '.join(full)} is spent first: raise --data.{' --data.'.join(full)}"
        if full
        else "two examples do not fit into one row: choose --data.length as a multiple of an example's tokens"
    )
    return [Problem(kind="padding", part=about.name, where="batch", what=what, remedy=remedy)]
