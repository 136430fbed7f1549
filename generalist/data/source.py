"""A source of training examples: one settings class knows all that a run does with it.

Settings, command line, plan, preparation, training and evaluation walk the mixture's list of named sources, and none of them
names one. A new source is one file with a subclass of `Source` that calls `register` (docs/extend.md).
"""

import abc
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from generalist.data.episodes import EpisodeCache, EpisodeReader, Episodes
from generalist.data.examples import Examples
from generalist.envs.task import Task
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout

REQUIRED = "required"
"""What stands in a preset for a file or folder that its user must name."""

Say = Callable[[str], None]
"""Prints a line for the user."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """Where a run's data are kept, and the memory that readers share."""

    folder: Path
    """Recordings and texts, reused by every run."""
    corrections: tuple[Path, ...]
    """Folders that `generalist dagger` wrote."""
    cache: EpisodeCache
    readers: dict[Hashable, Episodes] = dataclasses.field(default_factory=dict)
    """Data sets that are open: opening one takes a while, and several stages of a run read it."""

    def reader(self, folder: Path, instruction: str) -> Episodes:
        """The episodes of a data set, whose own instructions stand before the given one.

        Raises:
            FileNotFoundError: there is no data set in the folder.
            ValueError: it is damaged, or no RLDS.
        """
        if folder not in self.readers:
            self.readers[folder] = EpisodeReader(folder, self.cache, instruction)
        return self.readers[folder]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What turns a source's values into tokens, and how long a row is."""

    assembler: Assembler
    layouts: Mapping[str, TaskLayout]
    length: int
    """Positions of a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ways:
    """How the run's images enter, as far as a source's settings must fit it."""

    images: tuple[str, ...]
    """Ways in which observed images enter: patches, frame, encoder."""
    documents: tuple[str, ...]
    """The same for the images of documents."""
    row_images: int
    """Images for the frozen encoder that a row has room for."""
    features: str
    """`stored` needs images that come again."""


@runtime_checkable
class FixedImages(Protocol):
    """Images that a source shows again and again, uint8 (H, W, 3) each, so that a frozen encoder's features can be stored.
    Equal values are equal images."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def __hash__(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """A named source of the mixture."""

    weight: float = 1.0
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""

    kind: ClassVar[str]
    """The name under which it is registered, which is its name in a mixture unless another one is given."""

    @property
    def takes_part(self) -> bool:
        """Whether there is anything to be learnt from it."""
        return self.weight > 0

    @property
    def missing(self) -> str | None:
        """What a preset leaves to its user and the user has not named: the rest of the option, with what it is."""
        return None

    def check_settings(self, name: str, ways: Ways) -> None:  # noqa: B027 - most sources fit every run
        """Whether the settings fit the run's; called for sources that take part.

        Args:
            name: in the mixture.

        Raises:
            ValueError: they do not; the message names the setting and the remedy.
        """

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:  # noqa: B027 - most name nothing
        """Opens what the settings name, before anything is recorded; called for sources that are left out too.

        Args:
            name: in the mixture.
            whole: reads everything, such as every image.

        Raises:
            ValueError, OSError, ImportError: something is not there, or damaged.
        """

    @property
    def has_own_files(self) -> bool:
        """Whether the source reads files of its user's that `data.check` can read whole."""
        return False

    def task_list(self) -> list[Task]:
        """The tasks whose episodes it shows, and which an evaluation plays.

        Raises:
            ValueError, FileNotFoundError: one can't be found.
        """
        return []

    def recordings(self) -> list[tuple[Task, int]]:
        """Tasks that experts must play for it, and how many episodes of each."""
        return []

    def open_demonstrations(self, stored: Stored) -> dict[Task, Episodes]:
        """The recorded episodes of each of its tasks."""
        return {}

    def open_corrections(self, stored: Stored) -> list[tuple[Task, Episodes]]:
        """Corrected play of its tasks, which teaches and is no demonstration."""
        return []

    def texts(self, stored: Stored) -> Iterable[str]:
        """Texts that the text tokenizer is learnt from."""
        return []

    def fixed_images(self) -> FixedImages | None:
        """All images that it can show, where they are a fixed set."""
        return None

    @abc.abstractmethod
    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """Its training examples; of several parts, such as tasks, each apart."""

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """Names of the parts of an evaluation that belong to it (generalist/eval/parts)."""
        return ()


KINDS: dict[str, type[Source]] = {}
"""Every registered source, in the order in which a mixture has them by default."""


def register(kind: str) -> Callable[[type[Source]], type[Source]]:
    """Makes a source known by a name: as `--data.NAME` on the command line, and as `kind` in a mixture's file.

    Raises:
        ValueError: another source has the name.
    """

    def add(source: type[Source]) -> type[Source]:
        known = KINDS.get(kind)
        if known is not None and known.__qualname__ != source.__qualname__:
            raise ValueError(f"two sources are called {kind}: {known.__module__} and {source.__module__}")
        source.kind = kind
        KINDS[kind] = source
        return source

    return add


def settings_of(name: str, stored: Any) -> tuple[type[Source], dict[str, Any]]:
    """The class and the settings of a source as a mixture's file or a run's settings have it.

    Args:
        name: in the mixture; also the kind, unless `kind` says another one.
        stored: the settings, by name.

    Raises:
        ValueError: there is no such kind.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"data.{name} must be an object with a source's settings, got {stored!r:.60}")
    kind = stored.get("kind", name)
    if kind not in KINDS:
        raise ValueError(
            f"data.{name}: there is no source of the kind {kind!r}, only {', '.join(KINDS)}: install or import what registers it"
        )
    return KINDS[kind], {key: value for key, value in stored.items() if key != "kind"}
