"""The source that somebody wants to look at: a folder of their own, or a source of a mixture by its name."""

import dataclasses
from pathlib import Path

from rich.console import Console

from generalist.config.run import Config, check_complete
from generalist.data.formats import detect
from generalist.data.formats.detect import format_of
from generalist.data.formats.detect_documents import FORMATS
from generalist.data.formats.places import place
from generalist.data.formats.rlds import Rlds
from generalist.data.formats.tfds_documents import TfdsDocuments
from generalist.data.formats.tfds_folder import open_tfds
from generalist.data.source import Source, Stored
from generalist.data.sources.documents import OwnDocuments
from generalist.data.sources.recorded import Recorded
from generalist.experiment.learn import learn_tokenizers
from generalist.experiment.prepare import with_encoder
from generalist.run.drawn import is_to_be_learned, tokenizer_folder, with_image_tokenizer
from generalist.run.named_weights import weights_settings
from generalist.run.tasks import record_missing, stored
from generalist.run.tokenizers import Tokenizers
from generalist.run.trunk import with_trunk

WEIGHT = 0.1
"""Of a source that takes no part in the mixture: that of a user's own data by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """One source, with the settings of a run that learns from it."""

    name: str
    """In the mixture."""
    config: Config
    """Settings whose mixture has this source alone."""
    share: float
    """Of the tokens of a batch that are this source's, beside the other sources of the mixture."""
    others: tuple[str, ...]
    """The other sources that take part."""
    run: Path | None = None
    """Folder of the run whose tokenizers are used; None: they are learnt from this source."""

    @property
    def source(self) -> Source:
        """Its settings."""
        return self.config.data.sources[self.name]

    def stored(self) -> Stored:
        """Where its data are."""
        return stored(self.config)

    def tokenizers(self, data: Stored) -> Tokenizers:
        """The run's tokenizers; without a run, or for data that the run does not know, learnt from this source alone.

        Raises:
            ValueError: the source does not fit the settings.
            FileNotFoundError: a recording is not there.
        """
        start = None
        if self.run is not None:  # its layouts belong to sources of the whole mixture
            loaded = Tokenizers.load(self.run, weights_settings(self.run))
            start = dataclasses.replace(loaded, config=self.config)
        tasks = self.source.task_list()
        if start is None or any(task.layout not in start.layouts for task in tasks):
            start = learn_tokenizers(self.config, data, start)
        return with_encoder(start, self.config)[0]


def subject(what: str, config: Config, run: Path | None = None) -> Subject:
    """The source that is meant.

    Args:
        what: a folder or a file, also `gs://` or `s3://`; or the name of a source of the mixture.
        config: settings of a run.
        run: the folder of that run, if it is one.

    Raises:
        ValueError: it is neither, or the settings lack something that the source needs.
        FileNotFoundError: it is a folder's name, and there is none.
    """
    if not what.strip():
        raise ValueError(f"SOURCE is {what!r}: give a folder, a file, or the name of a source (. for this folder)")
    data = config.data
    # A folder that is called as a source is meant as the folder: it is there, and can be seen.
    name = what if what in data.sources and not Path(what).exists() else ""
    if not name:
        name, source = _own(what, config)
    else:
        source = data.sources[name]
    # A source without a weight is drawn from never.
    if not source.weight:
        source = dataclasses.replace(source, weight=WEIGHT)
    # Such as own data without a path.
    if not source.takes_part or source.missing:
        raise ValueError(f"{name} names no data: give its folder or file instead, or --data.{name}.* settings that do")
    others = {other: one for other, one in data.taking_part.items() if other != name and not one.missing}
    share = source.weight / (source.weight + sum(one.weight for one in others.values()))
    # Stored features have no pixels to show.
    alone = dataclasses.replace(data, sources={name: source}, only=(), mixture=None, features="computed", loaders=0)
    config = dataclasses.replace(config, data=alone, training=config.training.without_start())
    check_complete(config)
    # A run's own settings have the sizes of its trunk already.
    if run is None:
        _check_codes(name, config)
        config = with_image_tokenizer(with_trunk(config))
    return Subject(name=name, config=config, share=share, others=tuple(others), run=run)


def _check_codes(name: str, config: Config) -> None:
    """Checks that the image tokenizer is there if the source draws.

    Raises:
        ValueError: it has yet to be learned.
    """
    if is_to_be_learned(config):
        raise ValueError(
            f"{name} has no codes yet, since {tokenizer_folder(config)} is not there: train it with `train.py image_tokenizer`, "
            "or name another one with --tokens.image-tokenizer"
        )


def _own(what: str, config: Config) -> tuple[str, Source]:
    """The source that reads a folder or a file, with the settings that a source of that kind has in the mixture; one that reads
    this very place is preferred.

    Raises:
        ValueError, FileNotFoundError: there is nothing.
    """
    if not place(what).exists():
        known = ", ".join(config.data.sources)
        raise FileNotFoundError(
            f"there is no folder or file {what}, and no source of that name; the mixture has {known}"
        )
    kind: type[Recorded] | type[OwnDocuments] = Recorded if _is_episodes(what) else OwnDocuments
    several = {name: source for name, source in config.data.sources.items() if isinstance(source, kind)}
    # A run's own source, whose name its tokenizers know.
    same = next((name for name, source in several.items() if source.path == what), None)
    name = same or next(iter(several), kind.kind)
    return name, dataclasses.replace(several.get(name, kind()), path=what)


def _is_episodes(what: str) -> bool:
    """Whether a folder or file has episodes, and no documents.

    Raises:
        ValueError: it looks like neither.
    """
    where = place(what)
    episodes = format_of(where)
    documents = next((kind for kind in FORMATS if kind.matches(where)), None)
    if episodes is None and documents is None:
        known = ", ".join([*(kind.format for kind in detect.FORMATS), *(kind.format for kind in FORMATS)])
        raise ValueError(f"{what} is no data that is known ({known}): give the folder or the file of a data set")
    # TFDS lays out both: only the features say whether records are episodes.
    if episodes is Rlds and documents is TfdsDocuments:
        return "steps" in open_tfds(where).features
    return episodes is not None


def record(about: Subject, console: Console) -> None:
    """Has the experts play the episodes of a suite that are not recorded yet."""
    record_missing(about.config, console)
