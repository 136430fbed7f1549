"""Plain text as documents, and what all formats have in common: samples, indices, buckets."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from document_checks import opened
from upath import UPath

from generalist.data import documents as module
from generalist.data.documents import Documents
from generalist.data.files import DocumentError
from generalist.data.formats import text_files


def test_files_of_a_folder_and_those_below(tmp_path: Path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a é.txt").write_text("\ufefffirst")
    (tmp_path / "deep/er/c.txt.gz").write_bytes(gzip.compress(b"third"))
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "deep/up").symlink_to(tmp_path)
    found = opened(tmp_path, index=tmp_path / "index")
    assert [found.parts(index) for index in range(len(found))] == [["first"], ["second\n"], ["third"]]
    assert found.where(2).endswith("deep/er/c.txt.gz") and len(list(found.files)) == 3
    assert found.notes()[0].endswith("1 empty files are left aside") and not len(found.pairs)


def test_names_are_listed_anew_when_a_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "set/deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt"):
        (tmp_path / "set" / name).write_text(name)

    def texts() -> list[str]:
        found = opened(tmp_path / "set", index=tmp_path / "index")
        return [str(found.parts(index)[0]) for index in range(len(found))]

    assert texts() == ["a.txt", "deep/b.txt"]
    with monkeypatch.context() as patched:
        patched.setattr(text_files, "_arrays", lambda *_: 1 / 0)
        (tmp_path / "set/a.txt").write_text("edited, which changes no folder")
        assert texts() == ["edited, which changes no folder", "deep/b.txt"]
    (tmp_path / "set/deep/c.txt").write_text("new")
    assert texts() == ["edited, which changes no folder", "deep/b.txt", "new"]
    (tmp_path / "set/a.txt").write_text("long " * text_files.PIECE)
    with pytest.raises(DocumentError, match=r"a\.txt can't be read .it has grown since it was indexed"):
        opened(tmp_path / "set", index=tmp_path / "index").parts(0)


@pytest.mark.parametrize("text", ["é line of a poem\n", "words without lines ", "ééé"])
def test_a_long_file_is_cut_where_lines_or_words_end(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_files, "PIECE", 1000)
    monkeypatch.setattr(text_files, "WINDOW", 100)
    whole = text * 700
    (tmp_path / "long.txt").write_text(whole)
    found = opened(tmp_path / "long.txt")
    pieces = [found.parts(index)[0] for index in range(len(found))]
    assert "".join(pieces) == whole and len(pieces) == len(whole.encode()) // 1000
    assert all(900 <= len(piece.encode()) <= 2100 for piece in pieces)
    if text[-1].isspace():
        assert all(piece[-1] == text[-1] for piece in pieces)
    assert found.where(1).endswith("long.txt from byte 1,000")


def test_texts_that_are_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "b.txt").write_text(" \n")
    found = opened(tmp_path)
    with pytest.raises(DocumentError, match=r"a\.txt is not UTF-8 text"):
        found.parts(0)
    with pytest.raises(DocumentError, match=r"b\.txt has nothing but white space"):
        found.parts(1)
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(DocumentError, match="has no text"):
        opened(tmp_path)


@pytest.mark.slow
def test_texts_for_a_tokenizer_are_bounded_and_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "RUNS", 10)
    monkeypatch.setattr(module, "RUN_CHARACTERS", 100)
    (tmp_path / "many.jsonl").write_text("".join(f'{{"text": "{number:04d} abcde"}}\n' for number in range(4000)))
    documents = Documents(tmp_path, checked=True)
    texts = list(documents.texts(1000))
    assert sum(map(len, texts)) == 1000
    runs, counts = np.unique([int(text[:4]) // 64 for text in texts], return_counts=True)
    assert counts.tolist() == [10] * 10 and (np.diff(runs) > 4).all(), "ten of each run"
    assert len(list(documents.texts(10**9))) == 10 * 64 - 32, "the last run is cut off"
    assert list(documents.texts(5)) == [texts[0][:5]]


def test_documents_in_a_bucket(tmp_path: Path):
    bucket = UPath("memory://documents")
    (bucket / "deep").mkdir(parents=True, exist_ok=True)
    (bucket / "deep/a.txt").write_bytes(b"text")
    assert opened(bucket).parts(0) == ["text"]
    (bucket / "own.jsonl").write_bytes(b'{"text": "one"}\n{"text": "two"}\n')
    found = opened(bucket, index=tmp_path)
    assert found.format == "JSONL" and [found.parts(index) for index in range(2)] == [["one"], ["two"]]
    assert str(found.where(1)).startswith("memory://documents/own.jsonl line 2")
