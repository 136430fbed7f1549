"""Which format of documents a folder or a file has."""

from generalist.data.files import DocumentError
from generalist.data.formats.arrow_documents import ArrowDocuments
from generalist.data.formats.documents import DocumentOpening, DocumentSet
from generalist.data.formats.json_records import JsonLines, JsonLists
from generalist.data.formats.parquet_documents import ParquetDocuments
from generalist.data.formats.places import Place, place
from generalist.data.formats.text_files import TextFiles
from generalist.data.formats.tfds_documents import TfdsDocuments
from generalist.data.formats.vqa import QuestionDocuments
from generalist.data.formats.webdataset import WebDataset

FORMATS: tuple[type[DocumentSet], ...] = (
    # Those with file names of their own first: a file of VQA's questions begins with `{` and would pass for
    # JSONL.
    QuestionDocuments,
    TfdsDocuments,
    WebDataset,
    ParquetDocuments,
    ArrowDocuments,
    JsonLines,
    JsonLists,
    TextFiles,
)
"""In the order in which they are tried. Folders often have a README.txt: plain text is what has no other format."""
NAMED = (QuestionDocuments, TfdsDocuments)
"""Those whose files have names of their own, so that others beside them don't matter."""


def open_document_set(where: str | Place, opening: DocumentOpening) -> DocumentSet:
    """The set of documents in a folder or a file, whatever its format.

    Raises:
        DocumentError: there is none, it is of no known format or of several, or damaged.
        ImportError: a package that reads it is not installed.
    """
    found = place(where)
    if not found.exists():
        raise DocumentError(f"there is no {where}: give a file with documents, or a folder with such files")
    matching = [kind for kind in FORMATS if kind.matches(found)]
    if not matching:
        known = ", ".join(kind.format for kind in FORMATS)
        raise DocumentError(f"{where} has no documents of a known format ({known}): see docs/documents.md")
    # A folder with JSONL and Parquet of the same texts would be trained on twice, or half of it lost: neither is
    # guessed.
    several = [kind for kind in matching if kind is not TextFiles and matching[0] not in NAMED]
    if len(several) > 1:
        raise DocumentError(
            f"{where} has documents of several formats ({', '.join(kind.format for kind in several)}): name one file, or put "
            "them into folders of their own"
        )
    return matching[0](found, opening)
