"""Image files of all kinds: read as what they show, or refused; never cut off, inverted or turned."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generalist.data.files import DocumentError
from generalist.data.images import check_image, pixels, read_image

RAMP = np.linspace(0, 1, 64)[None].repeat(8, 0)


def grey(path: Path) -> list[int]:
    """The first row's red; all colours must be alike."""
    image = read_image(path)
    assert (image == image[..., :1]).all()
    return image[0, :, 0].tolist()


def tiff(bits: int, photometric: int, data: bytes, width: int = 2) -> bytes:
    """A TIFF of one row and one channel, not compressed."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: 1, 279: len(data), 339: 1}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + struct.pack("<I", 0) + data


def png(depth: int, colour: int, width: int, data: bytes, clear: bytes = b"") -> bytes:
    """A PNG of one row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    transparent = chunk(b"tRNS", clear) if clear else b""
    return (
        b"\x89PNG\r\n\x1a\n" + header + transparent + chunk(b"IDAT", zlib.compress(b"\0" + data)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "values",
    [RAMP.astype(np.float32), (10 * RAMP).astype(np.float32), (65535 * RAMP).astype(np.int32)],
    ids=["0..1", "metres", "int32"],
)
@pytest.mark.parametrize("read", [read_image, check_image])
def test_numbers_without_black_and_white_are_refused(tmp_path: Path, values: np.ndarray, read: Callable):
    Image.fromarray(values).save(tmp_path / "depth.tif")
    with pytest.raises(
        DocumentError, match=r"depth.tif holds .*: save it as 8 or 16 bits per pixel, scaled by its known"
    ):
        read(tmp_path / "depth.tif")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_deep_greys_are_scaled(tmp_path: Path, ending: str):
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(np.rint(65535 * RAMP).astype(np.uint16)).save(path)
    check_image(path)
    assert grey(path) == np.rint(255 * RAMP[0]).astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "content", "levels"),
    [
        ("16.pgm", b"P5 2 1 65535\n\x00\x00\xff\xff", [0, 255]),
        ("12.pgm", b"P5 2 1 4095\n\x00\x00\x0f\xff", [0, 255]),
        ("12.tif", tiff(12, 1, b"\xff\xf0\x00"), [255, 0]),
        ("16.tif", tiff(16, 1, struct.pack("<HH", 257, 65535)), [1, 255]),
        ("white is zero.tif", tiff(16, 0, struct.pack("<HH", 257, 65535)), [254, 0]),
        ("white is zero at 8 bits.tif", tiff(8, 0, b"\x01\xff"), [254, 0]),
        ("clear.png", png(16, 0, 2, struct.pack(">HH", 1000, 257), struct.pack(">H", 1000)), [255, 1]),
        ("grey and opacity.png", png(16, 4, 2, struct.pack(">HHHH", 257, 65535, 257, 0)), [1, 255]),
    ],
)
def test_what_deep_numbers_mean(tmp_path: Path, name: str, content: bytes, levels: list[int]):
    (tmp_path / name).write_bytes(content)
    assert grey(tmp_path / name) == levels


def test_palettes_and_opacity(tmp_path: Path):
    path = tmp_path / "a.png"
    drawn = Image.new("P", (1, 1), 1)
    drawn.putpalette([255, 0, 0, 0, 255, 0])
    drawn.save(path)
    assert read_image(path)[0, 0].tolist() == [0, 255, 0]
    drawn.save(path, transparency=1)
    assert read_image(path)[0, 0].tolist() == [255, 255, 255]
    Image.fromarray(np.array([[[80, 128]]], np.uint8), "LA").save(path)
    assert grey(path) == [167]
    Image.new("1", (1, 1), 1).save(path)
    assert grey(path) == [255]
    for ending in ("jpg", "tif"):  # no ink is white
        Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / f"ink.{ending}")
        assert (read_image(tmp_path / f"ink.{ending}") == 255).all()


def test_of_several_frames_the_first_is_read(tmp_path: Path):
    frames = [Image.new("L", (4, 4), level) for level in (40, 200)]
    for ending in ("gif", "webp", "png", "tif"):
        path = tmp_path / f"several.{ending}"
        frames[0].convert("RGB").save(path, save_all=True, append_images=[frames[1].convert("RGB")], lossless=True)
        assert read_image(path)[0, 0, 0] == 40


TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["png", "tif", "lzw"])
@pytest.mark.parametrize("depth", [8, 16])
def test_every_image_is_upright(tmp_path: Path, orientation: int, kind: str, depth: int):
    levels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{'png' if kind == 'png' else 'tif'}"
    stored = levels if depth == 8 else levels.astype(np.uint16) * 257
    Image.fromarray(stored).save(path, exif=exif, compression="tiff_lzw" if kind == "lzw" else None)
    np.testing.assert_array_equal(read_image(path)[..., 0], TURNS[orientation](levels))


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp"])
def test_an_image_that_was_cut_off_is_found_before_it_is_read(tmp_path: Path, ending: str):
    path = tmp_path / f"cut.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"what a phone puts behind it")
    check_image(path)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DocumentError, match=r"cut.* is no image that can be read .*: get it again"):
        check_image(path)


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path: Path):
    colour = struct.pack(">HHH", 300, 300, 300)
    (tmp_path / "a.png").write_bytes(png(16, 2, 1, colour))
    assert grey(tmp_path / "a.png") == [1]
    (tmp_path / "a.png").write_bytes(png(16, 2, 1, colour, colour))
    with pytest.raises(DocumentError, match="a.png has one transparent colour of 16 bits: save it with 8, or with"):
        check_image(tmp_path / "a.png")


def test_what_is_no_image(tmp_path: Path):
    with pytest.raises(DocumentError, match=r"there is no image .*a.png: put it there"):
        check_image(tmp_path / "a.png")
    with pytest.raises(DocumentError, match=r"put it there \(folders are separated by /"):
        check_image(tmp_path / "in\\a.png")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DocumentError, match="none of PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM.: convert it"):
        check_image(tmp_path / "a.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DocumentError, match=r"a\.png is no file"):
        read_image(tmp_path / "a.png")


def test_stored_palettes_are_colours_and_not_numbers_of_them():
    drawn = Image.new("P", (1, 1), 1)
    drawn.putpalette([255, 0, 0, 0, 255, 0])
    assert pixels(drawn)[0, 0].tolist() == [0, 255, 0]
    assert pixels(Image.new("1", (1, 1), 1)).tolist() == [[255]]
    assert pixels(Image.new("LA", (1, 1), (9, 8))).tolist() == [[[9, 9, 9, 8]]]
    deep = np.full((1, 1), 40_000, np.uint16)
    np.testing.assert_array_equal(pixels(Image.fromarray(deep)), deep)
