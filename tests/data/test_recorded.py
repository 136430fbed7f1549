"""Recorded episodes as training reads them: spaces, rates, chunks, what is held out and left out, statistics of the whole."""

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from generalist.data import statistics as statistics_module
from generalist.data.episodes import EpisodeCache
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import Opening
from generalist.data.formats.faults import TooManyBroken
from generalist.data.formats.tfrecord import framed, records
from generalist.data.recorded import Dataset, RecordedEpisodes, action_numbers, opened, spaces
from generalist.data.recorded_task import recorded_task
from generalist.data.source import Stored
from generalist.data.sources.recorded import Recorded
from generalist.data.statistics import statistics

Episodes = list[Mapping[str, np.ndarray]]
"""Of each episode: key of a step's field → (T, ...)."""


def write_tfrecord(folder: Path, episodes: Episodes, shards: int = 1) -> Path:
    """A TFDS folder of RLDS in TFRecord files; every field is a number."""
    folder = folder / "1.0.0"
    folder.mkdir(parents=True)
    nested: dict[str, Any] = {}
    for key, column in episodes[0].items():
        feature = tfds.features.Tensor(shape=column.shape[1:], dtype=column.dtype.type)
        outer, _, inner = key.rpartition("/")
        (nested.setdefault(outer, {}) if outer else nested)[inner] = feature
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(nested)})
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    serialized = []
    for episode in episodes:
        example = tf_example_pb2.Example()
        for key, column in episode.items():
            stored = example.features.feature[f"steps/{key}"]
            (stored.float_list if column.dtype.kind == "f" else stored.int64_list).value.extend(
                (column.reshape(-1) * 1).tolist()
            )
        serialized.append(framed(example.SerializeToString()))
    parts = np.array_split(np.arange(len(episodes)), shards)
    for number, part in enumerate(parts):
        name = f"{folder.parent.name}-train.tfrecord-{number:05d}-of-{shards:05d}"
        (folder / name).write_bytes(b"".join(serialized[index] for index in part))
    split = {"name": "train", "shardLengths": [str(len(part)) for part in parts]}
    info = {"name": folder.parent.name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder.parent


def episode(number: int, steps: int) -> dict[str, np.ndarray]:
    at = np.arange(steps)
    return {
        "observation/state": np.stack([at, np.full(steps, number)], axis=1).astype(np.float32),
        "action": (10 * number + at[:, None] + np.array([1.0, 101.0])).astype(np.float32),
        "reward": np.ones(steps, np.float32),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    opened.cache_clear()
    recorded_task.cache_clear()
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tfrecord(tmp_path / "robot", [episode(number, 4 + number) for number in range(10)], shards=3)


def reader(
    folder: Path, held_out: bool = False, unreadable: float = 0.0, heldout: float = 0.2, **how: Any
) -> RecordedEpisodes:
    dataset = Dataset(path=str(folder), **how)
    return RecordedEpisodes(dataset, EpisodeCache(8), heldout=heldout, held_out=held_out, unreadable=unreadable)


def test_every_step_of_every_episode_is_trained_on_or_held_out(data: Path) -> None:
    seen = []
    for one in (reader(data), reader(data, held_out=True)):
        for index in range(len(one)):
            observed, acted = one[index].window(0, 100)
            number = int(observed["state"][0, 1])
            np.testing.assert_array_equal(observed["state"], episode(number, 4 + number)["observation/state"])
            np.testing.assert_array_equal(acted[""], episode(number, 4 + number)["action"])
            seen.append(number)
    assert sorted(seen) == [*range(10)]
    assert len(reader(data, held_out=True)) == 2
    assert len(reader(data, heldout=0.0)) == 10
    assert len(reader(data, heldout=0.99)) == 1, "one is left to train on"


def test_spaces_follow_the_numbers(tmp_path: Path) -> None:
    several = [
        {
            "observation/state": np.zeros((3, 2), np.float64),
            "observation/mode": np.array([0, 1, 4]),
            "observation/far": np.array([-1, 5, 7]),
            "observation/flags": np.zeros((3, 4), bool),
            "action": np.array([[0, 3], [1, 2], [1, 0]], np.int64),
        }
    ]
    observation, action = spaces(Dataset(path=str(write_tfrecord(tmp_path / "kinds", several))))
    assert isinstance(observation, gym.spaces.Dict)
    assert observation["state"] == gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    assert observation["mode"] == gym.spaces.Discrete(5)
    assert observation["far"].dtype == np.int64
    assert observation["flags"] == gym.spaces.MultiBinary((4,))
    assert action == gym.spaces.MultiDiscrete([2, 4])


def test_chunks_hold_the_following_actions_and_repeat_the_last(data: Path) -> None:
    first = reader(data, chunk=3)[0]
    _, acted = first.window(0, 100)
    plain = reader(data)[0].window(0, 100)[1][""]
    assert acted[""].shape == (len(plain), 3, 2)
    np.testing.assert_array_equal(acted[""][0], plain[:3])
    np.testing.assert_array_equal(acted[""][-1], np.repeat(plain[-1:], 3, axis=0))
    assert spaces(Dataset(path=str(data), chunk=3))[1].shape == (3, 2)
    numbers = action_numbers(Dataset(path=str(data), chunk=3))
    assert numbers.names[:3] == ("action[0]+0", "action[1]+0", "action[0]+1")
    assert numbers.executed.tolist() == [
        0,
        1,
        0,
        1,
        0,
        1,
    ]  # all steps are kept: the first of the chunk before was executed


def test_rate_needs_one_in_the_files(data: Path) -> None:
    with pytest.raises(ValueError, match="does not say at which rate"):
        reader(data, rate=5.0)


def test_statistics_are_of_all_steps_and_kept(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(Dataset(path=str(data))).statistics
    everything = np.concatenate([episode(number, 4 + number)["action"] for number in range(10)]).astype(np.float64)
    numbers = found.fields["action"]
    np.testing.assert_allclose(numbers.mean, everything.mean(axis=0))
    np.testing.assert_allclose(numbers.deviation, everything.std(axis=0))
    assert (numbers.low.tolist(), numbers.high.tolist()) == (
        everything.min(axis=0).tolist(),
        everything.max(axis=0).tolist(),
    )
    np.testing.assert_array_equal(numbers.rows, everything)
    assert found.returns.tolist() == [float(4 + number) for number in range(10)]
    assert found.lengths.tolist() == [4 + number for number in range(10)]
    opened.cache_clear()
    monkeypatch.setattr(statistics_module, "_computed", None)  # what is kept is not computed again
    again = opened(Dataset(path=str(data))).statistics
    np.testing.assert_array_equal(again.fields["action"].rows, numbers.rows)
    assert again.instructions == found.instructions


@pytest.mark.slow
def test_statistics_are_the_same_by_any_number_of_processes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = statistics(open_episodes(data, Opening()), None, "reward")
    monkeypatch.setattr(statistics_module, "ROWS", 20)
    several = statistics(open_episodes(data, Opening(workers=2)), None, "reward")
    np.testing.assert_allclose(several.fields["action"].mean, one.fields["action"].mean)
    np.testing.assert_allclose(several.fields["action"].deviation, one.fields["action"].deviation)
    np.testing.assert_array_equal(several.returns, one.returns)
    every = -(-len(one.fields["action"].rows) // 20)
    np.testing.assert_array_equal(several.fields["action"].rows, one.fields["action"].rows[::every])


def test_statistics_count_what_is_not_finite(tmp_path: Path) -> None:
    several = [episode(number, 5) for number in range(3)]
    several[1]["observation/state"][2, 0] = np.nan
    several[1]["observation/state"][3, 0] = np.inf
    folder = write_tfrecord(tmp_path / "holes", several)
    numbers = opened(Dataset(path=str(folder))).statistics.fields["observation/state"]
    assert numbers.not_finite.tolist() == [2, 0]
    assert numbers.count.tolist() == [13, 15]
    assert np.isfinite(numbers.mean).all()
    one = reader(folder, unreadable=0.5, heldout=0.0)
    assert [one[index].window(0, 1)[0]["state"][0, 1] for index in range(3)] == [0, 2, 2]  # the next one in its place
    assert "step 2 of 'observation/state'" in one.faults.reasons[1]
    with pytest.raises(TooManyBroken, match=r"1 of 3 records.*not finite"):
        reader(folder, heldout=0.0)[1]


def damaged(folder: Path) -> Path:
    """A copy in which one episode's checksum is wrong."""
    copy = Path(shutil.copytree(folder, folder.with_name("damaged")))
    file = sorted((copy / "1.0.0").glob("*.tfrecord-*"))[1]
    content = bytearray(file.read_bytes())
    content[[*records(file)][1].offset + 20] ^= 1
    file.write_bytes(content)
    return copy


def test_broken_episodes_are_left_out_up_to_a_share(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = damaged(data)
    assert len(reader(copy, unreadable=0.1)) + len(reader(copy, unreadable=0.1, held_out=True)) == 9
    assert "tfrecord-00001-of-00003, offset" in capsys.readouterr().err
    with pytest.raises(TooManyBroken, match=r"1 of 10 records.*checksum"):
        reader(copy, unreadable=0.05)


def test_task_goes_to_other_processes_and_is_not_played(data: Path) -> None:
    task = pickle.loads(pickle.dumps(recorded_task(Dataset(path=str(data)))))
    assert task.dataset == Dataset(path=str(data))
    assert task.make_spaces() == spaces(Dataset(path=str(data)))
    assert task.name == "recorded/robot"
    with pytest.raises(ValueError, match="without an environment"):
        task.make()


def test_chunks_of_several_numbers_pass_the_check(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    stored = Stored(folder=tmp_path, corrections=(), cache=EpisodeCache(8))
    Recorded(path=str(data), chunk=4).check("recorded", stored, False, said.append)
    assert "9 episodes" in said[0] and "1 episodes held out" in said[0]


def test_field_without_a_finite_number_is_named(tmp_path: Path) -> None:
    several = [episode(number, 5) for number in range(3)]
    for one in several:
        one["action"][:, 1] = np.nan
    with pytest.raises(ValueError, match=r"empty: no step has finite numbers in 'action', which is the action"):
        _ = reader(write_tfrecord(tmp_path / "empty", several)).rows


def test_records_left_out_are_noted_once(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sorted(data.rglob("*.tfrecord-*"))[0]
    content = bytearray(file.read_bytes())
    content[[*records(file)][1].offset + 20] ^= 1
    file.write_bytes(bytes(content))
    reader(data, unreadable=0.5)
    assert capsys.readouterr().err.startswith("note: record left out, number 1 of 10")


def test_cache_folder_that_cannot_be_made_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OSError, match=r"kept in .*file/index, which can't be made \(Not a directory\).*GENERALIST_CACHE"
    ):
        reader(data)


def test_version_is_no_name(data: Path) -> None:
    assert Dataset(path=str(data / "1.0.0")).name == "robot"
    assert Dataset(path="gs://bucket/some set/0.1.0/").name == "some_set"
    assert Dataset(path="a/lift.hdf5").name == "lift"


def test_settings_are_checked() -> None:
    for wrong in (
        {"chunk": 0},
        {"rate": 0.0},
        {"heldout": 1.0},
        {"unreadable": -0.1},
        {"episodes": 3},
        {"mapping": "none.yaml"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Recorded(**wrong)


def cart_pole(episodes: int) -> Episodes:
    """A controller's episodes."""
    env, found = gym.make("CartPole-v1", max_episode_steps=40), []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        seen, done, over = [], [], False
        while not over:
            action = int(observation[2] + observation[3] / 2 > 0)
            seen.append(observation)
            done.append(action)
            observation, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        rewards = np.ones(len(done), np.float32)
        found.append({"observation": np.stack(seen), "action": np.array(done), "reward": rewards})
    return found


def test_environment_observes_what_was_recorded(tmp_path: Path) -> None:
    folder = write_tfrecord(tmp_path / "cart", cart_pole(3))
    dataset = Dataset(path=str(folder))
    task = recorded_task(dataset, "CartPole-v1")
    assert task.expert_score == 40.0
    assert 5 < task.random_score < 40
    env = task.make()
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"observation"}
    np.testing.assert_array_equal(observation["observation"], cart_pole(1)[0]["observation"][0])
    assert env.action_space == gym.spaces.Discrete(2)
    with pytest.raises(ValueError, match="recorded 'observation' of shape"):
        recorded_task(dataset, "Pendulum-v1")
    bare = [{key: column for key, column in one.items() if key != "reward"} for one in cart_pole(2)]
    with pytest.raises(ValueError, match="has no reward"):
        recorded_task(Dataset(path=str(write_tfrecord(tmp_path / "bare", bare))), "CartPole-v1")
