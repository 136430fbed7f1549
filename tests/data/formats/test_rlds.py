"""RLDS in place: as TFDS and TensorFlow wrote it; damaged, incomplete and hostile sets are refused or left out by name."""

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from generalist.data.formats.columns import decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import Opening
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.rlds import Rlds, described, parsed
from generalist.data.formats.tfrecord import framed, payload, records

FIXTURE = Path(__file__).parents[2] / "fixtures" / "formats" / "rlds_tfrecord"
KEYS = ("observation/image_0", "observation/state", "action", "reward", "language_instruction")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(FIXTURE / "small_bridge", tmp_path / "small_bridge")) / "0.1.0"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tfrecord-*"))


def open_set(folder: Path, index: Path | None = None) -> Rlds:
    found = open_episodes(folder, Opening(index=index))
    assert isinstance(found, Rlds)
    return found


def test_agrees_with_its_maker() -> None:
    truth = json.loads((FIXTURE / "truth.json").read_text())
    episodes = open_set(FIXTURE / "small_bridge")
    assert sorted(episodes.lengths) == [one["length"] for one in truth]
    for index in range(len(episodes)):
        episode = episodes.read(index, [*KEYS, "episode_metadata/file_path"])
        known = truth[int(Path(episode.values["episode_metadata/file_path"]).stem)]
        assert len(episode) == known["length"]
        assert np.asarray(episode.columns["reward"])[-1] == known["last_reward"]
        image = decode(episode.columns["observation/image_0"][:1])
        assert image.shape == (1, 96, 96, 3)
        assert image.mean() == pytest.approx(known["first_image_mean"], abs=0.25)  # the files have JPEG


def test_values_are_those_that_tfds_reads() -> None:
    folder = FIXTURE / "small_bridge" / "0.1.0"
    features = tfds.builder_from_directory(str(folder)).info.features
    episodes = open_set(folder)
    raw = [payload(file, record) for file in shards(folder) for record in records(file)]
    for index, content in enumerate(raw):
        steps, ours = [*features.deserialize_example_np(content)["steps"]], episodes.read(index, KEYS)
        np.testing.assert_array_equal(ours.columns["action"], [step["action"] for step in steps])
        np.testing.assert_array_equal(
            ours.columns["observation/state"], [step["observation"]["state"] for step in steps]
        )
        np.testing.assert_array_equal(
            decode(ours.columns["observation/image_0"]), [step["observation"]["image_0"] for step in steps]
        )
        told = [step["language_instruction"].decode() for step in steps]
        assert np.asarray(ours.columns["language_instruction"]).tolist() == told


@pytest.mark.slow
def test_neither_tensorflow_nor_torch_is_imported() -> None:
    code = (
        "import sys; from generalist.data.recorded import *; from generalist.data.episodes import EpisodeCache\n"
        f"d = Dataset(path={str(FIXTURE / 'small_bridge')!r})\n"
        "r = RecordedEpisodes(d, EpisodeCache(8), heldout=0.2); r[0].window(0, 4); opened(d).statistics\n"
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_array_record_gives_the_same(dataset: Path) -> None:
    from array_record.python import array_record_module

    before = open_set(dataset)
    expected = [before.read(index, KEYS) for index in range(len(before))]
    for file in shards(dataset):
        writer = array_record_module.ArrayRecordWriter(
            str(file).replace(".tfrecord-", ".array_record-"), "group_size:1"
        )
        for record in records(file):
            writer.write(payload(file, record))
        writer.close()
        file.unlink()
    info = json.loads((dataset / "dataset_info.json").read_text())
    (dataset / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "array_record"}))
    after = open_set(dataset)
    np.testing.assert_array_equal(after.lengths, before.lengths)
    for index, one in enumerate(expected):
        found = after.read(index, KEYS)
        for key, column in one.columns.items():
            assert (
                list(column) == list(found.columns[key])
                if isinstance(column, list)
                else np.array_equal(column, found.columns[key])
            )


def test_index_is_kept_and_renewed(dataset: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    first = open_set(dataset, index)
    kept = {file: file.stat().st_mtime_ns for file in index.iterdir()}
    assert len(kept) == len(shards(dataset))
    open_set(dataset, index)
    assert {file: file.stat().st_mtime_ns for file in index.iterdir()} == kept
    file = shards(dataset)[0]
    file.write_bytes(framed(payload(file, next(records(file)))))
    again = open_set(dataset, index)
    assert len(again) == len(first) - 1
    assert len(again.broken()) == 1  # dataset_info.json promises one more


def test_damaged_payload_costs_one_episode(dataset: Path) -> None:
    file = shards(dataset)[1]
    second = [*records(file)][1]
    content = bytearray(file.read_bytes())
    content[second.offset + 500] ^= 16
    file.write_bytes(content)
    episodes = open_set(dataset)
    assert len(episodes) == 7
    ((number, reason),) = episodes.broken().items()
    assert f"{file}, offset {second.offset}" in reason
    assert episodes.lengths[number] == 0
    with pytest.raises(BrokenRecord, match=f"offset {second.offset}"):
        episodes.read(number, KEYS)


def test_damaged_length_costs_the_rest_of_its_shard(dataset: Path) -> None:
    file = shards(dataset)[1]
    second = [*records(file)][1]
    content = bytearray(file.read_bytes())
    content[second.offset] ^= 1
    file.write_bytes(content)
    episodes = open_set(dataset)
    assert len(episodes) == 5
    lost = [reason for number, reason in episodes.broken().items() if number >= len(episodes)]
    assert len(lost) == 2
    assert all(f"{file}, offset {second.offset}" in reason for reason in lost)


def test_missing_shard_is_named(dataset: Path) -> None:
    shards(dataset)[2].unlink()
    episodes = open_set(dataset)
    assert len(episodes) == 5
    assert [*episodes.broken().values()] == [
        f"{dataset / 'small_bridge-train.tfrecord-00002-of-00003'} is missing: download it"
    ] * 2
    for file in shards(dataset):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="none of its 3 files"):
        open_set(dataset)


def rewritten(folder: Path, change: Any) -> None:
    """Changes the first record's features in place of the first shard."""
    file = shards(folder)[0]
    contents = [payload(file, record) for record in records(file)]
    example = tf_example_pb2.Example.FromString(contents[0])
    change(example.features.feature)
    file.write_bytes(b"".join(map(framed, [example.SerializeToString(), *contents[1:]])))


def test_placeholder_action_of_the_last_step_is_left_out(dataset: Path) -> None:
    length = int(open_set(dataset).lengths[0])

    def zero(features: Any) -> None:
        features["steps/action"].float_list.value[-7:] = [0.0] * 7

    rewritten(dataset, zero)
    episodes = open_set(dataset)
    assert episodes.lengths[0] == length - 1
    assert len(episodes.read(0, KEYS)) == length - 1


def drop(features: Any) -> None:
    del features["steps/action"]


def ragged(features: Any) -> None:
    features["steps/action"].float_list.value.append(1.0)


def other_kind(features: Any) -> None:
    features["steps/action"].Clear()
    features["steps/action"].bytes_list.value.append(b"x")


def last_in_the_middle(features: Any) -> None:
    features["steps/is_last"].int64_list.value[1] = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, "missing"),
        (ragged, "multiple of its 7"),
        (other_kind, "bytes_list"),
        (last_in_the_middle, "is_last marks"),
    ],
)
def test_wrong_records_are_known_from_the_index(dataset: Path, change: Any, words: str) -> None:
    rewritten(dataset, change)
    episodes = open_set(dataset)
    (reason,) = episodes.broken().values()
    assert words in reason
    assert str(shards(dataset)[0]) in reason


def shorter_state(features: Any) -> None:
    del features["steps/observation/state"].float_list.value[-7:]


def wrong_text(features: Any) -> None:
    features["steps/language_instruction"].bytes_list.value[0] = b"\xff\xfe"


@pytest.mark.parametrize(("change", "words"), [(shorter_state, "different numbers of steps"), (wrong_text, "UTF-8")])
def test_wrong_fields_are_named_when_they_are_read(dataset: Path, change: Any, words: str) -> None:
    rewritten(dataset, change)
    episodes = open_set(dataset)
    with pytest.raises(BrokenRecord, match=rf"tfrecord-00000-of-00003, offset 0: .*{words}"):
        episodes.read(0, KEYS)


@pytest.mark.slow
def test_random_damage_is_never_taken_for_good(dataset: Path) -> None:
    rng = np.random.default_rng(0)
    good = open_set(dataset)
    known = {good.where(index): good.read(index, KEYS) for index in range(len(good))}
    file = shards(dataset)[0]
    whole = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        at = int(rng.integers(len(whole)))
        kind = rng.integers(3)
        if kind == 0:
            damaged[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del damaged[at:]
        else:
            damaged[at : at + 20] = rng.bytes(20)
        file.write_bytes(damaged)
        found = open_set(dataset)
        assert found.broken() or bytes(damaged) == whole
        for index in range(len(found)):
            if found.lengths[index]:
                episode, original = found.read(index, KEYS), known[found.where(index)]
                np.testing.assert_array_equal(episode.columns["action"], original.columns["action"])


def edited(folder: Path, name: str, change: Any) -> None:
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))


def test_class_of_somebody_else_is_not_imported(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_features.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    edited(dataset, "features.json", lambda value: value.update(pythonClassName="evil_features.Feature"))
    with pytest.raises(ValueError, match=r"evil_features\.Feature.*only TFDS's own"):
        open_set(dataset)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value["splits"][0].update(filepathTemplate="../../{SPLIT}"), "outside"),
        (lambda value: value["splits"][0].update(filepathTemplate="{EVIL}"), "EVIL"),
        (lambda value: value.update(fileFormat="riegeli"), "riegeli"),
        (lambda value: value["splits"][0].update(shardLengths=["-1"]), "-1 to -1 records"),
        (lambda value: value["splits"][0].update(shardLengths=["9" * 30]), "to 999,999,999,.* records"),
        (lambda value: value["splits"][0].update(shardLengths=["1"] * 100_000), "100,000 shards"),
        (lambda value: value.pop("name"), "name"),
    ],
)
def test_damaged_descriptions_are_refused(dataset: Path, change: Any, words: str) -> None:
    edited(dataset, "dataset_info.json", change)
    with pytest.raises(ValueError, match=words):
        open_set(dataset)


def test_versions_and_splits_are_found_by_name(dataset: Path) -> None:
    shutil.copytree(dataset, dataset.parent / "0.10.0")
    assert "0.10.0" in open_set(dataset.parent).where(0)
    with pytest.raises(ValueError, match=r"several data sets"):
        shutil.copytree(dataset.parent, dataset.parent.parent / "other")
        open_set(dataset.parent.parent)


def test_numbers_that_are_stored_as_bytes(tmp_path: Path) -> None:
    features = tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "action": tfds.features.Tensor(shape=(2,), dtype=np.float64, encoding="zlib"),
                    "depth": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16),
                    "ragged": tfds.features.Sequence(tfds.features.Sequence(np.int64)),
                    "flag": np.bool_,
                }
            )
        }
    )
    stored, unread = described(features)
    assert set(stored) == {"action", "flag"}
    assert set(unread) == {"depth", "ragged"}
    example = tf_example_pb2.Example()
    values = np.arange(6, dtype=np.float64).reshape(3, 2)
    example.features.feature["steps/action"].bytes_list.value.extend(zlib.compress(row.tobytes()) for row in values)
    example.features.feature["steps/flag"].int64_list.value.extend([0, 1, 0])
    found = parsed(example.SerializeToString(), [stored["action"], stored["flag"]])
    np.testing.assert_array_equal(found["action"], values)
    assert found["flag"].tolist() == [False, True, False]
    example.features.feature["steps/action"].bytes_list.value[1] = zlib.compress(bytes(10**8))  # a bomb
    with pytest.raises(BrokenRecord, match="17 bytes or more where 16"):
        parsed(example.SerializeToString(), [stored["action"]])
    example.features.feature["steps/flag"].int64_list.value[0] = 7
    with pytest.raises(BrokenRecord, match="from 0 to 7"):
        parsed(example.SerializeToString(), [stored["flag"]])
