"""What is wrong with a data set of LeRobot is said by name, and whatever else it holds is read."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from generalist.data.formats.columns import decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import Opening
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.lerobot_info import CHECKED
from tests.data.formats.coded_videos import coded, write_video
from tests.data.formats.lerobot_sets import (
    FPS,
    LENGTHS,
    VERSIONS,
    Written,
    check_episode,
    file_numbers,
    footage_times,
    shown,
)


@VERSIONS
@pytest.mark.parametrize(
    ("key", "values", "told"),
    [
        (
            "timestamp",
            {3: 0.2},
            r"in row {row3} timestamp is 0.2\d*, where 0.15 should be \(step 3 at 20 steps per second\)",
        ),
        ("timestamp", {0: float("nan")}, "in row {row0} timestamp is nan, where 0 should be"),
        ("timestamp", {1: None}, "'timestamp' has no value at position 1"),
        ("frame_index", {2: 3}, "in row {row2} frame_index is 3, where 2 should be"),
        ("episode_index", {4: 0}, "in row {row4} episode_index is 0, where 1 should be"),
        ("task_index", {5: 4}, "step 5 has the task_index 4, which is not among the tasks"),
        ("note", {5: None}, "'note' has no value at position 5"),
        ("observation.grid", {1: [[1, 2], [3]]}, "'observation.grid' has lists of other lengths than 2"),
        (
            "observation.grid",
            {1: [[1, 2]]},
            "'observation.grid' has lists of other lengths than 2, the first at position 1",
        ),
        ("observation.image", {1: {"bytes": None, "path": "../../x.png"}}, "image 1 of 'observation.image' .*outside"),
        (
            "observation.image",
            {1: {"bytes": None, "path": "frame_1.png"}},
            "image 1 of 'observation.image' can't be read",
        ),
    ],
)
def test_wrong_rows(version: str, key: str, values: dict[int, Any], told: str, written: Written) -> None:
    for step, value in values.items():
        written.rows[1][key][step] = value
    data = open_episodes(written.version(version), Opening())
    first = 0 if version == "v2" else LENGTHS[0]
    told = told.format(**{f"row{step}": first + step for step in range(6)})
    with pytest.raises(BrokenRecord, match=r"data/\S+\.parquet, episode 1: .*" + told):
        data.read(1, list(data.fields))
    for index in (0, 2, 3):
        check_episode(data, index)


@VERSIONS
@pytest.mark.parametrize(
    ("feature", "told"),
    [
        ({"dtype": "float32", "shape": [4]}, "'observation.state' has lists of other lengths than 4"),
        (
            {"dtype": "float32", "shape": [3, 1]},
            "'observation.state' is stored as fixed_size_list.*, where a list of 1",
        ),
        ({"dtype": "int64", "shape": [3]}, "'observation.state' is stored as fixed_size_list.*, where int64 should be"),
        ({"dtype": "string", "shape": [1]}, "'observation.state' is stored as .*, where texts should be"),
        (
            {"dtype": "image", "shape": [4, 4, 3]},
            "'observation.state' is stored as .*, where a struct of bytes and path",
        ),
    ],
)
def test_other_types_than_described(version: str, feature: Any, told: str, written: Written) -> None:
    written.info["features"]["observation.state"] = feature
    data = open_episodes(written.version(version), Opening())
    with pytest.raises(BrokenRecord, match=f"episode 0: the field {told}"):
        data.read(0, ["observation.state"])


@VERSIONS
def test_missing_column_and_file(version: str, written: Written) -> None:
    written.info["features"]["more"] = {"dtype": "float32", "shape": [2]}
    data = open_episodes(written.version(version), Opening())
    with pytest.raises(BrokenRecord, match=r"\.parquet has 0 columns 'more', where one should be"):
        data.read(0, ["more"])
    files = len(data.files)
    next((written.folder / "data").glob("chunk-000/*0.parquet")).unlink()
    with pytest.raises(BrokenRecord, match=r"\.parquet can't be read \(.*No such file"):
        data.read(0, ["action"])
    assert len(data.files) == files - 1


@VERSIONS
@pytest.mark.parametrize(("length", "told"), [(8, "it goes on after row {last}, where it should end"), (10, ".*")])
def test_lengths_of_lists_and_rows_differ(version: str, length: int, told: str, written: Written) -> None:
    written.lists["length"][1] = length
    if version == "v3":
        start = LENGTHS[0]
        written.lists |= {"dataset_from_index": [0, start, start + 9, start + 13]}
        written.lists |= {"dataset_to_index": [start, start + length, start + 13, start + 20]}
    data = open_episodes(written.version(version), Opening())
    told = told.format(last=7 if version == "v2" else LENGTHS[0] + 7)
    with pytest.raises(BrokenRecord, match=told):
        data.read(1, ["action"])
    assert len(data.read(0, ["action"])) == LENGTHS[0]


def test_rows_of_another_file(written: Written) -> None:
    """One index for the data and a camera, as a reader of others had it, gives rows of other episodes."""
    written.lists |= {"data/chunk_index": [0, 1, 1, 1]}
    data = open_episodes(written.v3(), Opening())
    with pytest.raises(BrokenRecord, match="episode_index is 2, where 1 should be|has 4 rows, where 0 to 9 should be"):
        data.read(1, ["action"])


def test_episodes_of_version_3_that_contradict_themselves(written: Written) -> None:
    stops = np.cumsum(LENGTHS).tolist()
    written.lists |= {"length": [5, 0, 4, 7], "dataset_to_index": [stops[0], stops[1], stops[2] + 3, stops[3]]}
    data = open_episodes(written.v3(), Opening())
    assert data.lengths.tolist() == [5, 0, 0, 7] and set(data.broken()) == {1, 2}
    assert "episode 2 has the length 4, rows 14 to 21 and the file 1/0, which can't be" in data.broken()[2]
    with pytest.raises(BrokenRecord, match="episode 1 has the length 0"):
        data.read(1, ["action"])
    for index in (0, 3):
        check_episode(data, index)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("from_timestamp", -1.0, "is said to show it from -1.0 to"),
        ("from_timestamp", float("nan"), "is said to show it from nan to"),
        ("to_timestamp", float("inf"), r"is said to show it from 0.0 to inf s"),
        ("to_timestamp", 1.45, r"which are 29.0 frames, where it has 9 steps: frames of something else"),
        ("file_index", -1, "is said to show it"),
    ],
)
def test_footage_that_contradicts_itself(key: str, value: float, told: str, written: Written) -> None:
    found = footage_times("videos/front", written.video_files["front"]) | file_numbers(
        "videos/front", written.video_files["front"]
    )
    changed = found[f"videos/front/{key}"]
    changed[1] = value
    written.lists[f"videos/front/{key}"] = changed
    data = open_episodes(written.v3(), Opening())
    with pytest.raises(BrokenRecord, match=f"episode 1: .*{told}"):
        data.read(1, ["front"])
    data.read(1, ["side"])
    data.read(2, ["front"])


def test_frames_of_discarded_takes(written: Written) -> None:
    folder = written.v2()
    file = folder / "videos/chunk-000/front/episode_000001.mp4"
    write_video(file, [coded(shown("front", 1, step)) for step in range(15)], fps=FPS)
    data = open_episodes(folder, Opening())
    with pytest.raises(
        BrokenRecord, match="episode_000001.mp4, episode 1: the video has 15 frames, where the episode has 9"
    ):
        decode(data.read(1, ["front"]).columns["front"][:2])


@VERSIONS
def test_lost_and_surplus_episodes(version: str, written: Written) -> None:
    written.info["total_episodes"] = 6
    data = open_episodes(written.version(version), Opening())
    assert set(data.broken()) == {4, 5} and "counts 6 episodes, of which 2 are not listed" in data.broken()[5]
    for total in (3, 9, 10**15):
        written.info["total_episodes"] = total
        shutil.rmtree(written.folder)
        with pytest.raises(ValueError, match=f"total_episodes {total}, where 4 are listed"):
            open_episodes(written.version(version), Opening())


@VERSIONS
@pytest.mark.parametrize(("numbers", "told"), [([0, 1, 1, 3], "lists episode 1 twice"), ([], "lists no episodes")])
def test_episodes_listed_wrongly(
    version: str, numbers: list[int], told: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole[version], folder)
    if version == "v2":
        lines = [json.dumps({"episode_index": number, "length": LENGTHS[number]}) + "\n" for number in numbers]
        (folder / "meta/episodes.jsonl").write_text("".join(lines))
    else:
        (folder / "meta/episodes/chunk-000/file-001.parquet").unlink()
        file = folder / "meta/episodes/chunk-000/file-000.parquet"
        content = (
            pq.read_table(file)[: len(numbers)] if not numbers else pa.concat_tables([pq.read_table(file)] * 2)[:4]
        )
        told = told.replace("episode 1", "episode 0")
        pq.write_table(content, file)
    with pytest.raises(ValueError, match=told):
        open_episodes(folder, Opening())


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[1]", "[" * 100_000, "9" * 5000, '{"episode_index": 1}', '{"episode_index": true, "length": 3}'),
        *(f'{{"episode_index": 1, "length": {length}}}' for length in ("-3", "2.5", "NaN", "1e3", "null", "9" * 20)),
    ],
)
def test_lines_of_version_2(line: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole["v2"], folder)
    with (folder / "meta/episodes.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"episodes.jsonl, line 5 .*copy it again"):
        open_episodes(folder, Opening())


@VERSIONS
@pytest.mark.parametrize("name", ["tasks", "episodes"])
def test_missing_descriptions(version: str, name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole[version], folder)
    for file in list((folder / "meta").glob(f"{name}*")):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    with pytest.raises((FileNotFoundError, ValueError), match="tasks|episodes|codebase_version 'v3.0'"):
        open_episodes(folder, Opening())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"codebase_version": "v1.6"},
            r"codebase_version 'v1.6', where .* read as v3.0: convert it .*convert_dataset_v1_to_v2",
        ),
        ({"codebase_version": "v4.0"}, "codebase_version 'v4.0'"),
        ({"codebase_version": "v2.1"}, "codebase_version 'v2.1'"),
        ({"codebase_version": None}, "codebase_version None"),
        ({"codebase_version": ["v3.0"]}, "codebase_version"),
        ({"fps": 0}, "'fps' must be a number above 0, got 0"),
        ({"fps": True}, "'fps' must be a number"),
        ({"fps": "20"}, "'fps' must be a number"),
        ({"fps": float("nan")}, "'fps' must be a number"),
        ({"fps": float("inf")}, "'fps' must be a number"),
        ({"total_episodes": None}, "'total_episodes' must be a whole number"),
        ({"chunks_size": 0}, "'chunks_size' must be a whole number from 1, got 0"),
        ({"data_path": None}, "'data_path' must be a path"),
        ({"data_path": "{chunk_index.__class__}/{file_index}"}, "'data_path' must be a path"),
        ({"data_path": "{chunk_index!r}/{file_index}"}, "'data_path' must be a path"),
        ({"data_path": "{chunk_index:9999999d}"}, "'data_path' must be a path"),
        ({"data_path": "{0}"}, "nothing in braces but {chunk_index}"),
        ({"data_path": "{episode_index:06d}"}, "nothing in braces but {chunk_index}, {file_index}, {video_key}"),
        ({"video_path": "{video_key:03d}.mp4"}, "nothing in braces but"),
        ({"video_path": None}, "'video_path' must be a path"),
        ({"splits": ["train"]}, "'splits' must be an object"),
        ({"splits": {"train": "0-3"}}, "'splits.train' must be a range of episodes such as '0:50', got '0-3'"),
        ({"features": None}, "'features' must be an object"),
        ({"features": {}}, "'features.episode_index' must be a number per frame"),
    ],
)
def test_wrong_descriptions(change: Any, told: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole["v3"], folder)
    file = folder / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"{file}.* {told}"):
        open_episodes(folder, Opening())


@pytest.mark.parametrize(
    "path", ["../{chunk_index}.parquet", "/etc/{chunk_index}", "s3://bucket/{chunk_index}", "a\\{chunk_index}"]
)
@pytest.mark.parametrize("key", ["data_path", "video_path"])
def test_paths_that_lead_out_of_the_folder(key: str, path: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole["v3"], folder)
    file = folder / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: path}))
    with pytest.raises(ValueError, match=f"{file} names .*, which is outside"):
        open_episodes(folder, Opening())


@pytest.mark.parametrize(
    "feature",
    [
        *(None, [], {}, {"dtype": "float32"}, {"dtype": "float32", "shape": 3}, {"dtype": "float32", "shape": [0]}),
        *({"dtype": "float32", "shape": [-1]}, {"dtype": "float32", "shape": [2.5]}, {"dtype": "object", "shape": [1]}),
        *(
            {"dtype": ["float32"], "shape": [1]},
            {"dtype": "float32", "shape": [2**30, 2**30]},
            {"dtype": "V8", "shape": [1]},
        ),
        *(
            {"dtype": "video", "shape": [32, 64]},
            {"dtype": "video", "shape": [32, 64, 4]},
            {"dtype": "string", "shape": [2]},
        ),
        *({"dtype": "image", "shape": [10**6, 10**6, 3]}, {"dtype": "complex64", "shape": [1]}),
    ],
)
def test_features_that_are_not_read(feature: Any, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole["v2"], folder)
    file = folder / "meta" / "info.json"
    content = json.loads(file.read_text())
    content["features"]["odd"] = feature
    file.write_text(json.dumps(content))
    data = open_episodes(folder, Opening())
    assert "odd" not in data.fields and data.unread["odd"]
    assert len(data.read(0, ["action"])) == LENGTHS[0]


ODD: tuple[Any, ...] = (None, True, -1, 2**70, float("nan"), "../x", "\0", "\ud800", [[]], {"a": 1})


def replaced(content: Any, odd: Any) -> Iterator[Any]:
    """A description with one of its values replaced, for each."""
    yield odd
    for key, value in (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    ):
        for other in replaced(value, odd):
            changed = content.copy()
            changed[key] = other
            yield changed


@pytest.mark.slow
@VERSIONS
def test_odd_values_anywhere_in_a_description(version: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder, refused, opened = tmp_path / "set", 0, 0
    shutil.copytree(whole[version], folder)
    file = folder / "meta" / "info.json"
    content = json.loads(file.read_text())
    keep = ("front", "task_index", *CHECKED)
    content["features"] = {key: content["features"][key] for key in keep}
    for odd in ODD:
        for changed in replaced(content, odd):
            file.write_text(json.dumps(changed))
            try:
                data = open_episodes(folder, Opening(index=tmp_path / "index"))
                data.where(0)
                data.read(0, list(data.fields))
                opened += 1
            except ValueError:
                refused += 1
    assert opened > 100 and refused > 100


@pytest.mark.slow
@VERSIONS
def test_damaged_files(version: str, whole: dict[str, Path], tmp_path: Path) -> None:
    """Whatever bytes of whatever file are changed, cut off or added: an error that says so, or episodes of the right form; the
    same numbers if only rows were damaged, which have checksums."""
    rng, refused, folder = np.random.default_rng(0), 0, tmp_path / "set"
    shutil.copytree(whole[version], folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    keys = ["action", "observation.state", "observation.image", "note", "task"]
    data = open_episodes(folder, Opening(index=tmp_path / "index"))
    sound = [data.read(index, keys).columns for index in range(len(data))]
    for trial in range(80):
        file = files[trial % len(files)]
        content = file.read_bytes()
        file.write_bytes(damaged(content, rng))
        try:
            data = open_episodes(folder, Opening(index=tmp_path / "index"))
            for index in range(len(data)):
                episode = data.read(index, [key for key in [*keys, "front"] if key in data.fields])
                for key, column in episode.columns.items():
                    assert len(column) == len(episode)
                    if file.parent.parent.name == "data" and key != "front":
                        np.testing.assert_array_equal(column, sound[index][key])
                decode(episode.columns["front"][:1]) if "front" in episode.columns else None
        except (ValueError, FileNotFoundError):
            refused += 1
        file.write_bytes(content)
    assert refused > 30


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut off or added."""
    changed, position = bytearray(content), int(rng.integers(len(content)))
    kind = rng.integers(3)
    if kind == 0:
        return content[:position]
    if kind == 1:
        return content[:position] + bytes(rng.integers(0, 256, 5, np.uint8)) + content[position:]
    for place in rng.integers(0, len(content), 3):
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)
