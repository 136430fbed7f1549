"""`meta/info.json` of a LeRobot data set: its version, the paths of its files and the types of its features.

    {"codebase_version": "v3.0", "fps": 20, "total_episodes": 6, "splits": {"train": "0:6"},
     "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "video_path": ...,
     "features": {"action": {"dtype": "float32", "shape": [7], "names": ["x", ...]}, ...}}

Dimension key: H height, W width, C channels.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from generalist.data.formats.episodes import Field
from generalist.data.formats.json_files import is_count, json_object
from generalist.data.formats.places import Place, inside
from generalist.data.images import LARGEST_IMAGE

NUMBERS = (
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
LARGEST_VALUE = 2**24
"""Numbers of one value."""
CHECKED = ("episode_index", "frame_index", "timestamp")
"""Features that every data set has, and that tell whether rows are those of an episode."""
TASK = "task"
"""Field with the text that `task_index` stands for."""
# `{name}` or `{name:03d}`, all that LeRobot's own templates use.
PLACEHOLDER = re.compile(r"\{(\w+)(:0(\d)d)?\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What the file says, checked."""

    file: Place
    rate: float
    """Steps per second."""
    episodes: int
    chunks_size: int
    """Episodes whose files share a folder, in version 2."""
    data_path: str
    video_path: str
    """Empty if there are no videos."""
    splits: Mapping[str, range]
    """Numbers of episodes."""
    fields: Mapping[str, Field]
    videos: tuple[str, ...]
    """Keys of those fields whose images are in videos."""
    unread: Mapping[str, str]
    """Keys of features that are not read, with the reason."""

    def split(self, wanted: str) -> range | None:
        """The episodes of a split; None: all, as where there is only one split.

        Raises:
            ValueError: there is no such split.
        """
        if len(self.splits) < 2:
            return None
        if wanted not in self.splits:
            raise ValueError(f"{self.file} has no split {wanted!r}: name one of {', '.join(self.splits)}")
        return self.splits[wanted]


def read_info(folder: Place, versions: Collection[str], placeholders: Collection[str]) -> Info:
    """Reads and checks `meta/info.json` in a folder.

    Args:
        versions: that may be.
        placeholders: what paths may hold in braces.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, or of another version.
    """
    file = folder / "meta" / "info.json"
    content = json_object(file)
    version = content.get("codebase_version")
    if version not in versions:
        raise ValueError(
            f"{file} has the codebase_version {version!r}, where a folder with these files is read as "
            f"{' or '.join(versions)}: convert it with LeRobot's own scripts (convert_dataset_v1_to_v2, then "
            "convert_dataset_v21_to_v30), or copy its folder `meta` again"
        )
    # `True` would pass for 1 step per second, and NaN for any comparison that is not written this way round.
    rate = content.get("fps")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6:
        raise _wrong(file, "fps", rate, "a number above 0")
    fields, videos, unread = _fields(file, content.get("features"))
    for camera in videos:  # a folder, if the path has it
        inside(folder, camera, file)
    return Info(
        file=file,
        rate=float(rate),
        episodes=_count(file, "total_episodes", content.get("total_episodes")),
        # 1000 is LeRobot's default; only version 2's paths depend on it.
        chunks_size=_count(file, "chunks_size", content.get("chunks_size", 1000), least=1),
        data_path=_path(file, "data_path", content.get("data_path"), placeholders),
        video_path=_path(file, "video_path", content.get("video_path"), placeholders) if videos else "",
        splits=dict(_splits(file, content.get("splits") or {})),
        fields=fields,
        videos=videos,
        unread=unread,
    )


def filled(info: Info, template: str, values: Mapping[str, int | str]) -> Place:
    """The file that a path with placeholders stands for.

    Raises:
        ValueError: it leads out of the data set's folder.
    """

    def value(found: re.Match[str]) -> str:
        return f"{values[found[1]]:0{found[3]}d}" if found[2] else str(values[found[1]])

    return inside(info.file.parent.parent, PLACEHOLDER.sub(value, template), info.file)


def _wrong(file: Place, key: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{file}: {key!r} must be {wanted}, got {value!r:.80}: copy the file again, or correct it")


def _count(file: Place, key: str, value: Any, least: int = 0) -> int:
    if not is_count(value) or value < least:
        raise _wrong(file, key, value, f"a whole number from {least}")
    return int(value)


def _path(file: Place, key: str, path: Any, placeholders: Collection[str]) -> str:
    # Not with str.format, which would look up attributes of whatever it is given.
    allowed = ", ".join(f"{{{name}}}" for name in placeholders)
    if not isinstance(path, str) or any(brace in PLACEHOLDER.sub("", path) for brace in "{}"):
        raise _wrong(file, key, path, f"a path with {allowed}, numbers with leading zeros such as {{chunk_index:03d}}")
    for name, digits, _ in PLACEHOLDER.findall(path):
        if name not in placeholders or (digits and name == "video_key"):
            raise _wrong(file, key, path, f"a path with nothing in braces but {allowed}")
    # Once for the template; `filled` looks again, since a camera's name may lead out as well.
    inside(file.parent.parent, PLACEHOLDER.sub("0", path), file)
    return path


def _splits(file: Place, splits: Any) -> Iterator[tuple[str, range]]:
    if not isinstance(splits, dict):
        raise _wrong(file, "splits", splits, "an object")
    for name, numbers in splits.items():
        # At most 15 digits, since Python refuses to convert thousands of them, with an error that names no file.
        found = re.fullmatch(r"(\d{1,15}):(\d{1,15})", numbers) if isinstance(numbers, str) else None
        if found is None:
            raise _wrong(file, f"splits.{name:.80}", numbers, "a range of episodes such as '0:50'")
        yield name, range(int(found[1]), int(found[2]))


def _fields(file: Place, features: Any) -> tuple[dict[str, Field], tuple[str, ...], dict[str, str]]:
    if not isinstance(features, dict):
        raise _wrong(file, "features", features, "an object")
    fields: dict[str, Field] = {}
    unread: dict[str, str] = {}
    for key, feature in features.items():
        try:
            # A feature of an unknown kind, such as audio or language events, costs only itself: sets gain new
            # ones with each release.
            fields[key] = _field(key, feature)
        except ValueError as error:
            unread[key] = str(error)
    for key in CHECKED:
        if not _is_one_number(fields.get(key)):
            raise _wrong(file, f"features.{key}", features.get(key), "a number per frame, as in every LeRobot data set")
    if _is_one_number(fields.get("task_index")):
        # Replaces a feature that is called `task`, since LeRobot itself returns the text under this name.
        fields[TASK] = Field(key=TASK, kind="text")
    videos = tuple(key for key in fields if key != TASK and features[key]["dtype"] == "video")
    return fields, videos, unread


def _is_one_number(field: Field | None) -> bool:
    return field is not None and field.kind == "number" and field.shape in ((), (1,))


def _field(key: str, feature: Any) -> Field:
    """A feature as a field.

    Raises:
        ValueError: it is of a kind that is not read; the message says why.
    """
    described = feature if isinstance(feature, dict) else {}
    dtype, shape = described.get("dtype"), described.get("shape")
    # 0 is no size either: the number of values could not be told from the lists' lengths.
    if not isinstance(shape, list) or not all(is_count(size) and size for size in shape):
        raise ValueError(f"its shape is {shape!r:.80}, where a list of whole numbers from 1 should be")
    if dtype in ("image", "video"):
        if _is_depth(described):
            raise ValueError("it holds depth maps, not colours")
        return Field(key=key, kind="image", shape=_image_shape(shape, dtype), dtype="uint8")
    if dtype in NUMBERS:
        if math.prod(shape) > LARGEST_VALUE:
            raise ValueError(f"its values have more than {LARGEST_VALUE:,} numbers")
        names = tuple(_names(described.get("names")))
        # Published names are lists, or objects such as {"motors": [...]}; with another count they would name the
        # wrong numbers.
        names = names if shape == [len(names)] else ()
        return Field(key=key, kind="number", shape=tuple(shape), dtype=dtype, names=names)
    if dtype == "string" and math.prod(shape) == 1:
        return Field(key=key, kind="text")
    raise ValueError(f"it has the dtype {dtype!r:.80} and the shape {shape!r:.80}, which are not read")


def _is_depth(feature: Mapping[str, Any]) -> bool:
    # Older sets say `video_info`, newer ones `info`; the key in it has changed its name too.
    places = (feature.get("info"), feature.get("video_info"))
    return any(
        isinstance(place, dict) and (place.get("is_depth_map") or place.get("video.is_depth_map")) for place in places
    )


def _image_shape(shape: list[int], dtype: str) -> tuple[int, int, int]:
    """(H, W, C), whichever way round it stands. `names` would say that, but published data sets have them wrong."""
    # Videos are decoded to RGB whatever they hold; stored images may be grey.
    channels = (3,) if dtype == "video" else (1, 3)
    # (C, H, W) to (H, W, C)
    if len(shape) == 3 and shape[2] not in channels and shape[0] in channels:
        shape = [shape[1], shape[2], shape[0]]
    if len(shape) != 3 or shape[2] not in channels:
        raise ValueError(f"its images have the shape {shape!r:.80}, where a height, a width and 3 channels should be")
    if shape[0] * shape[1] > LARGEST_IMAGE:
        raise ValueError(f"its images have {shape[0]} × {shape[1]} pixels, more than {LARGEST_IMAGE:,}")
    return shape[0], shape[1], shape[2]


def _names(names: Any) -> Iterator[str]:
    """All texts in lists and objects within each other, as deep as JSON is read."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, list | dict):
        for one in names.values() if isinstance(names, dict) else names:
            yield from _names(one)
