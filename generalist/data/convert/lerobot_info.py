"""`meta/info.json` of a LeRobot v3.0 data set."""

from typing import Any

from generalist.data.convert.lerobot import cameras, frame_rate
from generalist.data.convert.naming import Kept
from generalist.data.convert.source import Source
from generalist.data.convert.video import OPTIONS, PIXELS

VERSION = "v3.0"
CHUNK = 1000
"""Files of a folder."""
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, EPISODES_PATH = f"data/{_FILE}.parquet", f"meta/episodes/{_FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{_FILE}.mp4"
# LeRobot's defaults, by which it goes on if it appends to the data set.
DATA_MEGABYTES, VIDEO_MEGABYTES = 100, 200
NAMES = {"libsvtav1": "av1", "h264": "h264"}
"""Of codecs, as a video file says it."""


def info(source: Source, *, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    """What `meta/info.json` says."""
    rate = frame_rate(source)
    videos = [one.key for one in cameras(source)]
    # The columns that LeRobot makes itself, in every data set.
    numbered = {"timestamp": "float32"} | dict.fromkeys(
        ("frame_index", "episode_index", "index", "task_index"), "int64"
    )
    return {
        "codebase_version": VERSION,
        # Not known from the data; LeRobot takes any text or none.
        "robot_type": None,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": CHUNK,
        "data_files_size_in_mb": DATA_MEGABYTES,
        "video_files_size_in_mb": VIDEO_MEGABYTES,
        # A whole number where it is one, as LeRobot writes it.
        "fps": rate.numerator if rate.denominator == 1 else source.rate,
        # All episodes are in one split: a conversion is of one.
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if videos else None,
        "features": {
            **{one.key: _feature(one, source, one.key in videos) for one in source.kept},
            **{key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in numbered.items()},
        },
    }


def _feature(one: Kept, source: Source, is_video: bool) -> dict[str, Any]:
    if one.field.kind == "text":
        return {"dtype": "string", "shape": [1], "names": None}
    if one.field.kind == "number":
        return {"dtype": one.field.dtype, "shape": list(one.shape), "names": list(one.field.names) or None}
    # LeRobot tells by these names whether the channels are first or last.
    names = ["height", "width", "channels"]
    if not is_video:
        return {"dtype": "image", "shape": list(one.shape), "names": names}
    height, width, _ = one.shape
    options = OPTIONS[source.settings.codec]
    about = {
        "video.height": height,
        "video.width": width,
        "video.codec": NAMES[source.settings.codec],
        "video.pix_fmt": PIXELS,
        # Rounded down: here LeRobot has whole numbers only.
        "video.fps": int(source.rate or 0),
        "video.channels": 3,
        "has_audio": False,
        "is_depth_map": False,
        "video.g": int(options["g"]),
        "video.crf": int(options["crf"]),
        "video.video_backend": "pyav",
    }
    return {"dtype": "video", "shape": [height, width, 3], "names": names, "info": about}
