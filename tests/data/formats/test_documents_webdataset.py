"""Documents in tar files, as the webdataset library wrote them (tests/fixtures/formats/documents/make.py), and hostile ones."""

import base64
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from document_checks import SETS, check_mutations, content, opened
from PIL import Image

from generalist.data.files import DocumentError
from generalist.data.images import Extract

EXPECTED = [[number, f"picture {number}"] for number in range(5)] + [[5, "5"]]


def encoded(number: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 6), (10 * number, 0, 0)).save(written, "PNG")
    return written.getvalue()


def tar(path: Path, *members: tuple[str, bytes | str | dict] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as written:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                written.addfile(member)
                continue
            name, value = member
            value = json.dumps(value) if isinstance(value, dict) else value
            value = value.encode() if isinstance(value, str) else value
            info = tarfile.TarInfo(name)
            info.size = len(value)
            written.addfile(info, io.BytesIO(value))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_shards_of_the_library(tmp_path: Path):
    for _ in range(2):
        found = opened(SETS / "webdataset", index=tmp_path)
        assert found.format == "WebDataset" and content(found) == EXPECTED
    assert found.pairs.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.where(3).endswith("00001.tar sample a/003") and isinstance(found.parts(3)[0], Extract)
    assert [note.partition(": ")[2] for note in found.notes()] == ["1 members are not read: .npy"]
    assert [found.texts(index) for index in range(6)] == [[text] for _, text in EXPECTED]


def test_members_that_lie_apart_come_together(tmp_path: Path):
    path = tar(tmp_path / "a.tar", ("b.png", encoded(2)), ("a.txt", "one"), ("./a.png", encoded(1)), ("b.txt", "two"))
    assert content(opened(path)) == [[2, "two"], [1, "one"]]


def test_a_long_name_and_a_compressed_tar(tmp_path: Path):
    key = "folder/" * 40 + "é" * 60
    path = tar(tmp_path / "a.tar", (f"{key}.png", encoded(2)), (f"{key}.txt", "text"))
    assert content(opened(path)) == [[2, "text"]] and opened(path).where(0).endswith(f"sample {key}")
    import gzip

    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert content(opened(packed, index=tmp_path / "index")) == [[2, "text"]]


def test_interleaved_pages_with_their_images_in_base64(tmp_path: Path):
    image = {"image_base64": base64.b64encode(encoded(3)).decode(), "matched_text_index": 1}
    page = {"text_list": ["Before.", "It.", "After."], "image_info": [image], "similarity_matrix": [[0, 1, 0]]}
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    path = tar(tmp_path / "a.tar", ("0.json", page), ("1.json", {"conversations": said}), ("1.png", encoded(4)))
    assert content(opened(path)) == [["Before.", 3, "It. After."], [4, "User: What?\nAssistant: This."]]
    image["image_base64"] = "?"
    with pytest.raises(DocumentError, match=r"a\.tar sample 0: an image is not base64"):
        opened(tar(path, ("0.json", page))).parts(0)


def test_links_devices_and_names_that_lead_out_are_left_aside(tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    path = tar(
        tmp_path / "a.tar",
        special("a.txt", tarfile.SYMTYPE, str(tmp_path / "secret.txt")),
        special("b.txt", tarfile.LNKTYPE, "a.txt"),
        special("c.txt", tarfile.CHRTYPE),
        special("d", tarfile.DIRTYPE),
        ("/etc/e.txt", "absolute"),
        ("../f.txt", "above"),
        (".hidden", "no key"),
        ("g.txt", "read"),
    )
    found = opened(path)
    assert content(found) == [["read"]]
    assert sorted(note.partition(": ")[2] for note in found.notes()) == [
        "1 members are not read: folders",
        "1 members are not read: names without a key and an ending",
        "2 members are not read: names outside of the tar",
        "3 members are not read: links, devices and files with holes",
    ]


def test_tars_that_are_refused(tmp_path: Path):
    whole = tar(tmp_path / "a.tar", ("a.png", encoded(1)), ("a.txt", "one")).read_bytes()
    joined, cut = tmp_path / "joined.tar", tmp_path / "cut.tar"
    joined.write_bytes(whole + whole)
    with pytest.raises(DocumentError, match=r"joined\.tar goes on behind its end"):
        opened(joined)
    cut.write_bytes(whole[: 4 * 512])
    with pytest.raises(DocumentError, match=r"cut\.tar has no mark at its end"):
        opened(cut)
    cut.write_bytes(whole[:700])
    with pytest.raises(DocumentError, match=r"cut\.tar"):
        opened(cut)
    with pytest.raises(DocumentError, match=r"has the member a\.txt twice"):
        opened(tar(tmp_path / "twice.tar", ("a.txt", "one"), ("b.txt", "two"), ("a.txt", "three")))
    with pytest.raises(DocumentError, match="has no sample"):
        opened(tar(tmp_path / "empty.tar", ("README", "nothing")))
    with pytest.raises(DocumentError, match=r"sample a has neither an image nor a text, but npy"):
        opened(tar(tmp_path / "npy.tar", ("a.npy", "x"))).parts(0)
    claims = tarfile.TarInfo("x" * 200 + ".txt")
    huge = tmp_path / "huge.tar"
    huge.write_bytes(claims.tobuf(tarfile.GNU_FORMAT) + whole)
    content_ = bytearray(huge.read_bytes())
    content_[124:136] = b"77777777777\0"  # of the long name
    content_[148:156] = b"%06o\0 " % (sum(content_[:148]) + 8 * 32 + sum(content_[156:512]))
    huge.write_bytes(content_)
    with pytest.raises(DocumentError, match=r"huge\.tar can't be read as a tar"):
        opened(huge)


def test_damaged_tars_are_refused_by_name(tmp_path: Path):
    file = tmp_path / "damaged.tar"
    shutil.copy(SETS / "webdataset/00001.tar", file)
    file.write_bytes(file.read_bytes().rstrip(b"\0") + bytes(1024 + -len(file.read_bytes().rstrip(b"\0")) % 512))
    noticed = check_mutations(file, count=300, same=lambda parts, sound: len(parts) > 0)
    assert noticed > 100
