"""Frames of videos: by their times, whatever the codec and the order; a video that doesn't fit is refused by name."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.video import OPEN, VIDEOS, OpenVideo, VideoFrames
from tests.data.formats.coded_videos import code, coded, write_video

FPS = 20
COUNT = 60
# The first is what LeRobot writes. In open groups of pictures frames refer to those before the keyframe.
CODECS = {
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "svtav1-params": "lp=1"}),
    "h264": ("libx264", {"bf": "3"}),
    "h264 open": ("libx264", {"bf": "3", "x264-params": "open-gop=1:keyint=12:scenecut=0"}),
    "h264 without keyframes": ("libx264", {"bf": "3", "x264-params": "intra-refresh=1:keyint=25"}),
    "h265": ("libx265", {"x265-params": "log-level=none:keyint=12:pools=1"}),
    "mpeg4": ("mpeg4", {"bf": "2"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}


def frames(
    file: Path,
    start: int = 0,
    count: int = COUNT,
    fps: float = FPS,
    size: tuple[int, int] = (32, 64),
    of_video: int | None = None,
) -> VideoFrames:
    times = (start + np.arange(count)) / fps
    return VideoFrames(file, times, size=size, period=1 / fps, what="episode 7", count=of_video)


@pytest.fixture(scope="module")
def h264(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video whose only keyframe is the first frame."""
    path = tmp_path_factory.mktemp("video") / "h264.mp4"
    return write_video(path, map(coded, range(COUNT)), codec="libx264", g="1000", **{"x264-params": "scenecut=0"})


@pytest.mark.parametrize("name", CODECS)
def test_every_frame_in_every_order(name: str, tmp_path: Path) -> None:
    codec, options = CODECS[name]
    file = write_video(tmp_path / "video.mp4", map(coded, range(COUNT)), codec=codec, **options)
    video, rng = frames(file), np.random.default_rng(0)
    images = video.decode()
    assert images.shape == (COUNT, 32, 64, 3) and images.dtype == np.uint8
    assert list(map(code, images)) == list(range(COUNT))
    for start in rng.permutation(COUNT):
        stop = min(COUNT, start + rng.integers(1, 8))
        np.testing.assert_array_equal(video[int(start) : int(stop)].decode(), images[start:stop])
    np.testing.assert_array_equal(video[::-7].decode(), images[::-7])
    np.testing.assert_array_equal(video[3::17].decode(), images[3::17])


def test_windows_in_order_decode_every_frame_once(h264: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[int] = []
    seek = OpenVideo._seek
    monkeypatch.setattr(OpenVideo, "_seek", lambda video, key: (sought.append(key), seek(video, key)))
    VIDEOS.close()
    for start in range(0, COUNT, 6):
        assert [code(image) for image in frames(h264)[start : start + 6].decode()] == list(range(start, start + 6))
    assert sought == [0]
    frames(h264)[10:12].decode()
    assert sought == [0, 0]


def test_goes_to_the_keyframe_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps far from each other are not reached through all frames between them."""
    file = write_video(tmp_path / "video.mp4", map(coded, range(COUNT)), codec="libx264", g="4", bf="0")
    sought: list[int] = []
    seek = OpenVideo._seek
    monkeypatch.setattr(OpenVideo, "_seek", lambda video, key: (sought.append(key), seek(video, key)))
    assert list(map(code, frames(file)[::20].decode())) == [0, 20, 40]
    assert sought == [0, 20, 40]


def test_an_episode_within_a_video(h264: Path) -> None:
    video = frames(h264, start=23, count=9)
    assert len(video) == 9 and len(video[2:4]) == 2 and video.nbytes == 0
    assert list(map(code, video.decode())) == list(range(23, 32))
    assert list(map(code, video[2:8][1:3].decode())) == [26, 27]
    assert video[4:4].decode().shape == (0, 32, 64, 3)


def test_times_of_float32_hours_into_a_video(h264: Path) -> None:
    times = np.float32(7200) + np.arange(COUNT, dtype=np.float32) / np.float32(FPS) - np.float32(7200)
    assert np.abs(times - np.arange(COUNT) / FPS).max() > 1e-4  # what LeRobot would refuse
    video = VideoFrames(h264, times.astype(np.float64), size=(32, 64), period=1 / FPS, what="episode 7")
    assert list(map(code, video.decode())) == list(range(COUNT))


def test_nearest_of_more_frames_than_steps(h264: Path) -> None:
    every_third = frames(h264, count=COUNT // 3, fps=FPS / 3)
    assert list(map(code, every_third.decode())) == list(range(0, COUNT, 3))


def test_times_of_the_video_are_not_assumed(tmp_path: Path) -> None:
    """A frame is missing: the ones behind it are still shown when they should be."""
    times = [index for index in range(20) if index != 8]
    file = write_video(tmp_path / "gap.mp4", map(coded, times), times=times)
    assert list(map(code, frames(file, start=9, count=11).decode())) == list(range(9, 20))
    with pytest.raises(
        BrokenRecord, match=r"gap.mp4, episode 7: frame 8 should be at 0.4000 s, but the nearest one is at 0.[34]"
    ):
        frames(file, count=20).decode()
    with pytest.raises(BrokenRecord, match="frame 8 should be at"):
        frames(file, count=20)[6:][1:4].decode()


def test_video_too_short(h264: Path) -> None:
    with pytest.raises(BrokenRecord, match=r"frame 60 should be at 3.0000 s, but the nearest one is at 2.9500 s"):
        frames(h264, count=COUNT + 1).decode()


def test_video_of_one_episode_has_as_many_frames_as_it(h264: Path) -> None:
    for steps in (COUNT - 1, COUNT, COUNT + 1):
        assert len(frames(h264, of_video=steps)[:2].decode()) == 2
    with pytest.raises(BrokenRecord, match="has 60 frames, where the episode has 40 steps"):
        frames(h264, of_video=40)[:2].decode()


def test_other_size(h264: Path) -> None:
    with pytest.raises(BrokenRecord, match=r"has 32 × 64 pixels \(height × width\), where 64 × 32 should be"):
        frames(h264, size=(64, 32)).decode()


def test_too_many_pixels(h264: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VIDEOS.close()
    monkeypatch.setattr("generalist.data.formats.video.LARGEST_IMAGE", 1000)
    with pytest.raises(BrokenRecord, match="has 32 × 64 pixels: encode it with fewer"):
        frames(h264).decode()


def test_what_is_no_mp4_is_not_opened_as_anything_else(tmp_path: Path, h264: Path) -> None:
    """A playlist would make FFmpeg open the files and addresses in it."""
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{h264}\n#EXT-X-ENDLIST\n")
    images = tmp_path / "image.mp4"
    images.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    for file in (playlist, images, tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(BrokenRecord, match=f"{file.name}, episode 7: the video can't be read"):
            frames(file).decode()
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(BrokenRecord, match="empty.mp4"):
        frames(tmp_path / "empty.mp4").decode()


def test_rewritten_video_is_opened_anew(tmp_path: Path) -> None:
    file = write_video(tmp_path / "video.mp4", [coded(1)] * 3)
    assert code(frames(file, count=1).decode()[0]) == 1
    write_video(file, [coded(2)] * 4)
    assert code(frames(file, count=1).decode()[0]) == 2


def test_few_stay_open_and_no_threads_start(tmp_path: Path, h264: Path) -> None:
    VIDEOS.close()
    files = [Path(shutil.copy(h264, tmp_path / f"{number}.mp4")) for number in range(OPEN + 3)]
    threads = len(os.listdir("/proc/self/task"))
    for file in files:
        frames(file)[5:20].decode()
    assert len(os.listdir("/proc/self/task")) == threads
    assert len(VIDEOS) == OPEN
    opened = [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(link)]
    assert len(opened) == OPEN
    VIDEOS.close()
    assert not [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(link)]


def test_missing_package(h264: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'generalist\[formats\]'"):
        frames(h264).decode()


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_damaged_videos(codec: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever bytes are changed or cut off: images of the right shape, or an error that names the file; nothing is printed."""
    options = {"g": "5", "svtav1-params": "lp=1"} if codec == "libsvtav1" else {"g": "5"}
    whole = write_video(tmp_path / "whole.mp4", map(coded, range(12)), codec=codec, **options).read_bytes()
    capfd.readouterr()
    rng, refused = np.random.default_rng(0), 0
    for number in range(300):
        file, content = tmp_path / f"{number}.mp4", bytearray(whole)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            content[position] ^= 1 << rng.integers(8)
        if number % 4 == 0:
            content = content[: rng.integers(len(content))]
        file.write_bytes(content)
        video = frames(file, count=12)
        for window in (video[7:9], video):
            try:
                assert window.decode().shape == (len(window), 32, 64, 3)
            except BrokenRecord as error:
                assert str(file) in str(error)
                refused += 1
    assert refused > 150
    assert capfd.readouterr().err == ""
