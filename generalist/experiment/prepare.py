"""From settings to a stream of batches: the tokenizers, the frozen encoder, the sources of the mixture."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.console import Console

from generalist.config.data import NO_SOURCE
from generalist.config.run import Config
from generalist.data.batch import BatchSpec
from generalist.data.episodes import EpisodeCache
from generalist.data.loaders import LoadedBatches
from generalist.data.mixture import Opened, mix
from generalist.data.packing import BatchIterator, Draw
from generalist.data.source import Reading, Stored
from generalist.experiment.inherit import check_same_model
from generalist.experiment.learn import learn_tokenizers
from generalist.experiment.warm_start import fitted
from generalist.inference.generalist import Generalist
from generalist.run.folder import has_begun
from generalist.run.shapes import NO_IMAGE, batch_spec
from generalist.run.tasks import stored
from generalist.run.tokenizers import Tokenizers
from generalist.training.hosts import is_first, wait_for_all
from generalist.training.sharding import make_mesh, own_shards
from generalist.vision.encoder import VisionEncoder
from generalist.vision.features import FeatureStore
from generalist.vision.load import load_encoder


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
    data = stored(config)
    if start is None and config.training.start and not has_begun(config.folder, config.training.checkpoints):
        start = Generalist.load(config.training.start)
    if is_first() and not (config.folder / "config.json").exists():
        console.print("learning the tokenizers ...", highlight=False)
        learn_tokenizers(config, data, start.tokenizers if start else None, console).save(config.folder)
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
    sources = open_sources(config, tokenizers, data)
    return Prepared(
        tokenizers=tokenizers,
        batch_spec=spec,
        iterator=open_batches(config, tokenizers, spec, sources),
        sources={source.name: source.weight for source in sources},
        encoder=encoder,
        start=None if start is None else fitted(start, tokenizers.model_spec(), console),
    )


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


def open_tokenizers(config: Config) -> tuple[Tokenizers, VisionEncoder | None]:
    """The run's tokenizers, and the frozen encoder where there is one, which or whose stored features they show images to."""
    return with_encoder(Tokenizers.load(config.folder, config), config)


def with_encoder(tokenizers: Tokenizers, config: Config) -> tuple[Tokenizers, VisionEncoder | None]:
    """Tokenizers that show images to the frozen encoder of the settings, or its stored features, where there is one."""
    encoder = load_encoder(config.model.vision.encoder, config.model.vision.size)
    if encoder is None:
        return tokenizers, None
    shown = FeatureStore(config.data.folder / "features", encoder) if config.data.features == "stored" else encoder
    return dataclasses.replace(tokenizers, visual=shown, channels=encoder.channels), encoder


def open_batches(config: Config, tokenizers: Tokenizers, spec: BatchSpec, sources: list[Opened]) -> BatchIterator:
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
    data = stored(config, EpisodeCache(max(1, config.data.cache_megabytes // config.data.loaders)))
    tokenizers, _ = open_tokenizers(config)
    sources = open_sources(config, tokenizers, data)
    return mix(sources, seed=config.training.seed, own=shards, shards=config.data.shards)


def store_features(config: Config, store: FeatureStore, console: Console) -> None:
    """Computes what the store lacks of the features of every image that training can show."""
    found = [source.fixed_images() for source in config.data.taking_part.values()]
    for images in dict.fromkeys(one for one in found if one is not None):  # two sources may show the same
        store.ensure(iter(images), len(images), console)


def open_sources(config: Config, tokenizers: Tokenizers, data: Stored) -> list[Opened]:
    """Every source that takes part, in the order of the mixture.

    Raises:
        ValueError: none does, or one has no examples.
    """
    reading = Reading(assembler=tokenizers.assembler, layouts=tokenizers.layouts, length=config.data.length)
    opened = [
        Opened(name=name, weight=source.weight, parts=source.open(data, reading))
        for name, source in config.data.taking_part.items()
    ]
    if not opened:
        raise ValueError(NO_SOURCE)
    return opened
