"""What a part of an evaluation is: one object that computes, names its section of the results, checks it and shows it."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from generalist.config.run import Config
from generalist.data.source import Source
from generalist.eval.report.charts import element, table
from generalist.eval.results.scores import Estimate

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

Results = Mapping[str, Any]
"""A whole results file: the manifest, and a section for each part."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A piece of a part that is computed, kept and repeated by itself."""

    part: str
    key: str
    """Of the part's jobs: a suite, a split, a text."""
    settings: Mapping[str, Any]
    """What the result depends on besides the weights, as JSON values: with other settings it is computed anew."""
    compute: Callable[[Progress], Any]
    """Shows its progress; returns JSON values."""

    @property
    def name(self) -> str:
        """How files, messages and failures call it: `control-babyai`."""
        return f"{self.part}-{self.key}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table on the screen."""

    label: str
    value: str
    middle: str = ""
    """The interquartile mean, where there are several tasks."""
    against: str = ""
    """What the value is to be compared with: chance, a baseline."""
    source: str = ""
    """What it was measured on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """What a report draws on besides the results file."""

    folder: Path | None = None
    """The run's folder, with earlier evaluations."""
    clips: Callable[[Sequence[str]], Mapping[str, bytes | str]] = lambda tasks: {}
    """Plays tasks, by name: an animated WebP each, or why there is none."""


class Part(abc.ABC):
    """A part of an evaluation. `generalist.eval.parts.registry` holds them in order; nothing else names one.

    A part needs a name, a title, jobs and numbers; every other method has a default that follows from those.
    """

    name: ClassVar[str]
    """Of its section in the results file."""
    title: ClassVar[str]
    """On the page."""
    seeds: ClassVar[Mapping[str, int]] = {}
    """What is drawn with which seed, for the manifest."""

    @abc.abstractmethod
    def jobs(self, generalist: "Generalist") -> list[Job]:
        """What is computed for these weights by their settings; nothing where the part does not apply."""

    @abc.abstractmethod
    def numbers(self, results: Results) -> dict[str, Estimate]:
        """The section's main numbers with their intervals, by what they measure."""

    def sources(self, config: Config) -> dict[str, Source]:
        """The sources that take part and say that this part belongs to them, by name."""
        return {name: one for name, one in config.data.taking_part.items() if self.name in one.evaluation_parts}

    def prepare(self, config: Config) -> None:  # noqa: B027 - most parts have nothing to look at
        """Looks at what the settings name, before anything is trained.

        Raises:
            ValueError, OSError, ImportError: the part could not be computed; the message names the setting.
        """

    def section(self, generalist: "Generalist", done: Mapping[str, Any]) -> Any:
        """What stands in the results file.

        Args:
            done: results of the jobs that succeeded, by their keys; at least one.
        """
        return dict(done)

    def check(self, results: Results) -> None:  # noqa: B027 - not every section can be computed again
        """Computes again what can be computed from the file.

        Raises:
            ValueError: the first number that does not fit, by its name.
            KeyError, TypeError: the section lacks something.
        """

    def headline(self, results: Results) -> str | None:
        """The one sentence for the top of the report and of the screen, where the part has one."""
        return None

    def rows(self, results: Results) -> list[Row]:
        """Its lines of the table on the screen."""
        return [Row(label=label, value=str(number)) for label, number in self.numbers(results).items()]

    def show(self, results: Results, console: Console) -> None:  # noqa: B027 - the rows of the table may be all
        """What is printed below the table."""

    def page(self, results: Results, beside: Beside) -> list[Element]:
        """Its section of the HTML page, the heading included."""
        rows = [[label, str(number)] for label, number in self.numbers(results).items()]
        return [element("h2", self.title), table(("", "value"), rows)]

    def compare(self, before: Results, after: Results, console: Console) -> None:
        """Two files that both have the section, A and B, on the screen."""
        old, new = self.numbers(before), self.numbers(after)
        if both := [label for label in old if label in new]:
            shown = Table(self.title, "A", "B", title="with 95% intervals", title_justify="left")
            for label in both:
                shown.add_row(label, str(old[label]), str(new[label]))
            console.print(shown)
