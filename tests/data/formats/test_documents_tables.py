"""Documents in Parquet and Arrow files, as the datasets library wrote them (tests/fixtures/formats/documents/make.py)."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from document_checks import SETS, check_mutations, content, opened
from PIL import Image

from generalist.data.documents import Documents
from generalist.data.files import DocumentError
from generalist.data.formats import parquet_documents
from generalist.data.formats.documents import DocumentSet
from generalist.data.images import Encoded

TRAIN = [[number, f"picture {number}"] for number in range(5)]
TEST = [[number, f"picture {number}"] for number in (5, 6)]


def encoded(number: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 6), (10 * number, 0, 0)).save(written, "PNG")
    return written.getvalue()


def table(folder: Path, columns: dict[str, list], **settings: object) -> DocumentSet:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "table.parquet")
    return opened(folder, **settings)


@pytest.mark.parametrize(
    ("path", "expected", "name"),
    [
        ("saved/train", TRAIN, "Arrow"),
        ("saved", TRAIN, "Arrow"),
        ("saved/test", TEST, "Arrow"),
        ("saved/train/data-00001-of-00002.arrow", TRAIN[3:], "Arrow"),
        ("hub", TRAIN, "Parquet"),
        ("hub/data/test-00000-of-00002.parquet", TEST, "Parquet"),
        ("cauldron", [[3, "User: What is it?\nAssistant: A picture."]], "Parquet"),
        ("obelics", [[1, "between the two", 2], ["text alone"], ["its image is gone"]], "Parquet"),
    ],
)
def test_sets_of_the_library(path: str, expected: list, name: str, tmp_path: Path):
    for _ in range(2):  # the second time from the index
        found = opened(SETS / path, index=tmp_path)
        assert found.format == name and content(found) == expected
    texts = [[part for part in parts if isinstance(part, str)] for parts in expected]
    assert [found.texts(index) for index in range(len(found))] == texts


def test_splits():
    assert content(opened(SETS / "hub", split="test")) == content(opened(SETS / "saved", split="testing")) == TEST
    with pytest.raises(DocumentError, match=r"files of several splits \(test, train\), none of them validation"):
        opened(SETS / "hub", split="val")


def test_pairs_and_what_is_not_read():
    hub, obelics = opened(SETS / "hub"), opened(SETS / "obelics")
    assert hub.pairs.tolist() == [0, 1, 2, 3, 4] and obelics.pairs.tolist() == []
    assert hub.notes()[0].endswith("1 files of other splits than train are not read")
    assert obelics.notes()[0].endswith("columns that are not read: metadata")
    assert [obelics.absent(index) for index in range(3)] == [0, 0, 1]
    assert hub.where(3).endswith("train-00001-of-00002.parquet row 0")


def test_an_image_is_bytes_or_a_name_within_the_folder(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/4.png").write_bytes(encoded(4))
    columns = {
        "image": [{"bytes": encoded(3), "path": "/no/such.png"}, {"bytes": None, "path": "4.png"}],
        "text": ["a", "b"],
    }
    assert content(table(tmp_path, columns, images=tmp_path / "pictures")) == [[3, "a"], [4, "b"]]
    assert content(table(tmp_path, {"jpg": [encoded(2)], "txt": ["c"]})) == [[2, "c"]]
    for name in ("../secret.png", "/etc/passwd", "https://example.org/1.png"):
        with pytest.raises(DocumentError, match=r"table\.parquet row 0: the image .* (outside|is an address)"):
            table(tmp_path, {"image": [name], "text": ["a"]}).parts(0)


def test_captions_take_turns_and_columns_are_named_by_settings(tmp_path: Path):
    captions = [["one", "two"], ["one", "two"], ["one"]]
    found = table(tmp_path, {"photo": [encoded(1)] * 3, "captions": captions}, image_column="photo")
    assert content(found) == [[1, "one"], [1, "two"], [1, "one"]]
    assert content(table(tmp_path, {"body": ["a"], "text": ["b"]}, text_column="body")) == [["a"]]
    with pytest.raises(DocumentError, match=r"image_column = photos, but .* only the columns photo"):
        table(tmp_path, {"photo": [encoded(1)]}, image_column="photos")
    with pytest.raises(DocumentError, match="has the columns a, b, of which none is known: set image_column or"):
        table(tmp_path, {"a": [1], "b": [2]})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": [None]}, "row 0 has neither an image nor a text"),
        ({"text": [3]}, "row 0: 3 is no text"),
        ({"image": [3.5], "text": ["a"]}, "row 0: 3.5 is no image"),
        ({"images": [["a.png"]], "texts": [["a"]]}, "row 0: each place of a page has an image or a text"),
        ({"images": [[b"x", b"y"]], "messages": [[{"role": "user", "content": "<image>"}]]}, "1 places for images"),
        ({"messages": [[]]}, r"row 0: its messages are \[\] instead of a list"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, columns: dict[str, list], message: str):
    with pytest.raises(DocumentError, match=message):
        table(tmp_path, columns).parts(0)


def test_files_that_are_refused(tmp_path: Path):
    with pytest.raises(DocumentError, match="several splits"):
        for name in ("test-0.parquet", "validation-0.parquet"):
            shutil.copy(SETS / "hub/data/test-00000-of-00002.parquet", tmp_path / name)
        opened(tmp_path)
    saved = tmp_path / "saved"
    shutil.copytree(SETS / "saved/test", saved)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    with pytest.raises(DocumentError, match="which is outside"):
        opened(saved)
    (saved / "state.json").write_text("{}")
    with pytest.raises(DocumentError, match="has no list of files"):
        opened(saved)
    file = tmp_path / "categories.arrow"
    one = pyarrow.table({"text": pyarrow.array(["a"]).dictionary_encode()})
    with pyarrow.OSFile(str(file), "wb") as raw, pyarrow.ipc.new_file(raw, one.schema) as writer:
        writer.write_table(one)
    with pytest.raises(DocumentError, match="a column of categories, text"):
        opened(file)


def test_a_group_of_rows_is_read_once_for_its_neighbours(monkeypatch: pytest.MonkeyPatch):
    found, read = opened(SETS / "hub"), []
    group = found.group  # type: ignore[attr-defined]
    monkeypatch.setattr(found, "group", lambda *which: read.append(which[:2]) or group(*which))
    assert content(found) == TRAIN
    assert read == [(0, 0), (0, 1), (1, 0)]
    assert isinstance(found.parts(0)[0], Encoded)


def test_large_groups_of_rows_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet_documents, "LARGE_GROUP", 1000)
    assert "to read one document, 0 MB are read" in table(tmp_path, {"text": ["a" * 3000]}).notes()[-1]
    monkeypatch.setattr(parquet_documents, "LARGEST_GROUP", 1000)
    with pytest.raises(DocumentError, match=r"row 0 can't be read .its group of rows has [\d,]+ bytes"):
        table(tmp_path, {"text": ["a" * 3000]}).parts(0)


@pytest.mark.parametrize("name", ["saved/test/data-00000-of-00001.arrow", "hub/data/test-00000-of-00002.parquet"])
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str, compressed: bool):
    file = tmp_path / Path(name).name
    shutil.copy(SETS / name, file)
    if compressed:
        rows = content(opened(file))
        columns = pyarrow.table({"caption": [text for _, text in rows] * 10})
        if file.suffix == ".parquet":
            pyarrow.parquet.write_table(columns, file, compression="zstd")
        else:
            options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
            with (
                pyarrow.OSFile(str(file), "wb") as raw,
                pyarrow.ipc.new_file(raw, columns.schema, options=options) as one,
            ):
                one.write_table(columns)
    # Nothing guards a letter in an uncompressed file.
    noticed = check_mutations(file, count=150, same=lambda parts, sound: all(part for part in parts))
    assert noticed > 40


def test_documents_of_a_table_are_looked_at_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = [encoded(1)] * 30 + [b"broken"]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "text": ["a"] * 31}), tmp_path / "t.parquet")
    documents = Documents(tmp_path)
    assert list(documents.left_out) == [30] and "t.parquet row 30: its image is no image" in capsys.readouterr().err
    assert len(list(documents.texts(20))) == 20
    assert np.asarray(documents.pairs()).shape == (31,)
