"""A source of training examples: one settings class defines everything that a run does with it.

Settings, command line, plan, preparation, training and evaluation walk the mixture's list of named sources, and none of them
names a particular source. A new source is one file with a subclass of `Source` that calls `register` (docs/extend.md).

Dimension key: H height, W width of an image.
"""

import abc
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from generalist.data.episodes import EpisodeCache, EpisodeReader, Episodes
from generalist.data.examples import Examples
from generalist.envs.task import Task
from generalist.tokenizers.locations import BINS
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout

REQUIRED = "required"
"""The placeholder in a preset for a file or folder that its user must name."""

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
    """Open data sets: opening one takes a while, and several stages of a run read the same ones."""

    def reader(self, folder: Path, instruction: str) -> Episodes:
        """The episodes of a data set; the given instruction serves episodes that store none.

        Raises:
            FileNotFoundError: there is no data set in the folder.
            ValueError: it is damaged, or not RLDS.
        """
        # By folder alone: a folder belongs to one task, so the instruction of a second call is that of the first.
        if folder not in self.readers:
            self.readers[folder] = EpisodeReader(folder, self.cache, instruction)
        return self.readers[folder]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What turns a source's values into tokens, and the length of a row."""

    assembler: Assembler
    layouts: Mapping[str, TaskLayout]
    length: int
    """Positions per row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ways:
    """How images enter the run's model: what a source's settings must be compatible with."""

    images: tuple[str, ...]
    """Ways in which observed images enter: patches, frame, encoder."""
    documents: tuple[str, ...]
    """The same for the images of documents."""
    row_images: int
    """Maximum number of images for the frozen encoder per row."""
    features: str
    """Whether the frozen encoder's features are `computed` or `stored`; storing them needs a fixed set of images."""
    codes: bool = False
    """Whether there is an image tokenizer."""
    locations: int = 0
    """Number of ids for places in an image."""


@runtime_checkable
class FixedImages(Protocol):
    """A fixed set of images that a source shows repeatedly, so that a frozen encoder's features can be stored. Sets that compare
    equal hold the same images."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]: ...

    # Two sources may show the same set: its features are then computed once.
    def __hash__(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """A named source of the mixture."""

    weight: float = 1.0
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    loss_weight: float = 1.0
    """Factor of its targets' losses: above 1 it counts for more in the loss than its tokens, or its `weight`, would."""

    kind: ClassVar[str]
    """The name under which it is registered, which is also its name in a mixture unless another one is given."""

    @property
    def takes_part(self) -> bool:
        """Whether training draws examples from it."""
        return self.weight > 0

    @property
    def missing(self) -> str | None:
        """The option that a preset leaves to its user and that is still unset, as it continues `--data.NAME.`, with a placeholder
        and an explanation: `path FILE (texts and images)`; None if nothing is missing."""
        return None

    # The optional hooks below are not abstract: a source overrides those that concern it.

    def check_settings(self, name: str, ways: Ways) -> None:  # noqa: B027 - most sources fit every run
        """Checks that the settings fit those of the run; called for sources that take part.

        Args:
            name: in the mixture.

        Raises:
            ValueError: they do not; the message names the setting and the remedy.
        """

    def check_cells(self, cells: int, length: int) -> None:  # noqa: B027 - most sources draw nothing
        """Checks that an image as codes fits a row; called for sources that take part, where there is an image tokenizer.

        Args:
            cells: codes per image.
            length: positions per row.

        Raises:
            ValueError: it does not; the message names the setting and the remedy.
        """

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:  # noqa: B027 - most name nothing
        """Opens what the settings name, before anything is recorded; also called for sources that are left out.

        Args:
            name: in the mixture.
            whole: reads everything, such as every image.

        Raises:
            ValueError, OSError, ImportError: something is missing or damaged.
        """

    @property
    def draws(self) -> bool:
        """Whether its examples have the codes of images, so that an image tokenizer is learned for them."""
        return False

    @property
    def has_own_files(self) -> bool:
        """Whether the source reads the user's own files, which `data.check` can read whole."""
        return False

    def task_list(self) -> list[Task]:
        """The tasks whose episodes it shows, and which an evaluation plays.

        Raises:
            ValueError, FileNotFoundError: one can't be found.
        """
        return []

    def recordings(self) -> list[tuple[Task, int]]:
        """Tasks whose experts must be recorded for it, with the number of episodes of each."""
        return []

    def open_demonstrations(self, stored: Stored) -> dict[Task, Episodes]:
        """The recorded episodes of each of its tasks."""
        return {}

    # A list of pairs, not a dictionary: a task may have corrections in several folders.
    def open_corrections(self, stored: Stored) -> list[tuple[Task, Episodes]]:
        """The weights' own play of its tasks with the expert's answers: trained on, but never shown as a demonstration."""
        return []

    def texts(self, stored: Stored) -> Iterable[str]:
        """Texts that the text tokenizer is trained on."""
        return []

    def fixed_images(self) -> FixedImages | None:
        """All images that it can show, if they are a fixed set."""
        return None

    @abc.abstractmethod
    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """Its training examples, one entry per part, such as a task. Parts share the source's tokens (see `mixture.Opened`)."""

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """Names of the parts of an evaluation that belong to it (generalist/eval/parts)."""
        return ()


def check_locations(name: str, locations: int) -> None:
    """Checks that a source that points finds ids for places.

    Args:
        name: of the source in the mixture.
        locations: number of ids for places.

    Raises:
        ValueError: there are none, or fewer than places have bins.
    """
    if locations < BINS:
        raise ValueError(
            f"data.{name} points with ids for {BINS} places, and tokens.locations is {locations}: set it to {BINS}, or "
            f"leave data.{name} out (weights of training.start keep their number of ids)"
        )


KINDS: dict[str, type[Source]] = {}
"""Every registered source, in the default order of a mixture."""


def register(kind: str) -> Callable[[type[Source]], type[Source]]:
    """Registers a source under a name: `--data.NAME` on the command line, and `kind` in a mixture's file.

    Raises:
        ValueError: another source has the name.
    """

    def add(source: type[Source]) -> type[Source]:
        known = KINDS.get(kind)
        # By name, not identity: a module that is loaded again makes another class of the same name.
        if known is not None and known.__qualname__ != source.__qualname__:
            raise ValueError(f"two sources are called {kind}: {known.__module__} and {source.__module__}")
        source.kind = kind
        KINDS[kind] = source
        return source

    return add


def settings_of(name: str, stored: Any) -> tuple[type[Source], dict[str, Any]]:
    """The class and the settings of a source, as stored in a mixture's file or a run's settings.

    Args:
        name: in the mixture; also the kind, unless the settings have a `kind`.
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
