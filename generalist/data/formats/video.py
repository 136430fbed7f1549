"""Images of MP4 videos, found by their times and decoded with PyAV only when a window asks for them.

An episode says when its frames are shown; the video says when each of its frames is. The nearest one is taken, and where that is
more than half a frame away, the two don't belong together. A time that is not ahead of the last frame within the same group of
pictures is sought: from the keyframe before it, all frames are decoded. So a window costs one pass, and windows in order cost no
frame twice.

Dimension key: T frames, H height, W width.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from generalist.data.formats.columns import Frames
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.handles import Handles
from generalist.data.formats.places import Place
from generalist.data.images import LARGEST_IMAGE

OPEN = 8
"""Videos that a process keeps open. Each holds its table of frames in memory, some megabytes for an hour."""
THREADS = 1
"""Of a decoder: several processes decode at the same time."""
TOLERANCE = 0.5
"""How far a frame may be from the time that is wanted, as a share of the time between two."""
EXACT = 0.01
"""The same, below which no nearer frame is looked for."""
SURPLUS = 1
"""Frames that a video of one episode may have more or less than the episode has steps: some encoders repeat the last one."""
KEYFRAMES = 4
"""From how many keyframes before a time is decoded, one after the other, until it goes well: those of open groups of pictures
refer to frames before themselves."""
REMEDY = "copy the file again, or encode it anew"


def require_av() -> None:
    """
    Raises:
        ImportError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401 - a moment to import, and only videos need it
    except ImportError as error:
        raise ImportError(
            f"videos are decoded by PyAV, which is not installed ({error}): pip install 'generalist[formats]'"
        ) from error


class VideoFrames(Frames):
    """T frames of a video that is read when they are decoded.

    Args:
        file: an MP4 file.
        times: when the frames are shown, in seconds of the video.
        size: (H, W) that they must have.
        period: seconds between two frames.
        what: the episode, for messages.
        count: of all frames of the video, where it has no other episode.
        numbers: of the frames in the episode, for messages; None: from 0.
    """

    def __init__(
        self,
        file: Place,
        times: Float[np.ndarray, "T"],
        *,
        size: tuple[int, int],
        period: float,
        what: str,
        count: int | None = None,
        numbers: Int[np.ndarray, "T"] | None = None,
    ):
        self.file, self.times, self.size, self.period, self.what, self.count = file, times, size, period, what, count
        self._numbers = np.arange(len(times)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, steps: slice) -> "VideoFrames":
        return VideoFrames(
            self.file,
            self.times[steps],
            size=self.size,
            period=self.period,
            what=self.what,
            count=self.count,
            numbers=self._numbers[steps],
        )

    def decode(self) -> UInt8[np.ndarray, "T H W 3"]:
        """See `Frames.decode`.

        Raises:
            ImportError: PyAV is not installed.
        """
        require_av()
        try:
            with VIDEOS.use(self.file) as video:
                self._check(video)
                return self._decoded(video)
        except BrokenRecord:
            raise
        except Exception as error:  # a broken file ends FFmpeg's decoders in many ways
            raise BrokenRecord(f"{self.file}, {self.what}: the video can't be read ({error}): {REMEDY}") from error

    def _check(self, video: "OpenVideo") -> None:
        if video.size != self.size:
            raise BrokenRecord(
                f"{self.file}, {self.what}: the video has {video.size[0]} × {video.size[1]} pixels (height × width), where "
                f"{self.size[0]} × {self.size[1]} should be: correct what describes it, or encode it anew"
            )
        # Only where the video has no other episode; most of its frames being right, nothing else would show that
        # some are missing at the end.
        if self.count is not None and video.count and abs(video.count - self.count) > SURPLUS:
            raise BrokenRecord(
                f"{self.file}, {self.what}: the video has {video.count} frames, where the episode has {self.count} "
                f"steps: {REMEDY}"
            )

    def _decoded(self, video: "OpenVideo") -> UInt8[np.ndarray, "T H W 3"]:
        images = np.empty((len(self), *self.size, 3), np.uint8)
        for image, number, time in zip(images, self._numbers, self.times.tolist(), strict=True):
            # By time, not by number: files may begin late, and the numbers of frames in files of many episodes
            # are nowhere written.
            frame = video.nearest(time, EXACT * self.period)
            shown = math.inf if frame is None else video.time(frame)
            # Written so that NaN, which compares as false, is refused.
            if frame is None or not abs(shown - time) <= TOLERANCE * self.period:
                there = "there is none" if frame is None else f"the nearest one is at {shown:.4f} s"
                raise BrokenRecord(
                    f"{self.file}, {self.what}: frame {number} should be at {time:.4f} s, but {there}: the video and the "
                    "episode don't belong together; copy both again"
                )
            image[...] = video.image(frame)
        return images


class OpenVideo:
    """A video that is open, at some position.

    Args:
        file: an MP4 file. Whatever it claims to be, FFmpeg reads it as that: other formats may name further files.

    Raises:
        BrokenRecord: it has no video, or too many pixels.
        OSError, av.error.FFmpegError: it can't be opened.
    """

    def __init__(self, file: Place):
        import av

        self._frames: Iterator[Any] = iter(())
        self._passed: Any = None
        self._last: Any = None
        self._container: Any = None
        self.file, self._file = file, file.open("rb")
        try:
            # The format is given, and never guessed: playlists, for one, make FFmpeg open further files and
            # addresses.
            self._container = av.open(self._file, format="mp4")
            if not self._container.streams.video:
                raise BrokenRecord(f"{file} has no video: {REMEDY}")
            self._stream = self._container.streams.video[0]
            context = self._stream.codec_context
            self.size = (context.height, context.width)
            # Before a frame is decoded.
            if math.prod(self.size) > LARGEST_IMAGE:
                raise BrokenRecord(f"{file} has {context.height} × {context.width} pixels: encode it with fewer")
            context.thread_count = THREADS
            # Without the first, a damaged frame would be filled with something like it; the second holds for frames that are
            # larger than the file says.
            context.options = {"err_detect": "explode", "max_pixels": str(LARGEST_IMAGE)}
            self._base = float(self._stream.time_base or 0)
            # The table of the file (moov), with each frame's time and whether it is a keyframe: nothing is
            # decoded to find one.
            self._index = self._stream.index_entries
            if not self._base or not len(self._index):
                raise BrokenRecord(f"{file} doesn't say when its frames are shown: {REMEDY}")
        except BaseException:
            self.close()
            raise

    @property
    def count(self) -> int:
        """Frames; 0 where the file doesn't say."""
        return self._stream.frames

    def time(self, frame: Any) -> float:
        """When a frame is shown, in seconds."""
        return frame.pts * self._base

    def image(self, frame: Any) -> UInt8[np.ndarray, "H W 3"]:
        """A frame as RGB.

        Raises:
            BrokenRecord: it is damaged, or has another size than the video.
        """
        if frame.is_corrupt or (frame.height, frame.width) != self.size:
            raise BrokenRecord(f"{self.file}: the frame at {self.time(frame):.4f} s is damaged: {REMEDY}")
        return frame.to_ndarray(format="rgb24", threads=THREADS)

    def nearest(self, time: float, exact: float) -> Any:
        """The frame (av.VideoFrame) that is shown nearest to a time; None if there is none.

        Args:
            time: in seconds.
            exact: seconds from it, within which a frame is taken without looking at the next one.

        Raises:
            av.error.FFmpegError: it can't be decoded.
        """
        import av

        # `exact` more, since times in the file are rounded to ticks.
        key = self._keyframe(math.floor((time + exact) / self._base))
        if self._is_ahead(time, exact, key):
            return self._advance(time, exact)
        # Decoding from a keyframe may begin behind the wanted time, or fail, in open groups of pictures: then
        # from the one before.
        for attempt in range(KEYFRAMES):
            self._seek(key)
            try:
                frame = self._advance(time, exact)
                if key <= 0 or self._is_reached(time, exact):
                    return frame
            except av.error.FFmpegError:
                if key <= 0 or attempt == KEYFRAMES - 1:
                    raise
            key = self._keyframe(self._index[key].timestamp - 1)
        return frame

    def _keyframe(self, ticks: int) -> int:
        """Number of the last keyframe that is decoded at a time or before it; below 0 if there is none."""
        return self._index.search_timestamp(ticks)

    def _is_reached(self, time: float, exact: float) -> bool:
        """Whether decoding has begun early enough for a time."""
        # The earliest of the two frames that are kept.
        first = self._passed or self._last
        return first is not None and self.time(first) <= time + exact

    def _is_ahead(self, time: float, exact: float, key: int) -> bool:
        """Whether a time is reached from here, without a keyframe to go to on the way."""
        # If a keyframe lies between, going there skips frames that nobody wants.
        return self._is_reached(time, exact) and (key < 0 or self._index[key].timestamp <= self._last.pts)

    def _seek(self, key: int) -> None:
        self._passed = self._last = None
        # To the keyframe's own time: FFmpeg goes to the one before or at it.
        self._container.seek(self._index[max(key, 0)].timestamp, stream=self._stream)
        self._frames = self._decoded()

    def _decoded(self) -> Iterator[Any]:
        """Frames from here on, in the order in which they are shown; those that come before the keyframe are left out, since
        they may refer to frames before it."""
        first = None
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                first = packet.pts if first is None else first
                if packet.pts < first:
                    continue
            yield from (frame for frame in packet.decode() if frame.pts is not None)

    def _advance(self, time: float, exact: float) -> Any:
        """Decodes until a time, and gives the frame that is nearest to it."""
        # Frames come in the order of their times, so that the nearest one is the last that was passed or the
        # first that is not.
        while self._last is None or self.time(self._last) < time - exact:
            frame = next(self._frames, None)
            if frame is None:
                break
            self._passed, self._last = self._last, frame
        near = [frame for frame in (self._passed, self._last) if frame is not None]
        # The earlier one if both are as near.
        return min(near, key=lambda frame: abs(self.time(frame) - time), default=None)

    def close(self) -> None:
        """Closes the file."""
        if self._container is not None:
            self._container.close()
        self._file.close()


VIDEOS: Handles[OpenVideo] = Handles(OpenVideo, OPEN)
"""Of this process."""
