"""From settings to a stream of batches: tokenizers, frozen encoder, sources of the mixture."""

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
    """The sources and their weights in the loss, in the order of the batches' `source` ids."""
    encoder: VisionEncoder | None = None
    """The frozen encoder; None if the model has none."""
    start: Mapping[str, Any] | None = None
    """Parameters to begin with, by their paths; None: random ones, or those of a checkpoint."""


def prepare(config: Config, console: Console, start: Generalist | None = None) -> Prepared:
    """Opens everything that a run reads. Learns its tokenizers, unless they are in the run's folder already.

    Args:
        start: the weights of `training.start`, if they are open already.

    Raises:
        ValueError: a setting does not fit the others, or what it names is damaged.
        FileNotFoundError: something that a setting names is missing.
    """
    data = stored(config)
    if start is None and config.training.start and not has_begun(config.folder, config.training.checkpoints):
        start = Generalist.load(config.training.start)
    # One process learns them, and all read the same files.
    if is_first() and not (config.folder / "config.json").exists():
        console.print("learning the tokenizers ...", highlight=False)
        learn_tokenizers(config, data, start.tokenizers if start else None, console).save(config.folder)
    wait_for_all("tokenizers")
    tokenizers, encoder = open_tokenizers(config)
    if start is not None:
        check_same_model(config, start.config)
        check_same_encoder(config, start, encoder)
    visual = tokenizers.visual
    # Now, so that every source finds the features of its images.
    if isinstance(visual, FeatureStore):
        store_features(config, visual, console)
    image = NO_IMAGE if visual is None else (visual.empty.shape[1:], str(visual.empty.dtype))
    spec = batch_spec(config, tokenizers.model_spec(), *image)
    sources = open_sources(config, tokenizers, data)
    return Prepared(
        tokenizers=tokenizers,
        batch_spec=spec,
        iterator=open_batches(config, tokenizers, spec, sources),
        sources=config.source_weights,
        encoder=encoder,
        start=None if start is None else fitted(start, tokenizers.model_spec(), console),
    )


def check_same_encoder(config: Config, start: Generalist, encoder: VisionEncoder | None) -> None:
    """Checks that a run's frozen encoder is that of the weights it begins with, if both have one.

    Raises:
        ValueError: it is another encoder, or prepares images differently.
    """
    # By fingerprint: the same encoder may have been named by another folder.
    if start.encoder is not None and encoder is not None and encoder.fingerprint != start.encoder.fingerprint:
        raise ValueError(
            f"training.start: {config.training.start} was trained with another encoder than model.vision.encoder = "
            f"{config.model.vision.encoder} (size {config.model.vision.size}): leave these settings out, so that they are those "
            "of the weights"
        )


def open_tokenizers(config: Config) -> tuple[Tokenizers, VisionEncoder | None]:
    """The run's tokenizers, and its frozen encoder or None. With `data.features = stored` the tokenizers read stored features."""
    return with_encoder(Tokenizers.load(config.folder, config), config)


def with_encoder(tokenizers: Tokenizers, config: Config) -> tuple[Tokenizers, VisionEncoder | None]:
    """Tokenizers that show images to the frozen encoder of the settings, or its stored features, where there is one."""
    encoder = load_encoder(config.model.vision.encoder, config.model.vision.size)
    if encoder is None:
        return tokenizers, None
    shown = FeatureStore(config.data.folder / "features", encoder) if config.data.features == "stored" else encoder
    return dataclasses.replace(tokenizers, visual=shown, channels=encoder.channels), encoder


def open_batches(config: Config, tokenizers: Tokenizers, spec: BatchSpec, sources: list[Opened]) -> BatchIterator:
    """This process's shards of the batches, made by a thread of this process or by `data.loaders` other processes."""
    own = own_shards(make_mesh(config.training), config.data.shards)
    # Several processes must agree on the shapes of a batch without asking each other, so all payloads are always there.
    pad, fixed = tokenizers.assembler.vocabulary.pad, jax.process_count() > 1
    if config.data.loaders:
        opening = functools.partial(open_streams, config)
        return LoadedBatches(opening, own, spec, pad, loaders=config.data.loaders, fixed=fixed)
    streams = mix(sources, seed=config.training.seed, own=own, shards=config.data.shards)
    return BatchIterator(streams, spec, pad, fixed=fixed)


def open_streams(config: Config, shards: Sequence[int]) -> dict[int, Draw]:
    """The streams of some shards of a prepared run; called in a loader's process."""
    # Each loader has its own cache of decoded episodes: together they use what the setting allows.
    data = stored(config, EpisodeCache(max(1, config.data.cache_megabytes // config.data.loaders)))
    tokenizers, _ = open_tokenizers(config)
    sources = open_sources(config, tokenizers, data)
    return mix(sources, seed=config.training.seed, own=shards, shards=config.data.shards)


def store_features(config: Config, store: FeatureStore, console: Console) -> None:
    """Computes the features of all images of training that the store lacks."""
    found = [source.fixed_images() for source in config.data.taking_part.values()]
    for images in dict.fromkeys(one for one in found if one is not None):  # two sources may show the same images
        store.ensure(iter(images), len(images), console)


def open_sources(config: Config, tokenizers: Tokenizers, data: Stored) -> list[Opened]:
    """Every source that takes part, in the order of the mixture.

    Raises:
        ValueError: no source takes part, or one has no examples.
    """
    reading = Reading(assembler=tokenizers.assembler, layouts=tokenizers.layouts, length=config.data.length)
    opened = [
        Opened(name=name, weight=source.weight, parts=source.open(data, reading))
        for name, source in config.data.taking_part.items()
    ]
    if not opened:
        raise ValueError(NO_SOURCE)
    return opened
