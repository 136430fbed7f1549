"""English prose out of the installed packages."""

import json
import time
from pathlib import Path

import pytest

from generalist.data import prose as module
from generalist.data.prose import Document, clean, is_held_out, prose

SIZE = 1.0  # megabytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prose")
    prose(folder, "train", SIZE)
    return folder


def test_there_is_enough_of_it(folder: Path) -> None:
    train, heldout = prose(folder, "train", SIZE), prose(folder, "heldout", SIZE)
    assert 0.8e6 < sum(len(document.text.encode()) for document in train) < 1.1e6
    assert 1e4 < sum(len(document.text.encode()) for document in heldout) < 2e5
    assert {document.name.split("/")[0] for document in train} == {"numpy", "scipy", "jax", "topics"}


def test_splits_share_no_source_and_no_text(folder: Path) -> None:
    train, heldout = prose(folder, "train", SIZE), prose(folder, "heldout", SIZE)
    sources = [{document.name.partition(":")[0] for document in split} for split in (train, heldout)]
    assert not sources[0] & sources[1]
    assert not {document.text for document in train} & {document.text for document in heldout}


@pytest.mark.slow
def test_size_is_about_what_was_asked_and_a_smaller_set_begins_a_larger_one(folder: Path, tmp_path: Path) -> None:
    small, large = prose(tmp_path, "train", megabytes=0.1), prose(folder, "train", SIZE)
    assert 0.08e6 < sum(len(document.text.encode()) for document in small) < 0.3e6, "a whole source may go over"
    assert small == large[: len(small)]
    assert prose(tmp_path, "heldout", megabytes=0.1)


def test_second_read_comes_from_the_cache(folder: Path) -> None:
    start = time.perf_counter()
    again = prose(folder, "train", SIZE)
    assert time.perf_counter() - start < 2
    assert [path.suffix for path in folder.iterdir()] == [".jsonl"], "no temporary file is left"
    assert again == prose(folder, "train", SIZE)


def test_damaged_cache_names_the_file_and_the_remedy(folder: Path, tmp_path: Path) -> None:
    (whole,) = folder.iterdir()
    (tmp_path / whole.name).write_text(whole.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    with pytest.raises(ValueError, match=r"prose-\w+\.jsonl is damaged .*delete it"):
        prose(tmp_path, "train", SIZE)


def test_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"megabytes must be above 0, got 0\.0"):
        prose(tmp_path, "train", megabytes=0.0)


def test_cleaning() -> None:
    text = """Adds numbers.

    Parameters
    ----------
    x : int
        The first.
    %(more)s


    It is fast.

    Examples
    --------
    >>> add(1,
    ...     2)
    3
    """
    assert clean(text) == "Adds numbers.\n\n    Parameters\n    x : int\n        The first.\n\n    It is fast."


def test_held_out_texts_that_repeat_the_training_texts_are_dropped() -> None:
    names = [f"numpy/{index}.py:f" for index in range(300)]
    train = next(name for name in names if not is_held_out(name))
    repeated, new = [name for name in names if is_held_out(name)][:2]
    documents = [
        Document(name=train, text="A long line that stands in the training texts.\nAnd another line as long as that."),
        Document(name=repeated, text="A long line that stands in the training texts.\nshort"),
        Document(name=new, text="A long line that stands in no other text at all.\nshort"),
    ]
    assert [document.name for document in module._split(documents, "heldout")] == [new]


def test_cache_is_lines_of_json(folder: Path) -> None:
    (cache,) = folder.iterdir()
    first = json.loads(cache.read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {"name", "text"}
