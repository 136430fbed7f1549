"""The user's own documents of texts and images (docs/data.md)."""

import dataclasses
from collections.abc import Iterator, Sequence

from generalist.data.document_examples import DocumentExamples
from generalist.data.documents import UNREADABLE, Documents, open_documents
from generalist.data.examples import Examples
from generalist.data.formats.documents import DocumentOpening
from generalist.data.formats.places import place
from generalist.data.source import REQUIRED, Reading, Say, Source, Stored, Ways, register
from generalist.system.cache import index_folder
from generalist.system.processes import cores


@register("documents")
@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnDocuments(Source):
    """Your own texts and images; takes no part without a path."""

    weight: float = 0.1
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    path: str | None = None
    """A file or a folder with documents, also at gs:// or s3://, in any format of docs/documents.md; `required`: the preset needs
    you to name one."""
    images_folder: str | None = None
    """Folder of the images that the documents name. None: the folder of the file that names them."""
    image_column: str | None = None
    """Name of the column or key with the images. None: `image`, `images` and other usual ones."""
    text_column: str | None = None
    """Name of the column or key with the text. None: `text`, `caption` and other usual ones."""
    heldout: str | None = None
    """A file or a folder like `path` with documents that are not trained on: evaluation reports the loss on them. None: no such
    evaluation."""
    heldout_split: str = "test"
    """The split that is held out if `heldout` has several, such as `validation`; of `path` the split `train` is read."""
    images: int = 5
    """Maximum number of images per training example (Flamingo: 5)."""
    next_probability: float = 0.5
    """Probability that a document's texts attend to the image after them instead of the one before (Flamingo: 0.5)."""
    unreadable: float = UNREADABLE
    """Share of the documents that may be unreadable or have an unreadable image: these are left out, counted and named. More than
    that fail the run."""

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
        return "path FILE (texts and images, docs/documents.md)" if self.path == REQUIRED else None

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

    def opening(self, *, heldout: bool = False) -> DocumentOpening:
        """What opening the documents may use.

        Args:
            heldout: whether it is for those that are held out.
        """
        return DocumentOpening(
            index=index_folder(),
            workers=cores(),
            split=self.heldout_split if heldout else "train",
            images=None if self.images_folder is None else place(self.images_folder),
            image_column=self.image_column,
            text_column=self.text_column,
        )

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Checks that the documents can be read: the beginnings and ends of some images or, with `whole`, all of each image."""
        if self.path is None:
            return
        if whole:
            say(f"reading every image of {self.path} ...")
        opening = self.opening()
        opened = open_documents(self.path, self.unreadable, say, opening=opening, workers=cores(), whole=whole)
        if whole:
            say(f"{len(opened) - len(opened.left_out):,} of {len(opened):,} documents can be read")
        # A path without a weight is probably a mistake, but may also be a run that only checks the files.
        if not self.weight:
            say(f"note: {self.path} is not trained on: data.{name}.weight is 0")

    def documents(self) -> Documents:
        """The documents that are trained on, which were looked at before.

        Raises:
            ValueError, OSError: they are not what they were then.
        """
        assert self.path is not None
        return Documents(self.path, self.unreadable, opening=self.opening(), checked=True)

    def texts(self, stored: Stored) -> Iterator[str]:
        """See `Source.texts`."""
        return self.documents().texts()

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """See `Source.open`."""
        # `check` has looked at the images before; each loader process would otherwise do it again.
        return [
            DocumentExamples(
                documents=self.documents(),
                assembler=reading.assembler,
                length=reading.length,
                images=self.images,
                next_probability=self.next_probability,
            )
        ]
