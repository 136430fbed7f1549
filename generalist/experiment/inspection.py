"""Inspection of a source: its files, what is wrong with them, and what a run makes of them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from generalist.data.documents import Documents
from generalist.data.inspection import documents as of_documents
from generalist.data.inspection import episodes as of_episodes
from generalist.data.inspection.problems import Problem
from generalist.data.inspection.shown import Shown, shown
from generalist.data.recorded import Dataset, opened
from generalist.data.source import Stored
from generalist.data.sources.control import ControlSource
from generalist.data.sources.documents import OwnDocuments
from generalist.data.sources.recorded import Recorded
from generalist.experiment.subject import Subject
from generalist.experiment.tokens_seen import measure

FORMAT = 1
"""Of the JSON file; raise it when a key goes or means something else."""
REMEDY = "a run stops with the same message before it trains: do what it says"
PICTURES = 4
"""Parts of a source, such as tasks, of which pictures are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspected:
    """What was found."""

    about: dict[str, Any]
    """JSON values: `format`, `source`, `kind`, `problems`, `notes`, `data_sets`, `documents`, `run`."""
    pictures: list[Shown]


def inspect(about: Subject, console: Console, *, whole: bool = False) -> Inspected:
    """Looks at all of a source.

    Args:
        console: shows progress.
        whole: reads every image and every document, and not only a sample.

    Raises:
        ValueError: it is damaged as a whole, or does not fit the settings.
        FileNotFoundError: a file or a recording is not there.
    """
    data, source = about.stored(), about.source
    data_sets: list[dict[str, Any]] = []
    documents: dict[str, Any] | None = None
    problems: list[Problem] = []
    notes: list[str] = []
    pictures: list[Shown] = []
    # Episodes and own documents have files to look at; other sources check their own, if they have any, and are measured.
    if isinstance(source, ControlSource):
        for name, dataset in _data_sets(source, data):
            found = opened(dataset)
            one, several = of_episodes.inspect(name, found, console, instruction=dataset.instruction, whole=whole)
            data_sets.append(one)
            problems += several
            if len(pictures) < PICTURES:
                pictures.append(shown(name, found.episodes, found.mapping))
    elif isinstance(source, OwnDocuments) and source.path is not None:
        # All may be unreadable, and are counted; the messages are the report's.
        opening = source.opening()
        opened_documents = Documents(source.path, unreadable=1.0, opening=opening, say=lambda line: None)
        documents, problems = of_documents.inspect(about.name, opened_documents, console, whole=whole)
    else:
        notes, problems = _checked(about, data, whole=whole)
    # Whether there are files to look at.
    own = bool(data_sets) or documents is not None
    # What the source's own check refuses, a run refuses with the same message: it is told once.
    refused = any(problem.kind == "refused" for problem in problems)
    run, of_run = (None, []) if refused else _measured(about, data, own)
    values = {
        "format": FORMAT,
        "source": about.name,
        "kind": "episodes" if data_sets else "documents" if own else "examples",
        "problems": [dataclasses.asdict(problem) for problem in [*problems, *of_run]],
        "notes": notes,
        "data_sets": data_sets,
        "documents": documents,
        "run": run,
    }
    return Inspected(about=values, pictures=pictures)


def _checked(about: Subject, data: Stored, *, whole: bool) -> tuple[list[str], list[Problem]]:
    """What a run's check of a source says of it, and what it refuses.

    Args:
        whole: reads everything, such as every image.
    """
    notes: list[str] = []
    try:
        about.source.check(about.name, data, whole, notes.append)
    except (ValueError, OSError) as error:
        return notes, [Problem(kind="refused", part=about.name, where="files", what=str(error), remedy=REMEDY)]
    return notes, []


def _measured(about: Subject, data: Stored, own: bool) -> tuple[dict[str, Any] | None, list[Problem]]:
    """What a run makes of the source.

    Args:
        own: whether files were inspected, which are shown even if a run would refuse them.

    Raises:
        ValueError: the source has no examples, or does not fit the settings, where no files were inspected.
    """
    try:
        # What this refuses, a run would refuse.
        return measure(about, about.tokenizers(data), data)
    except ValueError as error:
        if not own:
            raise
        return None, [Problem(kind="refused", part=about.name, where="run", what=str(error), remedy=REMEDY)]


def _data_sets(source: ControlSource, data: Stored) -> Iterator[tuple[str, Dataset]]:
    """The data sets of a source's episodes, each with its task's name."""
    # The data set of a user, with its own mapping, instruction and rate; our recordings need none of these.
    if isinstance(source, Recorded):
        yield source.dataset.name, source.dataset
        return
    for task in source.task_list():
        folder = source.folder(task, data)
        # A recording gets its folder's name when it is finished, and then has this file.
        if not (folder / "dataset_info.json").exists():
            raise FileNotFoundError(
                f"{task.name} is not recorded in {folder}: train.py does that first, and so does this command with --record"
            )
        yield task.name, Dataset(path=str(folder), instruction=task.instruction)
