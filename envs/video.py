"""Captioned frames, and videos of frames as MP4, GIF or animated WebP.

Dimension key: H, W height and width of a frame in pixels, h and w with its caption.
"""

import importlib.util
import io
import itertools
import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

SUFFIXES = (".mp4", ".gif", ".webp")
LEAST_WIDTH = 320  # pixels of a captioned frame; smaller ones are enlarged
_FONT, _LINE, _MARGIN = 13, 17, 6  # pixels
_INSTRUCTION_LINES = 3  # always reserved, so that every frame of a video has the same size


class MissingVideo(ImportError):
    """PyAV is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "MP4 needs the package av: pip install 'generalist[video]', or choose .gif or .webp, which need no package"
        )


def check_path(path: Path) -> None:
    """Checks that a video can be written to the path, before an episode is played.

    Raises:
        ValueError: the name's ending is not a supported format.
        MissingVideo: the format's package is not installed.
        FileNotFoundError: its folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--video must end in {', '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into: create it first")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("av") is None:
        raise MissingVideo


def captioned(
    frame: UInt8[np.ndarray, "H W 3"], instruction: str, status: str, least_width: int = LEAST_WIDTH
) -> UInt8[np.ndarray, "h w 3"]:
    """A frame, enlarged by a whole number if it is small, above a strip with the instruction and the status.

    Args:
        frame: the frame.
        instruction: the instruction; at most three lines of it are shown.
        status: one line.
        least_width: smaller frames are enlarged to at least this many pixels.

    Returns:
        A frame with even height and width, as video codecs need; of one size for frames of one size.
    """
    # A whole factor with nearest neighbours keeps the pixels of small games sharp.
    scale = max(1, -(-least_width // frame.shape[1]))
    picture = Image.fromarray(np.ascontiguousarray(frame)).resize(
        (scale * frame.shape[1], scale * frame.shape[0]), Image.Resampling.NEAREST
    )
    strip = _LINE * (_INSTRUCTION_LINES + 1) + 2 * _MARGIN
    width, height = (size + size % 2 for size in (picture.width, picture.height + strip))
    canvas = Image.new("RGB", (width, height), (24, 26, 31))
    canvas.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    # The font is proportional: lines are broken by the mean width of its letters, of which there are 27 with the space.
    letters = int((width - 2 * _MARGIN) / font.getlength("abcdefghijklmnopqrstuvwxyz ") * 27)
    lines = textwrap.wrap(instruction, letters, max_lines=_INSTRUCTION_LINES, placeholder=" …")
    for row, (text, colour) in enumerate([*((line, (240, 240, 240)) for line in lines), (status, (150, 190, 255))]):
        draw.text((_MARGIN, picture.height + _MARGIN + row * _LINE), text, colour, font)
    return np.asarray(canvas)


def write(path: Path, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float) -> int:
    """Writes a video frame by frame. Returns the number of frames. The file appears completely or not at all.

    Args:
        path: must end in `.mp4`, `.gif` or `.webp`.
        frames: of one size; H and W even.
        fps: frames per second.

    Raises:
        ValueError: there are no frames; also as `check_path`.
    """
    check_path(path)
    # The suffix stays last: it chooses the format.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        count = (_write_mp4 if path.suffix.lower() == ".mp4" else _write_animation)(temporary, iter(frames), fps)
        if not count:
            raise ValueError(f"there are no frames to write to {path}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Writes H.264 in MP4, which every browser plays."""
    import av

    count, stream = 0, None
    with av.open(str(path), "w") as container:
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                # The pixel format that all browsers decode. Its colour planes have half the size, hence even sizes.
                stream.height, stream.width, stream.pix_fmt = frame.shape[0], frame.shape[1], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        if stream is not None:
            container.mux(stream.encode())  # what the encoder still holds
    return count


def _write_animation(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Writes a GIF or WebP that loops for ever."""
    # Pillow writes an animation in one call, so all frames are in memory here, unlike with MP4.
    pictures = [Image.fromarray(frame) for frame in frames]
    if pictures:
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
    return len(pictures)


def small_webp(frames: Sequence[UInt8[np.ndarray, "H W 3"]], fps: float, limit: int) -> bytes:
    """An animated WebP of at most `limit` bytes: with lower quality, then with fewer frames of the same duration, until it fits.

    Args:
        frames: of one size.
        fps: frames per second.
        limit: maximum size in bytes.

    Raises:
        ValueError: not even one frame fits.
    """
    # For each number of frames the better quality first; at last a single frame.
    for every, quality in itertools.product((1, 2, 4, 8, len(frames)), (60, 30)):
        pictures = [Image.fromarray(frame) for frame in frames[::every]]
        buffer = io.BytesIO()
        pictures[0].save(
            buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 * every / fps), loop=0,
            quality=quality, method=4,
        )  # fmt: skip
        if buffer.tell() <= limit:
            return buffer.getvalue()
    raise ValueError(f"a frame of {frames[0].shape} takes more than {limit} bytes")
