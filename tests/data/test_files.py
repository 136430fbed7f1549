"""Lines, JSON and names of files, as users bring them."""

import json
from pathlib import Path

import pytest

from generalist.data.files import DocumentError, json_file, json_lines, named, text_lines


def read(path: Path, content: bytes) -> list:
    path.write_bytes(content)
    return [value for _, value in json_lines(path)]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\ufeff"])
def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path, mark: str):
    line = json.dumps({"text": f"a{mark}b"}, ensure_ascii=False).encode()
    path = tmp_path / "own.jsonl"
    assert read(path, line + b"\n\r\n" + line + b"\r\n" + line) == [{"text": f"a{mark}b"}] * 3
    assert [row for row, _ in text_lines(path)] == [1, 3, 4]


def test_byte_order_marks(tmp_path: Path):
    mark = b"\xef\xbb\xbf"
    assert read(tmp_path / "own.jsonl", mark + b"1\n" + mark + b"2\n" + mark + b"\n") == [1, 2], "joined files"
    (tmp_path / "own.json").write_bytes(mark + b"[1]")
    assert json_file(tmp_path / "own.json") == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n'.encode("utf-16"), r"own.jsonl is UTF-16 or UTF-32: save it as UTF-8"),
        ('{"text": "a"}\n'.encode("utf-16-be"), r"line 1 is not UTF-8 text \(it has bytes of zero.*: save the file"),
        ('1\n{"text": "é"}'.encode("latin-1"), r"line 2 is not UTF-8 text .*: save the file as UTF-8"),
        (b'1\n{"a": 1,}', "line 2 is not JSON"),
        (b'{"image": "a.png", "image": "b.png"}', r"line 1 is not JSON \(an object has 'image' twice"),
        (b"[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str):
    with pytest.raises(DocumentError, match=message):
        read(tmp_path / "own.jsonl", content)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(DocumentError, match=r"own.jsonl can't be read .*: put it there, or name another one"):
        list(json_lines(tmp_path / "own.jsonl"))


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../../b", "a/..", ".."])
def test_a_name_that_leads_out(tmp_path: Path, name: str):
    with pytest.raises(DocumentError, match=r"line 3: the image .* is outside the folder of the file: put it"):
        named(tmp_path, name, "line 3")


def test_links_lead_where_they_lead(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a").write_text("x")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/images").symlink_to("../elsewhere")
    (tmp_path / "linked").symlink_to("set")
    assert named(tmp_path / "linked", "images/./a", "line 1").read_text() == "x"
    assert named(tmp_path, "..a", "line 1") == tmp_path / "..a"


@pytest.mark.parametrize("name", ["a\0b", "\ud83d", "é" * 128])
def test_what_no_file_is_called(tmp_path: Path, name: str):
    with pytest.raises(DocumentError, match="line 1: .* is not a file name"):
        named(tmp_path, name, "line 1")
