"""Where training examples come from and how they are packed: the mixture of named sources, and the sizes of a batch."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from generalist.config.plain import from_plain
from generalist.data import sources as coming
from generalist.data.source import KINDS, Source, settings_of
from generalist.data.sources.control import ControlSource
from generalist.data.yaml_files import load_yaml

NO_SOURCE = "no source takes part: set at least one data.*.weight above 0"


def mixed(**chosen: Source) -> dict[str, Source]:
    """Every registered source with its default settings, in the registry's order, except for those that are given.

    Args:
        chosen: sources by their names.
    """
    assert coming.COMING  # importing this module registers the sources
    return {name: kind() for name, kind in KINDS.items()} | chosen


def ordered(names: Iterable[str]) -> list[str]:
    """Names of sources in the registry's order, followed by all others: the order of settings that were stored without one."""
    known = list(KINDS)
    # Stable: names that are not registered, of sources that a mixture names differently, keep their order.
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how they are packed."""

    folder: Path = Path("data")
    """Folder of recordings and texts, which all runs share."""
    workers: int | None = None
    """Number of processes that record and evaluate. None: one per core."""
    # The entries of this dictionary are parsed, stored and shown beside the other fields (`generalist.config.plain`): a source
    # is a section of its own, such as `data.atari`, and not `data.sources.atari`.
    sources: Annotated[dict[str, Source], tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=mixed,
        metadata={"entries": lambda *entry: read_source(*entry), "order": lambda names: ordered(names)},
    )
    """The mixture: sources by their names, in order. Each is a section `data.NAME` on the command line and in files."""
    mixture: Path | None = None
    """A YAML file with a mixture that replaces the preset's: sources with their settings (docs/mixture.md)."""
    only: tuple[str, ...] = ()
    """Names of the sources to train on; all others are left out. Empty: every source with a weight above 0."""
    dagger: tuple[Path, ...] = ()
    """Folders that `generalist dagger` wrote: episodes of the weights with the experts' corrections, to train on as well."""
    check: bool = False
    """Read all of your own documents with their images before training begins, and report all that can't be read."""
    rows: int = 14
    """Rows per batch."""
    length: int = 128
    """Positions per row."""
    # Budgets of payloads: their arrays have one size in every batch, so that the step is not compiled again.
    tensors: int = 1280
    """Maximum number of projected tensors per batch."""
    frames: int = 208
    """Maximum number of frames per batch."""
    patches: int = 0
    """Maximum number of image patches per batch."""
    images: int = 16
    """Maximum number of images for the frozen encoder per batch."""
    row_images: int = 8
    """Maximum number of images per row that are read by cross-attention."""
    actions: int = 1280
    """Maximum number of parallel actions per batch (`tokens.actions`)."""
    shards: int = 1
    """Equal pieces of a batch, each packed from its own stream and made by one process.
    The batches are the same for any number of processes. With many devices: a multiple of data × fsdp axis × micro-batches."""
    loaders: int = 0
    """Processes that make this process's batches, each some of its shards.
    0: a thread of the training process makes them, which is right for two cores but too slow for a GPU."""
    features: Literal["computed", "stored"] = "computed"
    """Features of a frozen encoder: computed in every step, or once for images that come again, and stored in the data folder."""
    cache_megabytes: int = 1024
    """Memory for decoded episodes, in megabytes."""

    @property
    def taking_part(self) -> dict[str, Source]:
        """The sources that are trained on, by name, in the order of the mixture."""
        return {
            name: source
            for name, source in self.sources.items()
            if source.takes_part and (not self.only or name in self.only)
        }

    def control(self) -> dict[str, ControlSource]:
        """The sources of control tasks that are trained on, by name."""
        return {name: source for name, source in self.taking_part.items() if isinstance(source, ControlSource)}

    def suite_of(self, layout: str) -> ControlSource:
        """The source of a layout's tasks.

        Raises:
            ValueError: the mixture has no such source.
        """
        # Sources that are trained on come first: two of one suite may differ in how they act.
        known = [*self.control().values(), *self.sources.values()]
        found = next((one for one in known if isinstance(one, ControlSource) and one.has_layout(layout)), None)
        if found is None:
            raise ValueError(
                f"the layout {layout!r} belongs to no source of control tasks: there are {', '.join(self.sources)}"
            )
        return found

    def with_sources(self, **changed: Source) -> "DataConfig":
        """These settings with some sources replaced."""
        return dataclasses.replace(self, sources=self.sources | changed)

    def __post_init__(self) -> None:
        # In files, sources stand beside the fields of this class.
        fields = {field.name for field in dataclasses.fields(self)}
        for name, source in self.sources.items():
            if name in fields:
                raise ValueError(f"a source can't be named {name}, which is a setting of data: give it another name")
            if source.weight < 0:
                raise ValueError(f"data.{name}.weight must not be negative, got {source.weight}")
            if not 0 < source.loss_weight < math.inf:  # also refuses NaN
                raise ValueError(
                    f"data.{name}.loss_weight must be above 0 and finite, got {source.loss_weight}; to leave the source out, set "
                    f"data.{name}.weight to 0"
                )
        for name in self.only:
            if name not in self.sources:
                raise ValueError(f"data.only: there is no source {name!r}, only {', '.join(self.sources)}")
            if not self.sources[name].takes_part:
                raise ValueError(
                    f"data.only names {name}, which takes no part: set data.{name}.weight above 0, and name its files if it "
                    "reads some"
                )
        for name in ("rows", "length", "shards", "cache_megabytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tensors", "frames", "patches", "images", "row_images", "actions"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must not be negative, got {getattr(self, name)}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"data.workers must be at least 1, got {self.workers}; left out, it is one per core")
        if self.loaders < 0:
            raise ValueError(f"data.loaders must not be negative, got {self.loaders}; 0 makes batches in a thread")
        if self.loaders > self.shards:
            raise ValueError(
                f"data.loaders = {self.loaders} processes would share data.shards = {self.shards}, but each needs at least one: "
                "raise data.shards (and data.rows with it), or use fewer loaders"
            )


def read_source(name: str, stored: Any) -> Source:
    """A source from its settings.

    Args:
        name: of the source in the mixture; also its kind, unless the settings name another one.
        stored: JSON or YAML values.

    Raises:
        ValueError: there is no such kind, or a setting is unknown or of the wrong type.
    """
    kind, settings = settings_of(name, stored)
    return from_plain(kind, settings, f"data.{name}")


def read_mixture(path: Path) -> dict[str, Source]:
    """The mixture of a YAML file: names of sources with their settings, in the order of the file.

        metaworld: {weight: 0.5, tasks: "door-*"}
        notes: {kind: documents, path: notes.jsonl, weight: 0.2}

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file holds no valid mixture; the message names the file and the fault.
    """
    try:
        stored = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(stored, Mapping) or not stored:
        raise ValueError(f"{path} must hold names of sources with their settings, got {stored!r:.60}")
    try:
        # `prose:` without settings is None in YAML, and means the defaults.
        return {str(name): read_source(str(name), settings or {}) for name, settings in stored.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
