"""The user's own documents of texts and images (docs/data.md)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from generalist.data.documents import UNREADABLE, DocumentExamples, Documents, open_documents
from generalist.data.examples import Examples
from generalist.data.source import REQUIRED, Reading, Say, Source, Stored, Ways, register

TRAINING_CHARACTERS = 1_500_000  # for the text tokenizer: enough for a few thousand pieces, learned in seconds


@register("documents")
@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnDocuments(Source):
    """Your own texts and images; takes no part without a path."""

    weight: float = 0.1
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    path: Path | None = None
    """A JSONL file, or a folder of such files; `required`: the preset needs you to name one."""
    heldout: Path | None = None
    """A file or a folder like `path` with documents that are not trained on: evaluation reports the loss on them. None: no such
    evaluation."""
    images: int = 5
    """Maximum number of images per training example (Flamingo: 5)."""
    next_probability: float = 0.5
    """Probability that a document's texts attend to the image after them instead of the one before (Flamingo: 0.5)."""
    unreadable: float = UNREADABLE
    """Share of the documents that may have an unreadable image: these are left out, counted and named. More than that fail the
    run."""

    evaluation_documents: int = 400
    """Maximum number of held-out documents that an evaluation scores."""

    def __post_init__(self) -> None:
        if self.heldout is not None and self.heldout == self.path:
            raise ValueError(
                f"data.documents.heldout = {self.heldout} is data.documents.path, which is trained on: name other documents"
            )
        if self.evaluation_documents < 1:
            raise ValueError(f"data.documents.evaluation_documents must be at least 1, got {self.evaluation_documents}")
        if not 0 <= self.next_probability <= 1:
            raise ValueError(f"data.documents.next_probability must be from 0 to 1, got {self.next_probability}")
        if not 0 <= self.unreadable < 1:
            raise ValueError(f"data.documents.unreadable must be at least 0 and below 1, got {self.unreadable}")
        if self.images < 1:
            raise ValueError(f"data.documents.images must be at least 1, got {self.images}")

    @property
    def takes_part(self) -> bool:
        """See `Source.takes_part`."""
        return self.weight > 0 and self.path is not None

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("documents",)

    @property
    def missing(self) -> str | None:
        """See `Source.missing`."""
        return "path FILE (texts and images, docs/data.md)" if str(self.path) == REQUIRED else None

    @property
    def has_own_files(self) -> bool:
        """See `Source.has_own_files`."""
        return self.path is not None

    def check_settings(self, name: str, ways: Ways) -> None:
        """See `Source.check_settings`."""
        if self.images > ways.row_images and "encoder" in (*ways.images, *ways.documents):
            raise ValueError(
                f"data.{name}.images = {self.images} exceeds data.row_images = {ways.row_images}, the maximum per row: raise the "
                "latter, or lower the former"
            )
        # The store is filled before training, from what sources list as `fixed_images`.
        if ways.features == "stored":
            raise ValueError(
                f"data.features = stored needs a fixed set of images, which data.{name} has not: compute them"
            )

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Checks that the documents can be read: the beginning and the end of each image or, with `whole`, all of it."""
        if self.path is None:
            return
        if whole:
            say(f"reading every image of {self.path} ...")
        opened = open_documents(self.path, self.unreadable, say, whole=whole)
        if whole:
            say(f"{len(opened) - len(opened.left_out):,} of {len(opened):,} documents can be read")
        # A path without a weight is probably a mistake, but may also be a run that only checks the files.
        if not self.weight:
            say(f"note: {self.path} is not trained on: data.{name}.weight is 0")

    def texts(self, stored: Stored) -> list[str]:
        """See `Source.texts`."""
        assert self.path is not None
        return ["\n".join(Documents(self.path, checked=True).texts())[:TRAINING_CHARACTERS]]

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """See `Source.open`."""
        assert self.path is not None
        # `check` has looked at every image before; each loader process would otherwise do it again.
        return [
            DocumentExamples(
                documents=Documents(self.path, self.unreadable, checked=True),
                assembler=reading.assembler,
                length=reading.length,
                images=self.images,
                next_probability=self.next_probability,
            )
        ]
