"""The user's own documents: text and images in any order, in any format of `generalist.data.formats.detect_documents`.

Dimension key: P documents that are pairs.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

from generalist.data.files import DocumentError
from generalist.data.formats.detect_documents import open_document_set
from generalist.data.formats.documents import DocumentOpening, Part
from generalist.data.formats.faults import Faults
from generalist.data.formats.places import Place
from generalist.data.images import ImageRef, check_image, read_image
from generalist.system.processes import run_jobs

UNREADABLE = 0.05
"""Share of the documents that may have an unreadable image; these are left out, counted and named."""
LOOKS, NEIGHBOURS = 32, 8
"""Number of runs of neighbouring documents, spread over all, that are checked before training, and the length of each."""
TRAINING_CHARACTERS = 1_500_000
"""Characters that a text tokenizer is trained on: enough for a few thousand pieces, learned in seconds."""
RUN, RUNS = 64, 512
"""Length, and maximum number, of the runs of neighbouring documents that these characters come from. Neighbours are read fast: a
group of rows of a table serves many of them."""
RUN_CHARACTERS = 10_000  # minimum per run, if it has them
PER_JOB = 500  # documents that a process reads at once
FEW = 2000  # documents below which starting processes would take longer than reading


def tell(line: str) -> None:
    """Prints a line on standard error: in a loader process there is no console, and standard output may be a table."""
    print(line, file=sys.stderr, flush=True)


class Documents:
    """The documents of a file or a folder, read in place. A document that can't be read, or has an unreadable image, is left out
    wherever it comes up, as long as there are few of them.

    Args:
        path: the file or the folder, also in a bucket.
        unreadable: the share that may be left out.
        opening: where indices are kept, and what the files don't say.
        checked: whether a sample was checked already. Checking one finds mistakes in the settings, which show in nearly all
            documents.
        say: prints a line for the user.

    Raises:
        DocumentError: there is no document, or the files are damaged.
        TooManyBroken: of the sample alone, more can't be read than may be left out of all.
        ImportError: a package that reads the format is not installed.
    """

    def __init__(
        self,
        path: str | Place,
        unreadable: float = UNREADABLE,
        *,
        opening: DocumentOpening | None = None,
        checked: bool = False,
        say: Callable[[str], None] = tell,
    ):
        self.path, self._opening = path, opening or DocumentOpening()
        self.set = open_document_set(path, self._opening)
        self.faults = Faults(path, len(self), unreadable, say)
        if not checked:
            self._look()

    def __len__(self) -> int:
        return len(self.set)

    def __getitem__(self, index: int) -> list[Part]:
        """A document's texts and images in order.

        Raises:
            DocumentError: it can't be read.
        """
        return self.set.parts(index)

    def leave_out(self, index: int, why: DocumentError) -> None:
        """Counts a document that can't be read and reports it, once.

        Raises:
            TooManyBroken: more than the allowed share were left out.
        """
        self.faults.add(index, self.named(index, why))

    @property
    def left_out(self) -> dict[int, str]:
        """Index of a document that can't be read → the reason; complete only after `read_all`."""
        return self.faults.reasons

    def pairs(self) -> Int[np.ndarray, "P"]:
        """Indices of the documents that consist of one image followed by one text, as a contrastive loss needs them.

        Raises:
            DocumentError: there is none.
        """
        if not len(self.set.pairs):
            raise DocumentError(f'{self.path} has no pair of an image and a text: write {{"image": ..., "text": ...}}')
        return self.set.pairs

    def pair(self, index: int) -> tuple[ImageRef, str]:
        """The image and the text of a document that is a pair.

        Raises:
            DocumentError: it can't be read, or is not a pair.
        """
        # Checked again: `pairs` says what is known without reading the documents.
        match self[index]:
            case [image, str(text)] if not isinstance(image, str):
                return image, text
        raise DocumentError(f"{self.set.where(index)} is not one image with one text after it")

    def texts(self, characters: int = TRAINING_CHARACTERS) -> Iterator[str]:
        """Texts for training a text tokenizer, from documents that are spread over all; those that can't be read are skipped.

        Args:
            characters: maximum number of characters of all texts together.
        """
        # Rounded down to multiples of RUN: runs must not overlap, or some texts would count twice.
        starts = np.unique(np.linspace(0, len(self) - 1, RUNS).astype(int) // RUN * RUN)
        share = max(characters // len(starts), RUN_CHARACTERS)
        # In random order, so that the texts come from everywhere even if long runs use up the characters early.
        for start in np.random.default_rng(0).permutation(starts):
            left = share = min(share, characters)
            for text in self._run_texts(int(start)):
                yield text[:left]
                left -= len(text[:left])
                if left == 0:
                    break
            characters -= share - left
            if characters == 0:
                return

    def _run_texts(self, start: int) -> Iterator[str]:
        for index in range(start, min(start + RUN, len(self))):
            with contextlib.suppress(DocumentError):
                yield from self.set.texts(index)

    def read_all(self, workers: int, advance: Callable[[int], None] = lambda count: None) -> None:
        """Reads every image.

        Args:
            workers: number of processes.
            advance: called with the number of documents read since the last call.

        Raises:
            TooManyBroken: more than the allowed share can't be read; all of them were reported before.
        """
        jobs = [
            _ReadJob(self.path, self._opening, start, min(start + PER_JOB, len(self)))
            for start in range(0, len(self), PER_JOB)
        ]
        several = workers > 1 and len(self) > FEW
        done = run_jobs(_read, jobs, workers=workers) if several else ((job, job.broken(self)) for job in jobs)
        found: dict[int, str] = {}
        for job, broken in done:
            found |= broken
            advance(job.stop - job.start)
        # Sorted: jobs end in any order, and two checks of the same files should report the same.
        for index, why in sorted(found.items()):
            self.faults.note(index, why, always=True)
        self.faults.check()

    def _look(self) -> None:
        """Checks a sample of the documents: whether their images are there, and begin and end as complete ones do."""
        starts = np.linspace(0, max(0, len(self) - NEIGHBOURS), LOOKS).astype(int)
        looked = np.unique(starts[:, None] + np.arange(NEIGHBOURS))  # each once, where runs overlap
        there = absent = 0
        for index in looked[looked < len(self)].tolist():
            try:
                absent += self.set.absent(index)
                for part in self[index]:
                    if not isinstance(part, str):
                        check_image(part)
                        there += 1
            except DocumentError as error:
                self.faults.note(index, self.named(index, error))
        # Some may be missing, as in sets of addresses that were downloaded; all missing is a wrong folder.
        if absent and not there:
            raise DocumentError(
                f"none of the {absent:,} images that documents of {self.path} name is there: set images_folder to their folder"
            )
        self.faults.check()

    def named(self, index: int, why: object) -> str:
        """Why a document can't be read, with its file and record."""
        where = self.set.where(index)
        return str(why) if str(why).startswith(where) else f"{where}: {why}"


@dataclasses.dataclass(frozen=True)
class _ReadJob:
    """Documents that a process reads."""

    # The path, not opened documents: those hold open files, which can't be sent to another process.
    path: str | Place
    opening: DocumentOpening
    start: int
    stop: int

    def __str__(self) -> str:
        return f"the documents {self.start:,} to {self.stop:,} of {self.path}"

    def broken(self, documents: Documents) -> dict[int, str]:
        """Those that can't be read, with the reason."""
        found = {}
        for index in range(self.start, self.stop):
            try:
                for part in documents[index]:
                    if not isinstance(part, str):
                        read_image(part)
            except DocumentError as error:
                found[index] = documents.named(index, error)
        return found


def _read(job: _ReadJob) -> dict[int, str]:
    return job.broken(Documents(job.path, opening=job.opening, checked=True))


def open_documents(
    path: str | Place,
    unreadable: float,
    say: Callable[[str], None],
    *,
    opening: DocumentOpening | None = None,
    workers: int = 1,
    whole: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> Documents:
    """Opens documents, and reports those that are left out and what is not read.

    Args:
        workers: number of processes that read the images.
        whole: reads every image whole, not only the beginnings and ends of some.
        advance: called with the number of documents read since the last call.

    Raises:
        DocumentError, TooManyBroken: as `Documents`; with `whole`, after all unreadable documents were reported.
    """
    # Reading an image whole includes the check of its beginning and end.
    documents = Documents(path, unreadable, opening=opening, checked=whole, say=say)
    for note in documents.set.notes():
        say(f"note: {note}")
    if whole:
        documents.read_all(workers, advance)
    return documents
