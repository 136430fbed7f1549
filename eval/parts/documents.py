"""The documents part: the loss on the user's held-out documents (`data.documents.heldout`)."""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.config.run import Config
from generalist.data.document_examples import DocumentExamples
from generalist.data.documents import Documents
from generalist.data.formats.documents import DocumentSet
from generalist.data.formats.places import size
from generalist.data.sources.documents import OwnDocuments
from generalist.eval.held_out import documents
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, table
from generalist.eval.results.scores import Estimate
from generalist.eval.results.words import counted

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist


LARGEST_HASHED = 2**28  # bytes


class HeldOutDocuments(Part):
    """Held-out documents; one job per source of documents that names some."""

    name = "documents"
    title = "Held-out documents"
    seeds: ClassVar[Mapping[str, int]] = {"documents": documents.SEED}

    def jobs(self, generalist: "Generalist") -> list[Job]:
        # All sources, not only those that take part: weights can be scored on documents that they were not trained for.
        return [
            _job(generalist, name, own, own.heldout)
            for name, own in generalist.config.data.sources.items()
            if isinstance(own, OwnDocuments) and own.heldout is not None
        ]

    def prepare(self, config: Config) -> None:
        for own in config.data.sources.values():
            if isinstance(own, OwnDocuments) and own.heldout is not None:
                # Raises if they can't be read.
                Documents(own.heldout, own.unreadable, opening=own.opening(heldout=True))

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {f"{name}, nats per token": _loss(found) for name, found in results["documents"].items()}

    def rows(self, results: Results) -> list[Row]:
        return [
            Row(label="documents, nats", value=_exact(_loss(found)), source=counted(found["documents"], "document"))
            for found in results["documents"].values()
        ]

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = [
            [name, _exact(_loss(found)), *(f"{found[key]:,}" for key in ("documents", "with_images", "tokens", "row"))]
            for name, found in results["documents"].items()
        ]
        headers = ("", "loss, nats per token", "documents", "with images", "tokens", "positions per row")
        return [element("h2", self.title), table(headers, rows)]


def _loss(found: Mapping[str, Any]) -> Estimate:
    return Estimate(**found["loss"])


def _exact(loss: Estimate) -> str:
    """A loss with three decimals, in which losses of similar weights differ; `str` shows one."""
    return f"{loss.value:.3f} [{loss.low:.3f}, {loss.high:.3f}]"


def _job(generalist: "Generalist", name: str, own: OwnDocuments, heldout: str) -> Job:
    config, count = generalist.config, own.evaluation_documents
    opening = own.opening(heldout=True)
    opened = Documents(heldout, own.unreadable, opening=opening, checked=True)

    def compute(progress: Progress) -> dict[str, Any]:
        from generalist.inference.score import log_likelihood  # imports JAX, which reading a results file does not need

        examples = DocumentExamples(
            documents=opened,
            assembler=generalist.assembler,
            length=config.data.length,
            images=own.images,
            next_probability=own.next_probability,
        )
        return documents.evaluate_documents(
            examples, partial(log_likelihood, generalist), count=count, progress=progress
        )

    settings = {
        "documents": _digest(opened.set),
        "count": count,
        "row": config.data.length,
        "images": own.images,
        "next_probability": own.next_probability,
        "seed": documents.SEED,
    }
    # A source of the default name has the key that results had when there was only one source of documents.
    return Job(
        part=HeldOutDocuments.name, key="heldout" if name == own.kind else name, settings=settings, compute=compute
    )


def _digest(documents: DocumentSet) -> str:
    """SHA-256 of the files with the documents, without images beside them: an edited file is scored again, a copy of it
    elsewhere is not. Of large files the names and sizes stand for their content."""
    # The images' pixels are not covered: hashing all of them would take longer than scoring some of them.
    digest = hashlib.sha256()
    for file in documents.files:
        if size(file) > LARGEST_HASHED:
            digest.update(f"{file.name} {size(file)}".encode())
            continue
        with file.open("rb") as opened:
            digest.update(hashlib.sha256(opened.read()).digest())
    return digest.hexdigest()
