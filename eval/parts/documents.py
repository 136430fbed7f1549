"""The documents part: the loss on the user's held-out documents (`data.documents.heldout`)."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.config.run import Config
from generalist.data.documents import DocumentExamples, Documents
from generalist.data.sources.documents import OwnDocuments
from generalist.eval.held_out import documents
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, table
from generalist.eval.results.scores import Estimate
from generalist.eval.results.words import counted

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist


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
                Documents(own.heldout, own.unreadable)  # raises if they can't be read

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


def _job(generalist: "Generalist", name: str, own: OwnDocuments, heldout: Path) -> Job:
    config, count = generalist.config, own.evaluation_documents

    def compute(progress: Progress) -> dict[str, Any]:
        from generalist.inference.score import log_likelihood  # imports JAX, which reading a results file does not need

        examples = DocumentExamples(
            # Their images were checked by `prepare`, before anything was trained.
            documents=Documents(heldout, own.unreadable, checked=True),
            assembler=generalist.assembler,
            length=config.data.length,
            images=own.images,
            next_probability=own.next_probability,
        )
        return documents.evaluate_documents(
            examples, partial(log_likelihood, generalist), count=count, progress=progress
        )

    settings = {
        "documents": _digest(heldout),
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


def _digest(path: Path) -> str:
    """SHA-256 of the documents' files, without their paths: an edited file is scored again, a moved one is not."""
    # The images' pixels are not covered: hashing all of them would take longer than scoring some of them.
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.glob("*.jsonl")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
