"""Documents as JSON objects: JSONL, compressed or not, long lists in one file, and the layouts that people publish."""

import base64
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from document_checks import check_mutations, content, opened
from PIL import Image

from generalist.data.documents import Documents
from generalist.data.files import DocumentError
from generalist.data.formats import json_list, unpacked
from generalist.data.formats.json_list import elements


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the images 0.png to 3.png."""
    for number in range(4):
        Image.new("RGB", (8, 6), (10 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def jsonl(*records: Any) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


PAIR, TEXT = {"image": "1.png", "text": "é one"}, {"text": "text alone", "url": "https://example.org"}
EXPECTED = [[1, "é one"], ["text alone"]]


def zstd(content: bytes) -> bytes:
    written = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(written, "zstd") as stream:
        stream.write(content)
    return written.getvalue().to_pybytes()


def zipped(content: bytes, *others: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../any/name.jsonl", content)
        for name in others:
            archive.writestr(name, "x")
    return written.getvalue()


PACKERS = {"gz": gzip.compress, "zst": zstd, "zip": zipped}


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("kept", [True, False])
def test_compressed_lines_are_unpacked_once(folder: Path, ending: str, kept: bool):
    path = folder / f"own.jsonl.{ending}"
    path.write_bytes(PACKERS[ending](jsonl(PAIR, TEXT)))
    settings = {"index": folder / "index"} if kept else {}
    for _ in range(2):
        found = opened(path, **settings)
        assert content(found) == EXPECTED and found.where(1).endswith(f"own.jsonl.{ending} line 2")
    if kept:
        assert len(list((folder / "index").glob("unpacked-*"))) == 1
        next((folder / "index").glob("unpacked-*")).unlink()
        assert content(opened(path, **settings)) == EXPECTED, "and anew where the copy is gone"


def test_the_copy_goes_with_a_set_without_a_folder_for_it(folder: Path):
    path = folder / "own.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(TEXT)))
    found = opened(path)
    kept = found.kept
    assert kept.exists()
    del found
    assert not kept.exists()


@pytest.mark.parametrize("ending", PACKERS)
def test_bombs_and_damaged_files_leave_no_copy(folder: Path, ending: str, monkeypatch: pytest.MonkeyPatch):
    path = folder / f"own.jsonl.{ending}"
    monkeypatch.setattr(unpacked, "RATIO_FROM", 2**20)
    packed = PACKERS[ending](bytes(2**23))
    path.write_bytes(packed)
    with pytest.raises(DocumentError, match=r"own\.jsonl\.\w+ unpacks to more than [\d,]+ bytes"):
        opened(path, index=folder / "index")
    packed = PACKERS[ending](
        jsonl(*[{"text": str(number)} for number in np.random.default_rng(0).integers(9**9, size=900)])
    )
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(DocumentError, match=r"own\.jsonl\.\w+ can't be unpacked"):
        opened(path, index=folder / "index")
    monkeypatch.setattr(unpacked, "ROOM", 2**60)
    path.write_bytes(packed)
    with pytest.raises(DocumentError, match=r"does not fit into .*index unpacked: make room"):
        opened(path, index=folder / "index")
    assert not [one for one in (folder / "index").iterdir() if "unpacked" in one.name]


def test_a_zip_holds_one_file(folder: Path):
    (folder / "own.jsonl.zip").write_bytes(zipped(jsonl(TEXT), "second.jsonl"))
    with pytest.raises(DocumentError, match="holds 2 files, where one is read"):
        opened(folder / "own.jsonl.zip")


def test_lines_are_indexed_once_and_anew_when_the_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / "own.jsonl"
    path.write_bytes(jsonl(PAIR, TEXT))
    assert content(opened(path, index=folder / "index")) == EXPECTED
    monkeypatch.setattr("generalist.data.formats.json_records.scan_records", lambda *_, **__: 1 / 0)
    again = opened(path, index=folder / "index")
    assert content(again) == EXPECTED and again.pairs.tolist() == [0]
    assert again.notes()[0].endswith("'url' of 1 documents is not read; there are content, image, text")
    path.write_bytes(jsonl(PAIR, TEXT, TEXT))
    with pytest.raises(ZeroDivisionError):
        opened(path, index=folder / "index")


def test_a_file_that_changed_under_the_reader(folder: Path):
    path = folder / "own.jsonl"
    path.write_bytes(jsonl(PAIR, TEXT))
    found = opened(path)
    path.write_bytes(jsonl(PAIR))
    with pytest.raises(DocumentError, match="line 2 can't be read"):
        found.parts(1)


def test_names_of_keys_and_the_folder_of_images(folder: Path):
    (folder / "own").mkdir()
    path = folder / "own/web.jsonl"
    path.write_bytes(jsonl({"photo": "2.png", "body": "two"}))
    assert content(opened(path, images=folder, image_column="photo", text_column="body")) == [[2, "two"]]


# ---- lists in one file


def said(*turns: str, **record: Any) -> dict[str, Any]:
    sides = ("human", "gpt")
    return {"conversations": [{"from": sides[at % 2], "value": one} for at, one in enumerate(turns)], **record}


LLAVA = [
    said("<image>\nWhat is it?", "A picture.", "Sure?", "Yes.", id="0", image="1.png", model="x"),
    said("What differs between <image> and <image>?", "The red.", id="1", image=["1.png", "2.png"]),
    said("No image?", "None.", id="2"),
    said("Describe it.", "A picture.", image="3.png"),
]
SAID = [
    [1, "User: What is it?\nAssistant: A picture.\nUser: Sure?\nAssistant: Yes."],
    ["User: What differs between ", 1, " and ", 2, "?\nAssistant: The red."],
    ["User: No image?\nAssistant: None."],
    [3, "User: Describe it.\nAssistant: A picture."],
]


@pytest.mark.parametrize("indent", [None, 2])
def test_llava_s_conversations(folder: Path, indent: int | None):
    (folder / "llava.json").write_text(json.dumps(LLAVA, indent=indent))
    for place in (folder, folder / "llava.json"):
        found = opened(place)
        assert content(found) == SAID and found.pairs.tolist() == [0, 3] and not found.notes()
    assert found.where(1).endswith("llava.json entry 2")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (said("<image> <image>", "a", image="1.png"), "2 places for images, <image>, but 1 images"),
        (said("<image>", "a"), "1 places for images, <image>, but 0 images"),
        (said("a", "b", image="../1.png"), "outside the folder"),
        (said("a", "b", image=3), "its image is 3 instead of the name of a file"),
        ({"conversations": [{"from": "human"}]}, "is no turn"),
        ({"conversations": []}, "instead of a list with at least one entry"),
        (said("<image>", image="1.png"), "has no text in its conversation"),
        ({"messages": [{"role": "user", "content": 3}]}, "neither a text nor a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "neither a text nor an image of a message"),
        ({"messages": [{"role": "", "content": "a"}]}, "is no one who speaks"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "http://x/1.png"}]}]}, "is an address"),
        ({"text_list": ["a"], "image_info": [{"image_name": "1.png"}]}, "has no matched_text_index of a sentence"),
        ({"text_list": ["a"], "image_info": [{"image_name": "/1.png", "matched_text_index": 0}]}, "outside the folder"),
        ({"text_list": "a"}, "its text_list are 'a' instead of a list"),
    ],
)
def test_records_that_are_refused_are_left_out_when_they_are_met(folder: Path, record: dict, message: str):
    (folder / "own.jsonl").write_bytes(jsonl(*[TEXT] * 30, record))
    found = opened(folder)
    with pytest.raises(DocumentError, match=rf"own\.jsonl line 31.*{message}"):
        found.parts(30)
    documents = Documents(folder, say=lambda line: None)
    assert list(documents.left_out) == [30]


def test_messages_of_all_kinds(folder: Path):
    data = "data:image/png;base64," + base64.b64encode((folder / "2.png").read_bytes()).decode()
    parts = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "What?"}]
    urls = [{"type": "text", "text": "And?"}, {"type": "image_url", "image_url": {"url": data}}]
    here = [{"type": "image"}, {"type": "text", "text": "Here?"}]
    records = [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]},
        {"messages": [{"role": "user", "content": urls}, {"role": "assistant", "content": "That."}]},
        {"images": ["3.png"], "messages": [{"role": "user", "content": here}]},
    ]
    (folder / "own.jsonl").write_bytes(jsonl(*records))
    expected = [["System: Be brief.", 1, "\nUser: What?"], ["User: And?", 2, "\nAssistant: That."], [3, "User: Here?"]]
    assert content(opened(folder)) == expected


def test_mmc4_with_images_that_are_gone(folder: Path):
    (folder / "shards").mkdir()
    info = [{"image_name": f"{name}.png", "matched_text_index": at} for name, at in ((1, 1), ("gone", 0))]
    page = {"text_list": ["One.", "Two.", "Three."], "image_info": info, "url": "https://example.org"}
    (folder / "shards/docs_shard_0_v2.jsonl.zip").write_bytes(zipped(jsonl(page)))
    found = opened(folder / "shards", images=folder, index=folder / "index")
    assert content(found) == [["One.", 1, "Two. Three."]] and found.absent(0) == 1
    with pytest.raises(DocumentError, match=r"none of the 2 images .* is there: set images_folder"):
        Documents(folder / "shards")


def test_elements_of_long_lists_are_found_whatever_the_size_of_a_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    entries = [{"a": '[{\\"é' * int(rng.integers(40)), "n": [1.5e3, None, {"b": "]"}]} for _ in range(200)]
    whole = {"head": {"x": [1, {}]}, "number": 123456, "one": entries, "empty": [], "two": [1, 22, "3"]}
    file = folder / "whole.json"
    file.write_text("\ufeff" + json.dumps(whole, ensure_ascii=False, indent=3))
    for chunk in (7, 100, 2**20):
        monkeypatch.setattr(json_list, "CHUNK", chunk)
        found, text = list(elements(file)), file.read_bytes()
        assert all(text[one.offset : one.offset + len(one.content)] == one.content for _, one in found)
        values = [(key, one.row, json.loads(one.content)) for key, one in found]
        rows = [("one", row, entry) for row, entry in enumerate(entries, 1)]
        assert values == rows + [("two", row, entry) for row, entry in enumerate((1, 22, "3"), 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}, {"text": "b"', "is not JSON"),
        ('[{"text": "a"}', "is cut off"),
        ('[{"text": "a"}] x', "has something behind its end"),
        ('[{"text": "a"} {"text": "b"}]', "a list without a comma"),
        ('[{"text": "a"}, 3]', "entry 2 holds int instead of an object: write one object per entry"),
        ('[{"text": "a", "text": "b"}]', "entry 1 is not JSON .*twice"),
        ("[" * 10_000, "is not JSON"),
        ("[]", "has no document"),
    ],
)
def test_lists_that_are_refused(folder: Path, text: str, message: str):
    (folder / "own.json").write_text(text)
    with pytest.raises(DocumentError, match=rf"own\.json.*{message}|{message}"):
        opened(folder / "own.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own.jsonl", "own.json", "own.jsonl.gz"])
def test_damaged_files_are_refused_by_name(folder: Path, name: str):
    records = [PAIR, TEXT, *LLAVA]
    file = folder / name
    lines = jsonl(*records)
    file.write_bytes(
        json.dumps(records).encode() if name == "own.json" else gzip.compress(lines) if "gz" in name else lines
    )
    assert check_mutations(file, count=200, same=lambda parts, sound: len(parts) > 0) > 50


def test_several_formats_in_a_folder(folder: Path):
    (folder / "own.jsonl").write_bytes(jsonl(TEXT))
    (folder / "README.txt").write_text("what it is")
    assert opened(folder).format == "JSONL"
    (folder / "own.json").write_text(json.dumps([TEXT]))
    with pytest.raises(DocumentError, match=r"documents of several formats \(JSONL, JSON\): name one file"):
        opened(folder)
    assert opened(folder / "own.json").format == "JSON"
    with pytest.raises(DocumentError, match="no documents of a known format"):
        opened(folder / "0.png")
