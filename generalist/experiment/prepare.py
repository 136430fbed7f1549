"""From settings to a stream of batches: record what is missing, learn the tokenizers, fit the layouts, open the sources."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from generalist.config.run import Config, ControlConfig
from generalist.data.batch import BatchSpec
from generalist.data.documents import DocumentExamples, Documents, open_documents
from generalist.data.emoji import drawings, training_texts, variant
from generalist.data.episodes import EpisodeCache, EpisodeReader
from generalist.data.examples import ControlExamples, EmojiExamples, TextExamples
from generalist.data.loaders import LoadedBatches
from generalist.data.mixture import Source, mix
from generalist.data.new_words import FewShotExamples
from generalist.data.packing import BatchIterator, Draw
from generalist.data.prose import prose
from generalist.envs.task import Task
from generalist.experiment.inherit import check_same_model
from generalist.experiment.layout_fit import fit_layout, losses, sample, spread
from generalist.experiment.warm_start import fitted
from generalist.inference.generalist import Generalist
from generalist.run.folder import has_begun
from generalist.run.shapes import NO_IMAGE, batch_spec, spaces_of
from generalist.run.tasks import correction_folders, episodes_folder, suite_tasks
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.spaces import TaskLayout, assign_offsets
from generalist.tokenizers.text import TextTokenizer
from generalist.training.hosts import is_first, wait_for_all
from generalist.training.sharding import make_mesh, own_shards
from generalist.vision.encoder import VisionEncoder
from generalist.vision.features import FeatureStore
from generalist.vision.load import load_encoder
from generalist.weights.language import LanguageModel

TEXT_TRAINING_CHARACTERS = 1_500_000  # of prose: enough for a few thousand pieces, learnt in seconds
NO_SOURCE = "no source takes part: give at least one of data.*.weight a value above 0"
INSTRUCTIONS = 64  # of a task, for the text tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What training needs besides the settings."""

    tokenizers: Tokenizers
    batch_spec: BatchSpec
    iterator: BatchIterator
    sources: dict[str, float]
    """The sources and their shares, in the order of the batches' `source` ids."""
    encoder: VisionEncoder | None = None
    """The frozen encoder, where there is one."""
    start: Mapping[str, Any] | None = None
    """Parameters to begin with, by their paths; None: they are drawn."""


def prepare(config: Config, console: Console, start: Generalist | None = None) -> Prepared:
    """Opens everything a run reads; learns the tokenizers, or takes them from the run's folder if they are there.

    Args:
        start: the weights of `training.start`, where they are open already.

    Raises:
        ValueError: a setting does not fit the others, or what it names is damaged.
        FileNotFoundError: something it names is missing.
    """
    cache = EpisodeCache(config.data.cache_megabytes)
    readers = open_readers(config, cache)
    if start is None and config.training.start and not has_begun(config.folder, config.training.checkpoints):
        start = Generalist.load(config.training.start)
    if is_first() and not (config.folder / "config.json").exists():
        console.print("learning the tokenizers ...", highlight=False)
        corrected = open_corrections(config, cache)
        learn_tokenizers(config, readers, start.tokenizers if start else None, corrected, console).save(config.folder)
    wait_for_all("tokenizers")
    tokenizers, encoder = open_tokenizers(config)
    if start is not None:
        check_same_model(config, start.config)
        check_same_encoder(config, start, encoder)
    visual = tokenizers.visual
    if isinstance(visual, FeatureStore):
        store_features(config, visual, console)
    image = NO_IMAGE if visual is None else (visual.empty.shape[1:], str(visual.empty.dtype))
    spec = batch_spec(config, tokenizers.model_spec(), *image)
    sources = open_sources(config, tokenizers, readers, open_corrections(config, cache))
    return Prepared(
        tokenizers=tokenizers,
        batch_spec=spec,
        iterator=open_batches(config, tokenizers, spec, sources),
        sources={source.name: source.weight for source in sources},
        encoder=encoder,
        start=None if start is None else fitted(start, tokenizers.model_spec(), console),
    )


def check_documents(config: Config, console: Console) -> None:
    """Whether one's own documents can be read: where their images begin and end or, with `data.check`, all of them.

    Raises:
        DocumentError: they can't, or more of them than may be left out.
        ValueError: there are none to check.
    """
    own, check = config.data.documents, config.data.check
    if own.path is None:
        if check:
            raise ValueError(
                "data.check reads documents of one's own, and data.documents.path names none: leave one out, or set the other"
            )
        return

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    if check:
        say(f"reading every image of {own.path} ...")
    opened = open_documents(own.path, own.unreadable, say, whole=check)
    if check:
        say(f"{len(opened) - len(opened.left_out):,} of {len(opened):,} documents can be read")
    if not own.weight:
        say(f"note: nothing but text pieces is learnt from {own.path}: data.documents.weight is 0")


def check_same_encoder(config: Config, start: Generalist, encoder: VisionEncoder | None) -> None:
    """Whether a run's frozen encoder is that of the weights that it begins with, where both have one.

    Raises:
        ValueError: it is another, or prepares images otherwise.
    """
    if start.encoder is not None and encoder is not None and encoder.fingerprint != start.encoder.fingerprint:
        raise ValueError(
            f"training.start: {config.training.start} has learnt from another encoder than model.vision.encoder = "
            f"{config.model.vision.encoder} (size {config.model.vision.size}): leave out these settings, which are then those "
            "of the weights"
        )


def open_readers(config: Config, cache: EpisodeCache) -> dict[str, dict[Task, EpisodeReader]]:
    """The demonstrations of every task that takes part, by suite."""
    return {
        suite: {task: EpisodeReader(episodes_folder(config, task), cache, task.instruction) for task in several}
        for suite, several in suite_tasks(config).items()
    }


def open_corrections(config: Config, cache: EpisodeCache) -> dict[str, list[tuple[Task, EpisodeReader]]]:
    """The corrected play of every task that takes part, by suite."""
    return {
        suite: [(task, EpisodeReader(folder, cache, task.instruction)) for task, folder in several]
        for suite, several in correction_folders(config).items()
    }


def open_tokenizers(config: Config) -> tuple[Tokenizers, VisionEncoder | None]:
    """The run's tokenizers, and the frozen encoder where there is one, which or whose stored features they show images to."""
    tokenizers = Tokenizers.load(config.folder, config)
    encoder = load_encoder(config.model.vision.encoder, config.model.vision.size)
    if encoder is None:
        return tokenizers, None
    shown = FeatureStore(config.data.folder / "features", encoder) if config.data.features == "stored" else encoder
    return dataclasses.replace(tokenizers, visual=shown, channels=encoder.channels), encoder


def open_batches(config: Config, tokenizers: Tokenizers, spec: BatchSpec, sources: list[Source]) -> BatchIterator:
    """This process's shards of the batches: made by a thread of it, or by processes of their own."""
    own = own_shards(make_mesh(config.training), config.data.shards)
    pad, fixed = tokenizers.assembler.vocabulary.pad, jax.process_count() > 1
    if config.data.loaders:
        opening = functools.partial(open_streams, config)
        return LoadedBatches(opening, own, spec, pad, loaders=config.data.loaders, fixed=fixed)
    streams = mix(sources, seed=config.training.seed, own=own, shards=config.data.shards)
    return BatchIterator(streams, spec, pad, fixed=fixed)


def open_streams(config: Config, shards: Sequence[int]) -> dict[int, Draw]:
    """Some shards' streams of a run that is prepared, in a loader's process, with its part of the memory for episodes."""
    cache = EpisodeCache(max(1, config.data.cache_megabytes // config.data.loaders))
    tokenizers, _ = open_tokenizers(config)
    sources = open_sources(config, tokenizers, open_readers(config, cache), open_corrections(config, cache))
    return mix(sources, seed=config.training.seed, own=shards, shards=config.data.shards)


def store_features(config: Config, store: FeatureStore, console: Console) -> None:
    """Computes what the store lacks of the features of every image that training can show."""
    counts = [one.variants for one in (config.data.emoji, config.data.fewshot) if one.weight > 0]
    if counts:
        shown, variants = drawings("train"), max(counts)
        images = (variant(drawing, number) for drawing in shown for number in range(variants))
        store.ensure(images, len(shown) * variants, console)


def learn_tokenizers(
    config: Config,
    readers: Mapping[str, Mapping[Task, EpisodeReader]],
    start: Tokenizers | None = None,
    corrected: Mapping[str, Sequence[tuple[Task, EpisodeReader]]] | None = None,
    console: Console | None = None,
) -> Tokenizers:
    """Text pieces from the run's own texts, or a pretrained trunk's; layouts from the environments' spaces and what was recorded.
    Those of the weights to begin with, if there are any, stay as they are, but that layouts which this run trains are acted in as
    this run trains them. What is lost in a layout's tokens is printed, and what changes in how it is acted in."""
    if start is not None:
        text = start.text
    elif config.model.trunk == "none":
        text = TextTokenizer.train(text_corpus(config, readers), config.tokens.text_pieces)
    else:
        text = LanguageModel(config.model.trunk).text()
    first: dict[str, Task] = {}
    by_layout: dict[str, list[EpisodeReader]] = {}
    for several in readers.values():
        for task, reader in several.items():
            first.setdefault(task.layout, task)
            by_layout.setdefault(task.layout, []).append(reader)
    for pairs in (corrected or {}).values():
        for task, reader in pairs:
            by_layout[task.layout].append(reader)
    known = dict(start.layouts) if start is not None else {}
    spaces = {name: spaces_of(task) for name, task in first.items() if name not in known}
    projected = config.tokens.tensors == "projected"
    shown_as_frames = "frame" in config.tokens.images.split("+")
    offsets, width = (
        assign_offsets({name: observation for name, (observation, _) in spaces.items()}) if projected else ({}, 0)
    )
    if start is not None:  # new layouts' columns follow those that are there
        offsets = {name: offset + start.projection_width for name, offset in offsets.items()}
        width += start.projection_width
    layouts = known
    for name, recorded in by_layout.items():
        is_new = name in spaces
        observation, action = spaces[name] if is_new else (known[name].observation.space, known[name].action.space)
        found = sample(recorded, observation, action, config.model.frame_size if is_new and shown_as_frames else None)
        lines = []
        if is_new:
            layouts[name] = fit_layout(config, name, observation, action, offsets.get(name, 0), text, found)
        else:  # its windows are this run's from now on, and other ones it would not know
            acting = config.data.suite_of(name).acting
            lines = acting_changes(known[name], acting)
            layouts[name] = dataclasses.replace(known[name], acting=acting)
        if console is not None:
            for line in [*lines, *losses(layouts[name], found)]:
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    return Tokenizers(config=config, text=text, layouts=layouts, projection_width=width)


def acting_changes(layout: TaskLayout, acting: Acting) -> list[str]:
    """What a layout of `training.start` that this run trains is acted in with from now on, one line for each change."""
    before, after = layout.acting.to_json(), acting.to_json()
    return [
        f"{layout.name}: acts with {name} = {after[name]} from now on; training.start had {before[name]}"
        for name in before
        if before[name] != after[name]
    ]


def text_corpus(config: Config, readers: Mapping[str, Mapping[Task, EpisodeReader]]) -> list[str]:
    """Instructions, names of drawings, a part of the prose and of one's own documents."""
    instructions = [
        reader[index].instruction
        for several in readers.values()
        for reader in several.values()
        for index in spread(len(reader), INSTRUCTIONS).tolist()
    ]
    named = training_texts() if config.data.emoji.weight > 0 else []
    written = [document.text for document in documents(config)]
    own = Documents(config.data.documents.path, checked=True).texts() if config.data.documents.path is not None else []
    return [
        *instructions,
        *named,
        "\n".join(own)[:TEXT_TRAINING_CHARACTERS],
        "\n".join(written)[:TEXT_TRAINING_CHARACTERS],
    ]


def documents(config: Config) -> list:
    """The training texts; none without prose."""
    return (
        prose(config.data.folder / "prose", "train", config.data.prose.megabytes)
        if config.data.prose.weight > 0
        else []
    )


def open_sources(
    config: Config,
    tokenizers: Tokenizers,
    readers: Mapping[str, Mapping[Task, EpisodeReader]],
    corrected: Mapping[str, Sequence[tuple[Task, EpisodeReader]]],
) -> list[Source]:
    """Every source of the mixture, in a fixed order. Corrected play is no demonstration: nothing is prompted with it."""
    assembler, data = tokenizers.assembler, config.data

    def window(task: Task, reader: EpisodeReader, control: ControlConfig, *, prompts: bool = True) -> ControlExamples:
        return ControlExamples(
            reader=reader,
            layout=tokenizers.layouts[task.layout],
            assembler=assembler,
            steps=control.steps,
            hide_actions=control.hide_actions,
            prompt_fraction=control.prompt_fraction if prompts else 0.0,
            prompt_steps=control.prompt_steps,
            prompt_demonstrations=control.prompt_demonstrations,
            length=data.length,
            shift=control.shift,
            recast=task.recast if control.recast else None,
        )

    sources = [
        Source(
            name=suite,
            weight=data.control()[suite].weight,
            parts=[
                *(window(task, reader, data.control()[suite]) for task, reader in several.items()),
                *(
                    window(task, reader, data.control()[suite], prompts=False)
                    for task, reader in corrected.get(suite, [])
                ),
            ],
        )
        for suite, several in readers.items()
    ]
    if data.emoji.weight > 0:
        shown = EmojiExamples(drawings=drawings("train"), assembler=assembler, variants=data.emoji.variants)
        sources.append(Source(name="emoji", weight=data.emoji.weight, parts=[shown]))
    if data.fewshot.weight > 0:
        few = data.fewshot
        bound = FewShotExamples(
            assembler=assembler, length=data.length, images=few.images, ways=few.ways, variants=few.variants
        )
        sources.append(Source(name="fewshot", weight=few.weight, parts=[bound]))
    if data.prose.weight > 0:
        eos = np.array([assembler.vocabulary.eos], np.int32)
        ids = np.concatenate([part for one in documents(config) for part in (tokenizers.text.encode(one.text), eos)])
        written = TextExamples(ids=ids, length=data.length - 1, assembler=assembler)
        sources.append(Source(name="prose", weight=data.prose.weight, parts=[written]))
    if data.documents.weight > 0 and data.documents.path is not None:
        own = DocumentExamples(
            documents=Documents(data.documents.path, data.documents.unreadable, checked=True),
            assembler=assembler,
            length=data.length,
            images=data.documents.images,
            next_probability=data.documents.next_probability,
        )
        sources.append(Source(name="documents", weight=data.documents.weight, parts=[own]))
    if not sources:
        raise ValueError(NO_SOURCE)
    return sources
