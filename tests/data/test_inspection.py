"""Inspection of episodes: a clean set gives no problem, and each planted one is found and named."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from tensorflow_datasets.proto import tf_example_pb2

from generalist.data.documents import Documents
from generalist.data.formats.episodes import Field
from generalist.data.formats.tfrecord import framed, records
from generalist.data.inspection import documents as of_documents
from generalist.data.inspection.episodes import histogram, inspect
from generalist.data.inspection.problems import Problem, listed
from generalist.data.inspection.shown import shown
from generalist.data.inspection.timestamps import fields_with_times
from generalist.data.recorded import Dataset, opened

Columns = dict[str, Any]
"""Key of a step's field → (T, ...) numbers, or T images or texts."""
RATE = 10.0
QUIET = Console(quiet=True)


def write_rlds(folder: Path, episodes: list[Columns]) -> Path:
    """A TFDS folder of RLDS in one TFRecord file."""
    folder = folder / "robot" / "1.0.0"
    folder.mkdir(parents=True)
    nested: dict[str, Any] = {}
    for key, column in episodes[0].items():
        outer, _, inner = key.rpartition("/")
        (nested.setdefault(outer, {}) if outer else nested)[inner] = _feature(column)
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(nested)})
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    content = b"".join(framed(_example(one)) for one in episodes)
    (folder / "robot-train.tfrecord-00000-of-00001").write_bytes(content)
    split = {"name": "train", "shardLengths": [str(len(episodes))]}
    info = {"name": "robot", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def _feature(column: Any) -> Any:
    if isinstance(column, np.ndarray):
        return tfds.features.Tensor(shape=column.shape[1:], dtype=column.dtype.type)
    return tfds.features.Image(shape=(8, 8, 3)) if isinstance(column[0], bytes) else tfds.features.Text()


def _example(columns: Mapping[str, Any]) -> bytes:
    example = tf_example_pb2.Example()
    for key, column in columns.items():
        stored = example.features.feature[f"steps/{key}"]
        if not isinstance(column, np.ndarray):
            stored.bytes_list.value.extend(one if isinstance(one, bytes) else one.encode() for one in column)
        elif column.dtype.kind == "f":
            stored.float_list.value.extend(column.reshape(-1).tolist())
        else:
            stored.int64_list.value.extend(column.reshape(-1).tolist())
    return example.SerializeToString()


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def clean(count: int = 10, steps: int = 30) -> list[Columns]:
    """Episodes with nothing wrong."""
    rng = np.random.default_rng(0)
    return [
        {
            "observation/state": rng.normal(size=(steps, 3)).astype(np.float32),
            "observation/image": [png(pixels) for pixels in rng.integers(0, 256, (steps, 8, 8, 3), np.uint8)],
            "action": rng.normal(size=(steps, 2)).astype(np.float32),
            "timestamp": (np.arange(steps) / RATE + rng.normal(0, 0.003, steps)).astype(np.float32),
            "reward": np.arange(steps, dtype=np.float32),
            "instruction": ["lift the block"] * steps,
        }
        for _ in range(count)
    ]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    opened.cache_clear()
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "cache"))


def inspected(folder: Path, whole: bool = False) -> tuple[dict[str, Any], list[Problem]]:
    found = opened(Dataset(path=str(folder)))
    found.episodes.rate = RATE  # of which RLDS says nothing
    about, problems = inspect("robot", found, QUIET, whole=whole)
    json.dumps(about, allow_nan=False)
    return about, problems


def test_a_clean_set_has_no_problem_and_its_facts(tmp_path: Path) -> None:
    about, problems = inspected(write_rlds(tmp_path, clean()), whole=True)
    assert problems == []
    assert (about["episodes"], about["steps"], about["files"], about["broken"]) == (10, 300, 1, [])
    assert about["lengths"]["min"] == about["lengths"]["max"] == 30
    assert about["returns"]["median"] == np.arange(30).sum()
    assert about["instructions"] == {
        "field": "instruction",
        "different": 1,
        "empty": 0,
        "most": [["lift the block", 10]],
    }
    used = {field["key"]: field["used_as"] for field in about["fields"]}
    assert used == {
        "observation/image": "observation 'image'",
        "observation/state": "observation 'state'",
        "action": "action",
        "instruction": "instruction",
        "reward": "reward",
        "timestamp": None,
    }
    state = next(field for field in about["fields"] if field["key"] == "observation/state")
    values = np.concatenate([one["observation/state"] for one in clean()])
    for place, numbers in enumerate(state["numbers"]):
        assert numbers["name"] == f"observation/state[{place}]"
        assert numbers["low"] == pytest.approx(values[:, place].min())
        assert numbers["mean"] == pytest.approx(values[:, place].mean(), abs=1e-6)
        assert numbers["quantiles"]["0.5"] == pytest.approx(np.median(values[:, place]))
    assert about["cameras"][0]["frames"] == 300 and about["cameras"][0]["shapes"] == [[8, 8, 3]]
    (times,) = about["timestamps"]
    assert times["rate"] == pytest.approx(RATE, rel=0.03) and times["unit"] == "s" and times["gaps"] == 0


def nan(episodes: list[Columns]) -> None:
    episodes[3]["observation/state"][5, 1] = np.nan


def constant(episodes: list[Columns]) -> None:
    for one in episodes:
        one["action"][:, 1] = 0.5


def near_constant(episodes: list[Columns]) -> None:
    for one in episodes:
        one["observation/state"][:, 2] = 1.0
    episodes[4]["observation/state"][7, 2] = 0.0


def saturated(episodes: list[Columns]) -> None:
    for one in episodes:
        one["action"][:, 0] = np.clip(one["action"][:, 0], -0.3, 0.3)


def outlier(episodes: list[Columns]) -> None:
    for one in episodes:
        one["observation/state"][:, 0] = np.tile(one["observation/state"][:, 0], 300)[: len(one["action"])]
    episodes[2]["observation/state"][9, 0] = 1e6


def back(episodes: list[Columns]) -> None:
    episodes[6]["timestamp"][12:] -= 1.0


def twice(episodes: list[Columns]) -> None:
    episodes[6]["timestamp"][12:] += episodes[6]["timestamp"][11] - episodes[6]["timestamp"][12]


def gap(episodes: list[Columns]) -> None:
    episodes[6]["timestamp"][12:] += 1.0


def slow(episodes: list[Columns]) -> None:
    for one in episodes:
        one["timestamp"] *= 2


def duplicate(episodes: list[Columns]) -> None:
    episodes[7] = episodes[2]


def same_actions(episodes: list[Columns]) -> None:
    episodes[7]["action"] = episodes[2]["action"]


def one_step(episodes: list[Columns]) -> None:
    episodes[8] = {key: column[:1] for key, column in episodes[8].items()}


def still(episodes: list[Columns]) -> None:
    episodes[8]["action"][:] = [0.25, -0.5]


def last_zero(episodes: list[Columns]) -> None:
    for one in episodes:
        one["action"][-1] = 0


def last_again(episodes: list[Columns]) -> None:
    for one in episodes:
        one["action"][-1] = one["action"][-2]


def first_zero(episodes: list[Columns]) -> None:
    for one in episodes:
        one["action"][0] = 0


def untold(episodes: list[Columns]) -> None:
    episodes[1]["instruction"] = [" "] * len(episodes[1]["instruction"])


def frozen(episodes: list[Columns]) -> None:
    episodes[5]["observation/image"] = episodes[5]["observation/image"][:1] * 30


def dark(episodes: list[Columns]) -> None:
    black = [np.full((8, 8, 3), number % 2, np.uint8) for number in range(30)]
    episodes[5]["observation/image"] = [png(pixels) for pixels in black]


# What is planted, the kind under which it is found, where, and what the message says, with the episode that it names.
PLANTED: list[tuple[Callable[[list[Columns]], None], str, str, str, int | None]] = [
    (nan, "not_finite", "observation/state", "1 value (NaN or infinite) of observation/state[1]: step 5 of ", 3),
    (constant, "constant", "action", "1 number of 2 (action[1]) never changes", None),
    (near_constant, "near_constant", "observation/state", "(observation/state[2]) has one value in 99.5%", None),
    (saturated, "saturated", "action", "(action[0]) is at its lowest or highest value", None),
    (back, "timestamps", "timestamp", "1 backward step in 1 episode: step 12 of ", 6),
    (twice, "timestamps", "timestamp", "1 repeated time in 1 episode: step 12 of ", 6),
    (gap, "timestamps", "timestamp", "1 gap in 1 episode: step 12 of ", 6),
    (slow, "timestamps", "timestamp", "per second), but the files say 10 per second", None),
    (duplicate, "duplicate", "episodes", "1 repetition of another episode", 7),
    (same_actions, "same_actions", "action", "in 1 group of episodes", 7),
    (one_step, "one_step", "episodes", "1 episode of one step", 8),
    (still, "still", "action", "the action never changes in 1 episode", 8),
    (last_zero, "last_action", "action", "the last action is zero in 100% of the episodes", None),
    (last_again, "last_action", "action", "the last action is that before it again in 100%", None),
    (first_zero, "first_action", "action", "the first action is zero in 100%", None),
    (untold, "empty_instruction", "instruction", "1 episode without an instruction", 1),
    (frozen, "frozen_camera", "observation/image", "the image never changes in 1 episode", 5),
    (dark, "frozen_camera", "observation/image", "the image is black in 1 episode", 5),
]


@pytest.mark.parametrize(
    ("plant", "kind", "where", "says", "episode"), PLANTED, ids=[plant[0].__name__ for plant in PLANTED]
)
def test_what_is_planted_is_found_by_name_and_nothing_else(
    tmp_path: Path, plant: Callable[[list[Columns]], None], kind: str, where: str, says: str, episode: int | None
) -> None:
    episodes = clean()
    plant(episodes)
    folder = write_rlds(tmp_path, episodes)
    _, problems = inspected(folder)
    assert [(one.kind, one.where) for one in problems] == [(kind, where)]
    assert says in problems[0].what and problems[0].remedy
    if episode is not None:
        assert opened(Dataset(path=str(folder))).episodes.where(episode) in problems[0].what


def test_an_outlier_is_found(tmp_path: Path) -> None:
    episodes = clean(count=20, steps=200)
    outlier(episodes)
    _, problems = inspected(write_rlds(tmp_path, episodes))
    assert [one.kind for one in problems] == ["outlier"] and "observation/state[0]" in problems[0].what


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    folder = write_rlds(tmp_path, clean())
    file = next(folder.glob("*.tfrecord-*"))
    record = [*records(file)][4]
    content = bytearray(file.read_bytes())
    content[record.offset + 100] ^= 1
    file.write_bytes(bytes(content))
    about, problems = inspected(folder)
    assert [one.kind for one in problems] == ["broken"]
    assert f"{file}, offset {record.offset}" in problems[0].where and "1 record of 10" in problems[0].what
    assert about["broken_count"] == 1 and about["broken"][0]["record"] == 4


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    episodes = clean(count=3)
    episodes[1]["observation/image"][29] = b"no image"
    folder = write_rlds(tmp_path, episodes)
    _, problems = inspected(folder, whole=True)
    assert [one.kind for one in problems] == ["broken"]
    assert opened(Dataset(path=str(folder))).episodes.where(1) in problems[0].where


@pytest.mark.slow
def test_the_same_by_any_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = clean()
    for plant in (nan, duplicate, gap):
        plant(episodes)
    folder = write_rlds(tmp_path, episodes)
    alone = inspected(folder)
    monkeypatch.setattr("generalist.data.inspection.scan.FEW", 0)
    assert inspected(folder) == alone


def test_pictures_are_frames_and_curves(tmp_path: Path) -> None:
    found = opened(Dataset(path=str(write_rlds(tmp_path, clean(count=4)))))
    pictures = shown("robot", found.episodes, found.mapping)
    assert [strip.episode for strip in pictures.strips] == [0, 2, 3]
    assert pictures.strips[0].frames.shape == (6, 8, 8, 3) and pictures.strips[0].steps == [0, 6, 12, 17, 23, 29]
    assert {curve.key: curve.values.shape for curve in pictures.curves} == {
        "action": (30, 2),
        "observation/state": (30, 3),
        "reward": (30, 1),
    }


def test_timestamps_are_known_by_their_names() -> None:
    keys = ("timestamp", "observation/timestamp", "next.timestamp", "observation/time_ns", "timestep", "time/action")
    fields = {key: Field(key=key, kind="number", dtype="float32") for key in keys}
    assert fields_with_times(fields) == [*keys[:4]]


def test_a_histogram_of_whole_numbers_has_a_bar_for_each() -> None:
    found = histogram(np.array([1, 1, 2, 4]))
    assert found is not None and found["counts"] == [2, 1, 0, 1] and found["total"] == 8
    assert histogram(np.zeros(0)) is None


def test_lists_end_after_a_few() -> None:
    assert listed([1, 2, 3], 2) == "1, 2 and 1 more"


def test_documents(tmp_path: Path) -> None:
    Image.new("RGB", (12, 9), (200, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    lines = [
        {"image": "red.png", "text": "red"},
        {"text": "no image at all"},
        {"content": ["a", {"image": "red.png"}, "b", {"image": "red.png"}]},
        {"image": "bad.png", "text": "broken", "score": 3},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    about, problems = of_documents.inspect("documents", Documents(path, unreadable=1.0), QUIET, whole=True)
    assert (
        about["documents"] == 4
        and "JSON" in about["format"]
        and about["kinds"] == {"interleaved": 1, "pair": 1, "text": 1}
    )
    assert about["widths"]["min"] == about["widths"]["max"] == 12 and about["images"]["total"] == 3
    assert [one.kind for one in problems] == ["broken", "unread"]
    assert "own.jsonl line 4" in problems[0].where and "'score' of 1 documents" in problems[1].what
