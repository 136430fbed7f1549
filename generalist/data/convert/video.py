"""Videos of many episodes: each is encoded by itself and then appended, so that one that breaks midway leaves nothing behind.

Dimension key: H height, W width, C channels.
"""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from generalist.data.convert.source import Codec

OPTIONS: dict[Codec, dict[str, str]] = {
    # As LeRobot encodes by default: every second frame is a key frame, so that any frame is found quickly.
    "libsvtav1": {"g": "2", "crf": "30", "preset": "12", "svtav1-params": "fast-decode=0"},
    # Without frames that are shown before those they follow in the file, which would not be appended cleanly.
    "h264": {"g": "2", "crf": "23", "bf": "0"},
}
# What every player and LeRobot's readers take: colours at half the resolution.
PIXELS = "yuv420p"
LARGEST = 200 * 2**20
"""Bytes of a video file, LeRobot's limit."""


def encoded(images: Iterable[UInt8[np.ndarray, "H W C"]], codec: Codec, rate: Fraction, size: tuple[int, int]) -> bytes:
    """Images with 1 or 3 channels as an MP4 file.

    Args:
        rate: frames per second.
        size: (H, W) of each.

    Raises:
        ValueError: the encoder does not take images of this size.
        ImportError: PyAV is not installed.
    """
    import av

    _silence()
    # In memory: an episode's video has some megabytes, and must be whole before it is appended.
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate, options=dict(OPTIONS[codec]))
        stream.pix_fmt, stream.height, stream.width = PIXELS, *size
        try:
            # Here rather than with the first frame, since only this error is about the size: some encoders refuse
            # odd or tiny ones.
            stream.codec_context.open()
        except av.error.FFmpegError as error:
            raise ValueError(
                f"{codec} can't encode images of {size[1]} × {size[0]} pixels ({error}): give another --codec, or --images png"
            ) from error
        for image in images:
            # (H, W, 1) of grey to (H, W, 3)
            rgb = np.ascontiguousarray(np.broadcast_to(image, (*size, 3)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        # The frames that the encoder still holds.
        container.mux(stream.encode())
    return buffer.getvalue()


def _silence() -> None:
    """Keeps the encoder from describing itself on standard error."""
    # Of SVT-AV1's levels, 1 is errors alone.
    os.environ.setdefault("SVT_LOG", "1")


class VideoWriter:
    """The videos of a camera: a new file where the next episode would make one too large.

    Args:
        folder: where they are written, as `0.mp4`, `1.mp4`, ...
        rate: frames per second.
    """

    def __init__(self, folder: Path, rate: Fraction, largest: int = LARGEST):
        self._folder, self._rate, self._largest = folder, rate, largest
        self._container: Any = None
        self._stream: Any = None
        self.number, self._bytes, self._frames = -1, 0, 0
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, episode: bytes, frames: int) -> tuple[int, int]:
        """Appends the encoded video of an episode.

        Returns:
            the number of the file, and that of the episode's first frame in it.
        """
        import av

        with av.open(io.BytesIO(episode), "r") as container:
            # Packets are copied, not decoded: nothing is lost, and appending is fast.
            template = container.streams.video[0]
            # A new file rather than one above the limit; an episode is never divided between files.
            if self._container is None or self._bytes + len(episode) > self._largest:
                self._begin(template)
            first = self._frames
            for packet in container.demux(template):
                if packet.pts is not None and packet.dts is not None:  # the last one is empty
                    # Whole numbers and fractions: sums of floats would drift over hours of frames.
                    shift = int(Fraction(first) / self._rate / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = self._stream
                    self._container.mux(packet)
        self._bytes += len(episode)
        self._frames += frames
        return self.number, first

    def _begin(self, template: Any) -> None:
        import av

        self.close()
        self.number, self._bytes, self._frames = self.number + 1, 0, 0
        self._container = av.open(str(self._folder / f"{self.number}.mp4"), "w")
        self._stream = self._container.add_stream_from_template(template, opaque=True)
        # The same ticks, so that times need no rounding.
        self._stream.time_base = template.time_base

    def close(self) -> None:
        """Ends the file."""
        if self._container is not None:
            self._container.close()
            self._container = None


@contextlib.contextmanager
def video_writers(folder: Path, cameras: Iterable[str], rate: Fraction) -> Iterator[dict[str, VideoWriter]]:
    """A writer per camera; all files are ended at the end."""
    writers = {camera: VideoWriter(folder / camera, rate) for camera in cameras}
    try:
        yield writers
    finally:
        for writer in writers.values():
            writer.close()
