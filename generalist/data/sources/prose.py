"""English prose from the documentation in installed packages.

Dimension key: n ids.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from generalist.data.examples import Examples, TextExamples
from generalist.data.prose import Document, prose
from generalist.data.source import Reading, Source, Stored, register
from generalist.tokenizers.sequence import Assembler

TRAINING_CHARACTERS = 1_500_000  # for the text tokenizer: enough for a few thousand pieces, learned in seconds


@register("prose")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prose(Source):
    """English prose."""

    megabytes: float = 4.0
    """Approximate amount of text, with what is held out."""
    evaluation_windows: int = 200
    """Maximum number of held-out windows of text that an evaluation reads."""

    def __post_init__(self) -> None:
        if self.megabytes <= 0:
            raise ValueError(f"data.{self.kind}.megabytes must be above 0, got {self.megabytes}")
        if self.evaluation_windows < 1:
            raise ValueError(f"data.{self.kind}.evaluation_windows must be at least 1, got {self.evaluation_windows}")

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("language",)

    def documents(self, stored: Stored) -> list[Document]:
        """The training texts."""
        return prose(stored.folder / "prose", "train", self.megabytes)

    def texts(self, stored: Stored) -> list[str]:
        """See `Source.texts`."""
        return ["\n".join(document.text for document in self.documents(stored))[:TRAINING_CHARACTERS]]

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """The concatenated documents, each followed by the end marker."""
        # One position is for the beginning marker.
        ids = encoded(self.documents(stored), reading.assembler)
        return [TextExamples(ids=ids, length=reading.length - 1, assembler=reading.assembler)]


def encoded(documents: Sequence[Document], assembler: Assembler) -> Int32[np.ndarray, "n"]:
    """The ids of all documents, each followed by the end marker."""
    end = np.array([assembler.vocabulary.eos], np.int32)
    # Encoded once, when the run opens: windows are then slices of one array.
    return np.concatenate([part for one in documents for part in (assembler.text_tokenizer.encode(one.text), end)])
