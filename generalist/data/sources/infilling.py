"""English prose with a span to fill in, from the documentation in installed packages (docs/pointing.md)."""

import dataclasses
from collections.abc import Sequence

from generalist.data.examples import Examples
from generalist.data.infilling import InfillingExamples
from generalist.data.source import Reading, Stored, register
from generalist.data.sources.prose import Prose, encoded


@register("infilling")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Infilling(Prose):
    """Prose whose middle is to be filled in."""

    weight: float = 0.0
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("infilling",)

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """See `Source.open`."""
        ids = encoded(self.documents(stored), reading.assembler)
        return [InfillingExamples(ids=ids, length=reading.length, assembler=reading.assembler)]
