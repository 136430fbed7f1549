"""Images that still tell which ones they are after a lossy codec, and videos of them."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (32, 64)
ROWS, COLUMNS = 2, 8


def coded(number: int) -> np.ndarray:
    """An image (32, 64, 3) that shows a number below 2**16 as black and white blocks."""
    bits = np.array([number >> bit & 1 for bit in range(ROWS * COLUMNS)], np.uint8).reshape(ROWS, COLUMNS)
    grey = np.kron(bits * 255, np.ones((SIZE[0] // ROWS, SIZE[1] // COLUMNS), np.uint8))
    return np.repeat(grey[..., None], 3, axis=-1)


def code(image: np.ndarray) -> int:
    """The number that an image shows."""
    blocks = image.mean(-1).reshape(ROWS, SIZE[0] // ROWS, COLUMNS, SIZE[1] // COLUMNS).mean((1, 3))
    return int(sum(1 << bit for bit, value in enumerate(blocks.reshape(-1)) if value > 127))


def write_video(
    path: Path,
    images: Iterable[np.ndarray],
    *,
    fps: float = 20,
    codec: str = "mpeg4",
    times: Any = None,
    **options: str,
) -> Path:
    """An MP4 video.

    Args:
        times: of the frames, in frames; by default 0, 1, 2, ...
        options: of the encoder.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "12", **options})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index if times is None else times[index], 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
