"""Where training examples come from and how they are packed: the mixture of named sources, and the sizes of a batch."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from generalist.config.plain import from_plain
from generalist.data import sources as coming
from generalist.data.source import KINDS, Source, settings_of
from generalist.data.sources.control import ControlSource

NO_SOURCE = "no source takes part: give at least one of data.*.weight a value above 0"


def mixed(**chosen: Source) -> dict[str, Source]:
    """Every registered source with its default settings, in the registry's order, some replaced by others of their names."""
    assert coming.COMING  # whose import registers them
    return {name: kind() for name, kind in KINDS.items()} | chosen


def ordered(names: Iterable[str]) -> list[str]:
    """Names of sources in the registry's order, then those of other names: for settings that were stored without an order."""
    known = list(KINDS)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how they are packed."""

    folder: Path = Path("data")
    """Recordings and texts are kept here and reused by every run."""
    workers: int | None = None
    """Processes that record and evaluate; None takes one per core."""
    sources: Annotated[dict[str, Source], tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=mixed,
        metadata={"entries": lambda *entry: read_source(*entry), "order": lambda names: ordered(names)},
    )
    """The mixture, in order; on the command line and in files each by its name, as `data.NAME`."""
    mixture: Path | None = None
    """A YAML file with the whole mixture instead of the preset's: names of sources with their settings (docs/data.md)."""
    only: tuple[str, ...] = ()
    """Names of the sources that take part; all others are left out. None: every source with a weight above 0."""
    dagger: tuple[Path, ...] = ()
    """Folders that `generalist dagger` wrote: the experts' answers in the weights' own play, learnt from as well."""
    check: bool = False
    """Read all of your own documents with their images, whole, before anything is trained, and name at once all that can't be
    read."""
    rows: int = 14
    """Rows of a batch."""
    length: int = 128
    """Positions of a row."""
    tensors: int = 1280
    """Projected tensors a batch has room for."""
    frames: int = 208
    """Frames a batch has room for."""
    patches: int = 0
    """Image patches a batch has room for."""
    images: int = 16
    """Images for the frozen encoder that a batch has room for."""
    row_images: int = 8
    """Those that one of its rows has room for."""
    shards: int = 1
    """Equal pieces that a batch is made of, each from a stream of its own; processes share them out, and the batches are the same
    for any number of processes. With many devices: a multiple of data axis × fsdp axis × micro-batches."""
    loaders: int = 0
    """Processes that make the batches, each some of this process's shards; 0: a thread of the training process does, which two
    cores need and which a GPU outruns."""
    features: Literal["computed", "stored"] = "computed"
    """A frozen encoder's features: computed in every step; or once, and kept in the data folder, for images that come again."""
    cache_megabytes: int = 1024
    """Memory for decoded episodes."""

    @property
    def taking_part(self) -> dict[str, Source]:
        """The sources that are learnt from, by name, in the order of the mixture."""
        return {
            name: source
            for name, source in self.sources.items()
            if source.takes_part and (not self.only or name in self.only)
        }

    def control(self) -> dict[str, ControlSource]:
        """Those of them that are control tasks."""
        return {name: source for name, source in self.taking_part.items() if isinstance(source, ControlSource)}

    def suite_of(self, layout: str) -> ControlSource:
        """The source that a layout's tasks belong to, by the first part of its name.

        Raises:
            ValueError: there is none.
        """
        known = [*self.control().values(), *self.sources.values()]
        found = next((one for one in known if isinstance(one, ControlSource) and one.has_layout(layout)), None)
        if found is None:
            raise ValueError(
                f"the layout {layout!r} belongs to no source of control tasks: there are {', '.join(self.sources)}"
            )
        return found

    def with_sources(self, **changed: Source) -> "DataConfig":
        """The same with other settings of some sources."""
        return dataclasses.replace(self, sources=self.sources | changed)

    def __post_init__(self) -> None:
        fields = {field.name for field in dataclasses.fields(self)}
        for name, source in self.sources.items():
            if name in fields:
                raise ValueError(f"a source can't be called {name}, which is a setting of data: give it another name")
            if source.weight < 0:
                raise ValueError(f"data.{name}.weight must not be negative, got {source.weight}")
        for name in self.only:
            if name not in self.sources:
                raise ValueError(f"data.only: there is no source {name!r}, only {', '.join(self.sources)}")
            if not self.sources[name].takes_part:
                raise ValueError(
                    f"data.only names {name}, which takes no part: give data.{name}.weight a value above 0, and name its files "
                    "if it reads some"
                )
        for name in ("rows", "length", "shards", "cache_megabytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tensors", "frames", "patches", "images", "row_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must not be negative, got {getattr(self, name)}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"data.workers must be at least 1, got {self.workers}; left out, it is one per core")
        if self.loaders < 0:
            raise ValueError(f"data.loaders must not be negative, got {self.loaders}; 0 makes batches in a thread")
        if self.loaders > self.shards:
            raise ValueError(
                f"data.loaders = {self.loaders} processes would share data.shards = {self.shards}: each needs a shard at least; "
                "raise data.shards (and data.rows with it), or take fewer loaders"
            )


def read_source(name: str, stored: Any) -> Source:
    """A source from its settings as JSON or YAML values; `kind` says which one it is, unless its name does.

    Raises:
        ValueError: there is no such kind, or a setting is unknown or of another type.
    """
    kind, settings = settings_of(name, stored)
    return from_plain(kind, settings, f"data.{name}")


def read_mixture(path: Path) -> dict[str, Source]:
    """The mixture of a YAML file: the names of sources with their settings, in their order.

        metaworld: {weight: 0.5, tasks: "door-*"}
        notes: {kind: documents, path: notes.jsonl, weight: 0.2}

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mixture; the message names the file and what is wrong.
    """
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(stored, Mapping) or not stored:
        raise ValueError(f"{path} must have the names of sources with their settings, got {stored!r:.60}")
    try:
        return {str(name): read_source(str(name), settings or {}) for name, settings in stored.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
