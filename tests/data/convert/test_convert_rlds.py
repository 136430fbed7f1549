"""RLDS from any format: the same steps are read back, by our reader and by TFDS itself."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import Opening

NUMBERS = itertools.count()
"""Of folders: hypothesis gives one test many sets."""


def steps_of(count: int, action: np.ndarray, **others: Any) -> dict[str, Any]:
    return {
        "observation": {"state": np.arange(count * 2, dtype=np.float32).reshape(count, 2)},
        "action": action,
    } | others


def plain(dtype: Any = np.float32, **others: Any) -> Any:
    """Features of RLDS without flags: every step has an action."""
    steps = {
        "observation": {"state": tfds.features.Tensor(shape=(2,), dtype=np.float32)},
        "action": tfds.features.Tensor(shape=(3,), dtype=dtype),
        **others,
    }
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})


def test_values_stay_and_jpeg_is_taken_over(tmp_path: Path, bridge: Path, convert: Any, check_same: Any) -> None:
    report = convert(bridge, tmp_path / "copy", "rlds")
    assert (report.episodes, report.steps, report.left_out, report.worst) == (7, 98, {}, 0.0)
    before, after = (open_episodes(path, Opening()) for path in (bridge, tmp_path / "copy"))
    assert {*before.fields} == {*after.fields}
    check_same(bridge, tmp_path / "copy", {key: key for key in before.fields if key not in ("is_first", "is_last")})
    for number in range(7):
        one, other = (found.read(number, ["observation/image_0"]).columns for found in (before, after))
        assert one["observation/image_0"] == other["observation/image_0"], "JPEG files must be taken over as they are"


def test_tfds_itself_reads_it(tmp_path: Path, bridge: Path, convert: Any) -> None:
    convert(bridge, tmp_path / "copy", "rlds")
    builder = tfds.builder_from_directory(str(tmp_path / "copy" / "1.0.0"))
    read, ours = builder.as_data_source()["train"], open_episodes(bridge, Opening())
    assert len(read) == len(ours) == 7
    for number in range(7):
        steps = [*read[number]["steps"]]
        raw = ours.read(number, ["action", "language_instruction", "observation/image_1"])
        np.testing.assert_array_equal([step["action"] for step in steps], raw.columns["action"])
        assert [step["language_instruction"].decode() for step in steps] == list(raw.columns["language_instruction"])
        assert steps[0]["observation"]["image_1"].shape == (64, 80, 3)
        assert [step["is_first"] for step in steps] == [True] + [False] * (len(steps) - 1)
        assert [step["is_last"] for step in steps] == [False] * (len(steps) - 1) + [True]


LAST = {
    "some": ([0.0, 1.0, 0.0], 3),
    "zeros": ([0.0, 0.0, 0.0], 4),
    "not finite": ([np.nan, 1.0, 1.0], 4),
}
"""The last of three actions, and how many steps are written: one more closes the episode where it would be taken for none."""


@pytest.mark.parametrize("last, written", LAST.values(), ids=LAST)
def test_a_last_action_is_read_back_whatever_it_is(
    tmp_path: Path, write_rlds: Any, convert: Any, check_same: Any, last: list[float], written: int
) -> None:
    action = np.array([[1, 2, 3], [0, 0, 0], last], np.float32)
    reward = np.array([1, 2, 3], np.float32)
    features = plain(reward=tfds.features.Scalar(np.float32))
    write_rlds(tmp_path / "source", features, [{"steps": steps_of(3, action, reward=reward)}])
    convert(tmp_path / "source", tmp_path / "new", "rlds")
    check_same(tmp_path / "source", tmp_path / "new", {key: key for key in ("action", "observation/state", "reward")})
    read = tfds.builder_from_directory(str(tmp_path / "new" / "1.0.0")).as_data_source()["train"]
    steps = [*read[0]["steps"]]
    assert len(steps) == written
    assert [bool(step["is_last"]) for step in steps] == [False] * (written - 1) + [True]
    assert steps[2]["reward"] == 3.0
    if written == 4:
        assert steps[3]["action"].tolist() == [0, 0, 0]
        assert steps[3]["reward"] == 0.0
        np.testing.assert_array_equal(steps[3]["observation"]["state"], steps[2]["observation"]["state"])


def test_the_observation_after_the_last_action_stays(tmp_path: Path, write_rlds: Any, convert: Any) -> None:
    flags = {key: tfds.features.Scalar(np.bool_) for key in ("is_first", "is_last", "is_terminal")}
    action, last = np.array([[1, 1, 1], [2, 2, 2], [0, 0, 0]], np.float32), np.array([False, False, True])
    values = steps_of(3, action, is_first=last[::-1], is_last=last, is_terminal=last)
    write_rlds(tmp_path / "source", plain(**flags), [{"steps": values}])
    assert convert(tmp_path / "source", tmp_path / "new", "rlds").steps == 2
    read = tfds.builder_from_directory(str(tmp_path / "new" / "1.0.0")).as_data_source()["train"]
    steps = [*read[0]["steps"]]
    assert [bool(step["is_terminal"]) for step in steps] == last.tolist()
    assert [step["observation"]["state"].tolist() for step in steps] == [[0, 1], [2, 3], [4, 5]]
    # And once more, from what was written.
    convert(tmp_path / "new", tmp_path / "again", "rlds")
    again = tfds.builder_from_directory(str(tmp_path / "again" / "1.0.0")).as_data_source()["train"]
    assert [step["observation"]["state"].tolist() for step in again[0]["steps"]] == [[0, 1], [2, 3], [4, 5]]


def test_a_termination_of_another_format_is_marked(tmp_path: Path, write_rlds: Any, convert: Any) -> None:
    ends = [np.array([False, True]), np.array([False, False])]
    made = [{"steps": steps_of(2, np.zeros((2, 3), np.float32), terminations=end)} for end in ends]
    write_rlds(tmp_path / "source", plain(terminations=tfds.features.Scalar(np.bool_)), made)
    convert(tmp_path / "source", tmp_path / "new", "rlds")
    read = tfds.builder_from_directory(str(tmp_path / "new" / "1.0.0")).as_data_source()["train"]
    marked = [[bool(step["is_terminal"]) for step in read[number]["steps"]] for number in range(2)]
    assert marked == [[False, False, True], [False, False, False]], "the closing step is the terminal one"


def test_names_that_are_taken(tmp_path: Path, write_rlds: Any, convert: Any) -> None:
    number, names = tfds.features.Scalar(np.int64), ("index", "task", "..", "a/b", "a.b")
    steps = {"observation": {"state": tfds.features.Tensor(shape=(2,), dtype=np.float32)}}
    steps |= {"action": tfds.features.Tensor(shape=(3,), dtype=np.float32), "a": {"b": number}}
    steps |= {name: number for name in names if name != "a/b"}
    values = steps_of(2, np.ones((2, 3), np.float32), a={"b": np.arange(2)})
    values |= {name: np.full(2, place) for place, name in enumerate(names) if name != "a/b"}
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})
    write_rlds(tmp_path / "source", features, [{"steps": values}])
    new = convert(tmp_path / "source", tmp_path / "new", "lerobot", rate=1.0).fields
    assert {new[name] for name in ("a/b", "a.b")} == {"a.b", "source.a.b"}
    assert [new[name] for name in ("index", "task", "..")] == ["source.index", "source.task", "source..."]


def test_an_instruction_is_given_and_a_rate_is_kept(tmp_path: Path, write_rlds: Any, convert: Any) -> None:
    values = {"steps": steps_of(2, np.ones((2, 3), np.float32))}
    write_rlds(tmp_path / "source", plain(), [values])
    convert(tmp_path / "source", tmp_path / "new", "rlds", instruction="lift it", rate=12.5)
    found = open_episodes(tmp_path / "new", Opening())
    assert found.rate == 12.5
    assert list(found.read(0, ["language_instruction"]).columns["language_instruction"]) == ["lift it"] * 2
    with pytest.raises(ValueError, match=r"--rate 10: .* says that it has 12.5 steps per second"):
        convert(tmp_path / "new", tmp_path / "other", "rlds", rate=10.0)


def test_what_cannot_be_written_is_named_with_a_remedy(tmp_path: Path, write_rlds: Any, convert: Any) -> None:
    odd = tfds.features.Image(shape=(4, 4, 4))
    values = steps_of(1, np.ones((1, 3), np.float32))
    values["observation"]["picture"] = [np.zeros((4, 4, 4), np.uint8)]
    features = plain()
    features = tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "observation": {"state": tfds.features.Tensor(shape=(2,), dtype=np.float32), "picture": odd},
                    "action": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                }
            )
        }
    )
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA").save(buffer, "PNG")
    values["observation"]["picture"] = [buffer.getvalue()]
    write_rlds(tmp_path / "source", features, [{"steps": values}])
    with pytest.raises(
        ValueError, match=r"'observation/picture' can't be written, .* 4: leave it out with --without observation"
    ):
        convert(tmp_path / "source", tmp_path / "new", "lerobot", rate=1.0)
    convert(tmp_path / "source", tmp_path / "new", "rlds")
    with pytest.raises(ValueError, match="--without nothing: there is no such field, only action"):
        convert(tmp_path / "source", tmp_path / "other", "rlds", without=("nothing",))
    with pytest.raises(ValueError, match="this is the action"):
        convert(tmp_path / "source", tmp_path / "other", "rlds", without=("action",))


TYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint16", "uint64", "bool")


@st.composite
def random_sets(draw: Callable[..., Any]) -> tuple[Any, list[Any]]:
    """Features and episodes of a set with numbers of some type, texts, images and values of the episode."""
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    shape = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    rng, flagged = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.booleans())
    wide = dtype.name in ("float64", "uint64")
    number = tfds.features.Tensor(shape=shape, dtype=dtype.type, encoding="bytes" if wide else "none")
    steps = {"observation": {"x": number, "camera": tfds.features.Image(shape=(None, None, 3))}, "action": number}
    steps |= {"note": tfds.features.Text(), "reward": tfds.features.Scalar(np.float32)}
    steps |= {"is_last": tfds.features.Scalar(np.bool_)} if flagged else {}
    features = tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(steps), "seed": tfds.features.Scalar(np.int64)}
    )
    episodes = []
    for index, count in enumerate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))):
        values = {name: _random(rng, dtype, (count, *shape), draw(st.booleans())) for name in ("x", "action")}
        if wide:
            values = {name: [row.tobytes() for row in rows] for name, rows in values.items()}
        made: dict[str, Any] = {"observation": {"x": values["x"], "camera": _images(rng, count)}}
        made |= {"action": values["action"], "note": [f"ü{step}".encode() for step in range(count)]}
        made |= {"reward": rng.normal(size=count).astype(np.float32)}
        made |= {"is_last": np.arange(count) == count - 1} if flagged else {}
        episodes.append({"steps": made, "seed": index})
    return features, episodes


def _random(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...], ends_at_zero: bool) -> np.ndarray:
    if dtype.kind == "f":
        values = rng.normal(size=shape).astype(dtype)
        values[rng.random(shape) < 0.1] = np.nan
    else:
        limits = (0, 2) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        values = rng.integers(*limits, size=shape, dtype=np.uint8 if dtype.kind == "b" else dtype).astype(dtype)
    if ends_at_zero:
        values[-1] = 0
    return values


def _images(rng: np.random.Generator, count: int) -> list[bytes]:
    from generalist.envs.rlds import png

    return [png(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)) for _ in range(count)]


NAMES = {key: key for key in ("observation/x", "observation/camera", "action", "note", "reward", "seed")}


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random_sets(), st.booleans())
def test_random_sets_are_read_back(
    tmp_path: Path, write_rlds: Any, convert: Any, check_same: Any, made: tuple[Any, list[Any]], by_lerobot: bool
) -> None:
    folder = tmp_path / str(next(NUMBERS))
    write_rlds(folder / "source", *made)
    if not open_episodes(folder / "source", Opening()).lengths.any():
        with pytest.raises(ValueError, match="no episode"):
            convert(folder / "source", folder / "new", "rlds")
        return
    source = folder / "source"
    if by_lerobot:
        there = convert(source, folder / "there", "lerobot", images="png", rate=10.0).fields
        check_same(source, folder / "there", {key: there[key] for key in NAMES})
        source = folder / "there"
    convert(source, folder / "new", "rlds")
    check_same(folder / "source", folder / "new", NAMES)
    described = json.loads((folder / "new" / "1.0.0" / "dataset_info.json").read_text())
    assert described["fileFormat"] == "array_record"
