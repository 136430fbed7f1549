"""A user's own documents: what is read, how a stretch is cut, which image a text belongs to, and what is refused."""

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generalist.data.document_examples import DocumentExamples
from generalist.data.documents import Documents, open_documents
from generalist.data.files import DocumentError
from generalist.data.formats.faults import TooManyBroken
from generalist.data.images import read_image
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import Assembler, Images
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

TEXT = TextTokenizer.train(["a cat on a mat and a dog"] * 9, 300)
VOCABULARY = Vocabulary(text=300, continuous=0, discrete=0)


class Pixels:
    """A `Visual` that gives every image as 8×8 pixels."""

    empty = np.zeros((0, 8, 8, 3), np.uint8)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images[:, :8, :8]


ASSEMBLER = Assembler(vocabulary=VOCABULARY, text_tokenizer=TEXT, images="encoder", visual=Pixels())


def write(folder: Path, *lines: object, images: int = 8, photo: tuple[int, int] = (9, 12)) -> Path:
    Image.new("RGB", photo[::-1]).save(folder / "photo.png")
    for number in range(images):
        Image.fromarray(np.full((9, 12, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
    path = folder / "own.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_content_pairs_and_texts(tmp_path: Path):
    interleaved = {"content": ["a cat", {"image": "0.png"}, " on a mat", {"image": "1.png"}]}
    path = write(tmp_path, interleaved, "", {"image": "2.png", "text": "a dog"}, {"text": "no image"})
    documents = Documents(path)
    assert [len(documents[index]) for index in range(len(documents))] == [4, 2, 1]
    assert documents[0][1] == tmp_path.resolve() / "0.png"
    assert documents.pairs().tolist() == [1] and documents.pair(1) == (tmp_path.resolve() / "2.png", "a dog")
    assert list(documents.texts()) == ["a cat", " on a mat", "a dog", "no image"]
    assert len(Documents(tmp_path)) == 3


def test_each_text_belongs_to_the_image_before_or_the_one_after(tmp_path: Path):
    content = ["a cat", {"image": "0.png"}, " on a mat", {"image": "1.png"}, " and a dog"]
    documents = Documents(write(tmp_path, {"content": content}))
    seen = {}
    for probability in (0.0, 1.0):
        examples = DocumentExamples(documents=documents, assembler=ASSEMBLER, next_probability=probability)
        sequence = examples.example(0, np.random.default_rng(0))
        assert len(sequence.images) == 2
        assert (sequence.modality == Modality.IMAGE).sum() == 2
        seen[probability] = sequence.image
        # What has no image is not predicted, a marker of an image never.
        targets = sequence.targets[sequence.loss_weight > 0]
        assert VOCABULARY.image not in targets
        assert (targets == VOCABULARY.chunk_end).sum() == 2
    first = len(TEXT.encode("a cat"))
    assert (seen[0.0][1 : 1 + first] == 0).all()
    assert (seen[1.0][1 : 1 + first] == 1).all()
    assert seen[0.0][-1] == 2
    assert seen[1.0][-1] == 0


def test_a_coin_is_tossed_a_document(tmp_path: Path):
    documents = Documents(write(tmp_path, {"content": ["a cat", {"image": "0.png"}, " on a mat"]}))
    examples = DocumentExamples(documents=documents, assembler=ASSEMBLER)
    rng = np.random.default_rng(0)
    following = [examples.example(0, rng).image[1] == 1 for _ in range(400)]
    assert 160 < sum(following) < 240


def test_a_stretch_has_its_length_and_the_first_images(tmp_path: Path):
    content = [part for number in range(8) for part in ({"image": f"{number}.png"}, f" a cat number {number} on a mat")]
    documents = Documents(write(tmp_path, {"content": content}))
    rng, starts = np.random.default_rng(0), set()
    for length, images in ((40, 5), (300, 5), (300, 8), (12, 1)):
        examples = DocumentExamples(documents=documents, assembler=ASSEMBLER, length=length, images=images)
        for _ in range(50):
            sequence = examples.example(0, rng)
            assert 0 < len(sequence.tokens) <= length
            assert len(sequence.images) <= images
            shown = sequence.images[:, 0, 0, 0] // 20
            assert (np.diff(shown.astype(int)) == 1).all(), "images stand in order, none left out"
            assert not len(shown) or sequence.image.max() <= len(shown)
            starts.add(int(shown[0]) if len(shown) else -1)
    assert len(starts) > 3, "stretches begin everywhere"


@pytest.mark.parametrize("images", ["patches", "patches+encoder", "frame+encoder"])
def test_photographs_of_any_size_fit_a_stretch(tmp_path: Path, images: Images):
    documents = Documents(write(tmp_path, {"content": ["a cat", {"image": "photo.png"}, "on a mat"]}, photo=(480, 640)))
    assembler = dataclasses.replace(ASSEMBLER, images=images)
    examples = DocumentExamples(documents=documents, assembler=assembler, length=128)
    sequence = examples.example(0, np.random.default_rng(0))
    assert len(sequence) <= 128
    assert len(sequence.patches) == (25 if "patches" in images else 0)


def test_text_without_an_image_is_all_predicted(tmp_path: Path):
    documents = Documents(write(tmp_path, {"text": "a cat on a mat"}))
    sequence = DocumentExamples(documents=documents, assembler=ASSEMBLER).example(0, np.random.default_rng(0))
    assert len(sequence.images) == 0
    np.testing.assert_array_equal(sequence.targets[sequence.loss_weight > 0], TEXT.encode("a cat on a mat"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"own.jsonl line 1 is not JSON .*; a line of JSONL holds one whole value"),
        ("[1]", "holds list instead of an object: write one object per line"),
        ({"caption": "x"}, 'neither "content"'),
        ({"content": []}, 'neither "content"'),
        ({"content": ["a", 3]}, "3 is neither a text nor"),
        ({"image": "absent.png", "text": "x"}, "line 1: there is no image .*absent.png"),
        ({"image": "../secret.png", "text": "x"}, "outside the folder"),
        ({"image": "/etc/passwd", "text": "x"}, "outside the folder"),
        ({"image": "deeper/../../secret.png", "text": "x"}, "outside the folder"),
        ({"image": "a\0b.png", "text": "x"}, "line 1: .* is not a file name"),
        ({"image": "ring.png", "text": "x"}, "line 1: "),
        ({"image": "x" * 5000, "text": "x"}, "line 1: .* is not a file name"),
        ({"image": ".", "text": "x"}, "line 1: there is no image"),
        ({"image": "broken.png", "text": "x"}, r"line 1: .*broken\.png is no image"),
        ({"image": "program.eps", "text": "x"}, r"line 1: .*program\.eps is no image"),
        ({"image": "large.png", "text": "x"}, "line 1: .*large.png has 10000 × 7000 pixels"),
        ('{"text": "half a \\ud83d"}', r"line 1: 'half a \\ud83d' has half a character"),
        ({"text": ""}, "'' is neither a text nor"),
        ({"text": None}, "None is neither a text nor"),
        ({"content": ["a"], "text": "b"}, """line 1 has "content" and 'text', which would be lost"""),
        ({"content": [{"image": "0.png", "text": "b"}]}, """line 1: 'text' stands beside "image\""""),
        (
            {"image": "0.png", "caption": "b"},
            "line 1 has no text, but the key 'caption', which is not read: known keys",
        ),
    ],
)
def test_documents_that_are_refused(tmp_path: Path, line: object, message: str):
    path = write(tmp_path, line)
    (tmp_path / "ring.png").symlink_to("ring.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("RGB", (4, 4)).save(tmp_path / "program.eps")
    Image.new("1", (10_000, 7_000)).save(tmp_path / "large.png")
    with pytest.raises((DocumentError, TooManyBroken), match=message):
        Documents(path)


def test_lines_as_other_systems_write_them(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "\xc3\xa9"}')
    assert list(Documents(path).texts()) == ["a", "é"]
    path.write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(DocumentError, match="own.jsonl line 1 is not UTF-8 text"):
        Documents(path)


def test_nothing_to_read(tmp_path: Path):
    with pytest.raises(DocumentError, match="there is no .*absent"):
        Documents(tmp_path / "absent")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DocumentError, match="has no document"):
        Documents(tmp_path)


def test_broken_and_enormous_images(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DocumentError, match="no image that can be read"):
        read_image(tmp_path / "broken.png")
    Image.new("1", (10_000, 7_000)).save(tmp_path / "large.png")
    with pytest.raises(DocumentError, match="10000 × 7000 pixels"):
        read_image(tmp_path / "large.png")
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(DocumentError, match="cut.png is no image that can be read"):
        read_image(tmp_path / "cut.png")
    (tmp_path / "odd.ppm").write_bytes(b"P6 2x 2 255\n")
    with pytest.raises(DocumentError, match="odd.ppm is no image that can be read"):
        read_image(tmp_path / "odd.ppm")


@pytest.mark.parametrize("width", [9_200, 20_000])  # Pillow warns of the first and refuses the second
def test_an_image_that_would_exhaust_the_memory(tmp_path: Path, width: int):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 10_000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)))
    with pytest.raises(DocumentError, match="bomb.png has (too many|9200 × 10000) pixels: make it smaller"):
        read_image(tmp_path / "bomb.png")


def test_photographs_are_upright(tmp_path: Path):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "photo.jpg", exif=turned)
    assert read_image(tmp_path / "photo.jpg").shape == (6, 4, 3)


def cut(path: Path) -> None:
    """Takes the last third of a file away."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def captioned(folder: Path, count: int, ending: str = "png") -> Path:
    """Images of noise, each with a text."""
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"noise{number}.{ending}")
    path = folder / "own.jsonl"
    lines = [{"image": f"noise{number}.{ending}", "text": " a cat on a mat"} for number in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_snapshot_whose_files_are_links(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots/abc").mkdir(parents=True)
    captioned(tmp_path / "blobs", 1)
    for name in ("noise0.png", "own.jsonl"):
        (tmp_path / "blobs" / name).rename(tmp_path / "blobs" / name[::-1])
        (tmp_path / "snapshots/abc" / name).symlink_to(f"../../blobs/{name[::-1]}")
    for given in (tmp_path / "snapshots/abc", tmp_path / "snapshots/abc/own.jsonl"):
        image, text = Documents(given)[0]
        assert isinstance(image, Path) and read_image(image).shape == (40, 40, 3) and text == " a cat on a mat"


def test_a_few_images_that_cannot_be_read_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = captioned(tmp_path, 40, "bmp")  # which is not seen to be cut off before it is read
    for number in (3, 4):
        cut(tmp_path / f"noise{number}.bmp")
    examples = DocumentExamples(documents=Documents(path), assembler=ASSEMBLER)

    def shown(examples: DocumentExamples, index: int) -> np.ndarray:
        return examples.example(index, np.random.default_rng(7)).images

    fresh = [shown(examples, index) for index in (2, 3, 4, 5)]
    assert (fresh[1] == fresh[3]).all() and (fresh[2] == fresh[3]).all() and (fresh[0] != fresh[3]).any()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "note: record left out, number 1 of 40:" in told[0] and "own.jsonl line 4: " in told[0]
    again = DocumentExamples(documents=Documents(path), assembler=ASSEMBLER)
    np.testing.assert_array_equal(shown(again, 4), fresh[2], "as a run that goes on sees it")
    np.testing.assert_array_equal(shown(examples, 3), fresh[1], "as what was left out before does not matter")
    cut(tmp_path / "noise9.bmp")
    message = r"3 of 40 records of .* can't be read, where a share of 0.05 .*own.jsonl line 4: .*own.jsonl line 10: "
    with pytest.raises(TooManyBroken, match=message):
        shown(examples, 9)


def test_what_is_cut_off_is_known_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = captioned(tmp_path, 20)
    cut(tmp_path / "noise3.png")
    documents = Documents(path)
    assert len(documents) == 20 and list(documents.left_out) == [3]
    assert "own.jsonl line 4: " in documents.left_out[3] in capsys.readouterr().err
    (tmp_path / "noise5.png").unlink()
    with pytest.raises(TooManyBroken, match=r"2 of 20 records .* line 4: .* line 6: there is no image"):
        Documents(path)
    assert len(Documents(path, 0.1).left_out) == 2


def test_all_are_read_before_and_all_that_cannot_be_are_named(tmp_path: Path):
    path, said = captioned(tmp_path, 60, "bmp"), []
    assert not open_documents(path, 0.0, said.append, whole=True).left_out and said == []
    for number in range(30):
        cut(tmp_path / f"noise{number}.bmp")
    assert not Documents(path).left_out, "their beginnings and ends are whole"
    with pytest.raises(TooManyBroken, match=r"30 of 60 records .*; and 10 more"):
        open_documents(path, 0.05, said.append, whole=True)
    assert len(said) == 30 and "own.jsonl line 30: " in said[-1]


def test_keys_that_are_not_read_are_told(tmp_path: Path):
    path = write(tmp_path, {"text": "a cat", "url": "x"}, {"image": "0.png", "text": "a dog", "url": "y"})
    (note,) = Documents(path).set.notes()
    assert note.endswith("own.jsonl: 'url' of 2 documents is not read; there are content, image, text")
