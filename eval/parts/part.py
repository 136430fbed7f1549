"""A part of an evaluation: one object that computes it, names its section of the results file, checks it and shows it."""

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
"""The content of a results file: the manifest, and a section for each part."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A piece of a part that is computed, kept and repeated on its own."""

    part: str
    """Name of the part."""
    key: str
    """The job among those of its part: a suite, a split, a text."""
    settings: Mapping[str, Any]
    """Everything that the result depends on besides the weights, as JSON values; with other settings it is computed again."""
    compute: Callable[[Progress], Any]
    """Computes the result, JSON values, and shows its progress."""

    @property
    def name(self) -> str:
        """Its name in files, messages and failures: `control-babyai`."""
        return f"{self.part}-{self.key}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table on the screen."""

    label: str
    value: str
    middle: str = ""
    """The interquartile mean, if there are several tasks."""
    against: str = ""
    """The value to compare with: chance, a baseline."""
    source: str = ""
    """The data that it was measured on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """Material for a report besides the results file."""

    folder: Path | None = None
    """The run's folder, with earlier evaluations."""
    clips: Callable[[Sequence[str]], Mapping[str, bytes | str]] = lambda tasks: {}
    """Plays tasks, by name: an animated WebP of each, or the reason why there is none."""


class Part(abc.ABC):
    """A part of an evaluation. `generalist.eval.parts.registry` lists them in order; no other module names one.

    A part needs a name, a title, jobs and numbers; every other method has a default based on these.
    """

    name: ClassVar[str]
    """Key of its section in the results file, and the name by which sources refer to it."""
    title: ClassVar[str]
    """Heading on the page."""
    seeds: ClassVar[Mapping[str, int]] = {}
    """Seeds by their purpose, for the manifest."""

    @abc.abstractmethod
    def jobs(self, generalist: "Generalist") -> list[Job]:
        """The jobs for these weights, according to their settings; none if the part does not apply."""

    @abc.abstractmethod
    def numbers(self, results: Results) -> dict[str, Estimate]:
        """The section's main numbers with their intervals, by label."""

    def sources(self, config: Config) -> dict[str, Source]:
        """The sources that take part and list this part in their `evaluation_parts`, by name."""
        return {name: one for name, one in config.data.taking_part.items() if self.name in one.evaluation_parts}

    def prepare(self, config: Config) -> None:  # noqa: B027 - most parts have nothing to check
        """Checks what the settings name, before anything is trained.

        Raises:
            ValueError, OSError, ImportError: the part could not be computed; the message names the setting.
        """

    def section(self, generalist: "Generalist", done: Mapping[str, Any]) -> Any:
        """Its section of the results file.

        Args:
            generalist: the weights.
            done: results of the jobs that succeeded, by their keys; at least one.
        """
        return dict(done)

    def check(self, results: Results) -> None:  # noqa: B027 - not every section can be recomputed
        """Recomputes the numbers that can be recomputed from the file.

        Raises:
            ValueError: the first number that differs, by its name.
            KeyError, TypeError: the section lacks something.
        """

    def headline(self, results: Results) -> str | None:
        """A sentence for the top of the report and the end of the output, if the part has one."""
        return None

    def rows(self, results: Results) -> list[Row]:
        """Its rows of the table on the screen."""
        return [Row(label=label, value=str(number)) for label, number in self.numbers(results).items()]

    def show(self, results: Results, console: Console) -> None:  # noqa: B027 - the rows of the table may suffice
        """Prints what the part shows below the table."""

    def page(self, results: Results, beside: Beside) -> list[Element]:
        """Its section of the HTML page, including the heading."""
        rows = [[label, str(number)] for label, number in self.numbers(results).items()]
        return [element("h2", self.title), table(("", "value"), rows)]

    def compare(self, before: Results, after: Results, console: Console) -> None:
        """Prints a comparison of two files, A and B, that both have the section."""
        # Files of other versions or settings may have other numbers: only those of both are shown.
        old, new = self.numbers(before), self.numbers(after)
        if both := [label for label in old if label in new]:
            shown = Table(self.title, "A", "B", title="with 95% intervals", title_justify="left")
            for label in both:
                shown.add_row(label, str(old[label]), str(new[label]))
            console.print(shown)
