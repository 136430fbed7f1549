"""robomimic's and LIBERO's HDF5 files, written by h5py in their published layouts."""

import io
import json
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from PIL import Image
from upath import UPath

from generalist.data.formats import hdf5
from generalist.data.formats.columns import decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import Opening
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.robomimic import Robomimic

LENGTHS = {0: 3, 2: 4, 10: 5}
ENV = {"env_name": "Lift", "env_kwargs": {"control_freq": 20}}
PROBLEM = {"problem_name": "kitchen", "language_instruction": '"open the drawer"'}


def demo(number: int, steps: int) -> dict[str, np.ndarray]:
    """What a demonstration holds, different for each."""
    rng = np.random.default_rng(number)
    return {
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "dones": np.arange(steps) == steps - 1,
        "obs/agentview_image": rng.integers(256, size=(steps, 8, 10, 3), dtype=np.uint8),
        "obs/robot0_eef_pos": rng.normal(size=(steps, 3)).astype(np.float32),
        "next_obs/robot0_eef_pos": rng.normal(size=(steps, 3)).astype(np.float32),
        "rewards": np.full(steps, float(number)),
    }


def write(
    path: Path, lengths: dict[int, int] = LENGTHS, attributes: dict[str, Any] | None = None, **settings: Any
) -> Path:
    """A file of demonstrations. `settings` are h5py's of every array."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, value in (attributes or {"env_args": ENV, "total": sum(lengths.values())}).items():
            data.attrs[name] = json.dumps(value) if isinstance(value, dict) else value
        for number in sorted(lengths, key=str):  # as the names are ordered in HDF5
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = lengths[number]
            for key, values in demo(number, lengths[number]).items():
                group.create_dataset(key, data=values, **settings)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "demo.hdf5")


def change(path: Path, edit: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "a") as file:
        edit(file)


def message(place: Path, key: str, index: int = 1) -> str:
    """Why a field of an episode can't be read; the episode before it can."""
    episodes = open_episodes(place, Opening())
    episodes.read(0, [key])
    with pytest.raises(BrokenRecord) as caught:
        decode(episodes.read(index, [key]).columns[key])
    return str(caught.value)


def test_read_as_published(path: Path) -> None:
    episodes = open_episodes(path, Opening())
    assert isinstance(episodes, Robomimic) and episodes.lengths.tolist() == [3, 4, 5], "in the order of numbers"
    assert episodes.rate == 20 and episodes.broken() == {} and episodes.files == [path] and episodes.unread == {}
    kinds = {key: (field.kind, field.shape, field.dtype) for key, field in episodes.fields.items()}
    assert kinds == {
        "actions": ("number", (7,), "float64"),
        "dones": ("number", (), "bool"),
        "rewards": ("number", (), "float64"),
        "obs/agentview_image": ("image", (8, 10, 3), "uint8"),
        "obs/robot0_eef_pos": ("number", (3,), "float32"),
        "next_obs/robot0_eef_pos": ("number", (3,), "float32"),
    }
    for index, (number, steps) in enumerate(LENGTHS.items()):
        episode = episodes.read(index, list(kinds))
        assert len(episode) == steps and episodes.where(index) == f"{path}, demo_{number}"
        for key, values in demo(number, steps).items():
            np.testing.assert_array_equal(decode(episode.columns[key]), values, strict=True)


def test_frames_are_read_by_the_window(path: Path) -> None:
    frames = open_episodes(path, Opening()).read(2, ["obs/agentview_image"]).columns["obs/agentview_image"]
    truth = demo(10, 5)["obs/agentview_image"]
    assert frames.nbytes == 0 and len(frames) == 5
    np.testing.assert_array_equal(decode(frames[1:5][1:3]), truth[2:4])
    assert decode(frames[2:2]).shape == (0, 8, 10, 3)
    with pytest.raises(ValueError, match="not by 2"):
        frames[::2]


@pytest.mark.parametrize(
    "settings",
    [
        {"compression": 9},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": True},
        {"fletcher32": True},
    ],
)
def test_packed_arrays(tmp_path: Path, read_all: Any, settings: dict[str, Any]) -> None:
    plain, packed = write(tmp_path / "a.h5"), write(tmp_path / "b.h5", **settings)
    for one, other in zip(read_all(plain), read_all(packed), strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_splits(path: Path) -> None:
    names = {"train": ["demo_2", "demo_10"], "valid": ["demo_0"]}
    change(
        path, lambda file: [file.create_dataset(f"mask/{name}", data=np.array(one, "S")) for name, one in names.items()]
    )
    assert open_episodes(path, Opening()).lengths.tolist() == [4, 5]
    assert open_episodes(path, Opening(split="valid")).lengths.tolist() == [3]
    with pytest.raises(ValueError, match=r"demo.hdf5 has no split 'test', of train, valid: set `split`"):
        open_episodes(path, Opening(split="test"))
    change(path, lambda file: file.pop("mask/train"))
    assert open_episodes(path, Opening()).lengths.tolist() == [3], "the only one"
    write(path.with_name("other.hdf5"))
    with pytest.raises(ValueError, match=r"other.hdf5 has no split"):
        open_episodes(path.parent, Opening(split="valid"))


def test_a_split_does_not_shift_what_is_broken(path: Path) -> None:
    change(path, lambda file: file["data/demo_2"].attrs.update(num_samples=7))
    change(path, lambda file: file.create_dataset("mask/train", data=np.array(["demo_2", "demo_10"], "S")))
    episodes = open_episodes(path, Opening())
    assert episodes.lengths.tolist() == [0, 5] and list(episodes.broken()) == [0]
    with pytest.raises(BrokenRecord, match=r"demo_2 has 4 actions, where its num_samples says 7"):
        episodes.read(0, ["actions"])
    assert len(episodes.read(1, ["actions"])) == 5


def test_a_folder_of_tasks(tmp_path: Path) -> None:
    """As LIBERO has them; fewer of them are open at a time than there are."""
    tasks = [f"pick up thing {number:02}" for number in range(3 * hdf5.OPEN)]
    for number, task in enumerate(tasks):
        said: Any = list(task) if number % 2 else f'"{task}"'
        write(tmp_path / f"{number:02}.hdf5", {0: 2, 1: 3}, {"problem_info": {"language_instruction": said}})
    (tmp_path / "._00.hdf5").write_bytes(b"of another system")
    episodes = open_episodes(tmp_path, Opening())
    assert episodes.lengths.tolist() == [2, 3] * len(tasks) and episodes.rate is None
    assert episodes.fields["instruction"].kind == "text" and episodes.fields["instruction"].level == "episode"
    for index in range(len(episodes)):
        assert episodes.read(index, ["actions", "instruction"]).values == {"instruction": tasks[index // 2]}
    held = [one for one in psutil.Process().open_files() if one.path.startswith(str(tmp_path))]
    assert len(held) == hdf5.OPEN


def test_instructions_of_robocasa(path: Path) -> None:
    change(path, lambda file: file["data/demo_0"].attrs.update(ep_meta=json.dumps({"lang": "close the lid"})))
    change(path, lambda file: file["data/demo_2"].attrs.update(ep_meta="{"))
    episodes = open_episodes(path, Opening())
    assert episodes.read(0, ["actions", "instruction"]).values == {"instruction": "close the lid"}
    with pytest.raises(BrokenRecord, match=r"demo_2: the attribute 'ep_meta' is damaged"):
        episodes.read(1, ["actions"])
    with pytest.raises(BrokenRecord, match=r"demo_10 has no 'instruction', which the first episode has"):
        episodes.read(2, ["actions", "instruction"])


def test_values_of_the_episode_and_texts(path: Path, read_all: Any) -> None:
    def edit(file: h5py.File) -> None:
        for number, steps in LENGTHS.items():
            group = file[f"data/demo_{number}"]
            group["src_demo_inds"] = np.arange(steps + 2)
            group["seed"] = number
            group["note"] = "fine"
            group["obs/command"] = ["gö"] * steps
            group.create_dataset("obs/word", data=np.array([b"left"] * steps))

    change(path, edit)
    for one, (number, steps) in zip(read_all(path), LENGTHS.items(), strict=True):
        assert one["obs/command"].tolist() == ["gö"] * steps and one["obs/word"].tolist() == ["left"] * steps
        assert one["src_demo_inds"].tolist() == list(range(steps + 2)) and (one["seed"], one["note"]) == (
            number,
            "fine",
        )


def test_encoded_images(path: Path, read_all: Any) -> None:
    """PNG in an array of bytes of any length."""

    def edit(file: h5py.File) -> None:
        for number, steps in LENGTHS.items():
            images = file.create_dataset(f"data/demo_{number}/obs/png", (steps,), h5py.vlen_dtype(np.uint8))
            for step, image in enumerate(demo(number, steps)["obs/agentview_image"]):
                content = io.BytesIO()
                Image.fromarray(image).save(content, "PNG")
                images[step] = np.frombuffer(content.getvalue(), np.uint8)

    change(path, edit)
    for one in read_all(path):
        np.testing.assert_array_equal(one["obs/png"], one["obs/agentview_image"])
    change(path, lambda file: file["data/demo_2/obs/png"].__setitem__(3, np.zeros(9, np.uint8)))
    assert "demo_2, 'obs/png', frame 3 can't be read" in message(path, "obs/png")


def test_raw_files_are_refused(tmp_path: Path, path: Path) -> None:
    change(path, lambda file: [file.pop(f"data/demo_{number}/obs") for number in LENGTHS])
    with pytest.raises(ValueError, match=r"demo.hdf5, demo_0 has no observations.*dataset_states_to_obs.py"):
        open_episodes(path, Opening())
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match=r"other.hdf5 is of no known layout: it has neither data/demo_0"):
        open_episodes(tmp_path / "other.hdf5", Opening())
    (tmp_path / "text.hdf5").write_text("none")
    with pytest.raises(ValueError, match=r"text.hdf5 can't be read"):
        open_episodes(tmp_path / "text.hdf5", Opening())


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("actions", np.zeros((9, 7)), "9 actions, where its num_samples says 4"),
        ("obs/robot0_eef_pos", np.zeros((3, 3), np.float32), "'obs/robot0_eef_pos' has 3 rows, where 4 are expected"),
        ("obs/robot0_eef_pos", np.zeros((4, 2)), r"has values of the shape \(2,\), where \(3,\) is expected"),
        ("obs/robot0_eef_pos", np.zeros((4, 3), int), "has values of the type int64, where float32 is expected"),
        ("obs/agentview_image", np.zeros((4, 8, 10, 3)), "has values of the type float64, where uint8 is expected"),
        ("obs/agentview_image", np.zeros((4, 9, 10, 3), np.uint8), r"has values of the shape \(9, 10, 3\)"),
        ("rewards", np.array(["a"] * 4, "S"), "has values of the type .*, where float64 is expected"),
        ("rewards", np.zeros(4, complex), "has values of the type complex128"),
        ("rewards", np.float64(1), "has 0 rows"),
        ("rewards", None, "has no 'rewards'"),
    ],
)
def test_what_differs_from_the_first_episode(path: Path, key: str, values: Any, expected: str) -> None:
    def edit(file: h5py.File) -> None:
        del file[f"data/demo_2/{key}"]
        if values is not None:
            file[f"data/demo_2/{key}"] = values

    change(path, edit)
    with pytest.raises(BrokenRecord, match=rf"demo.hdf5, demo_2.*{expected}"):
        open_episodes(path, Opening()).read(1, [key])


def test_fields_come_from_the_first_episode_that_can_be_read(path: Path) -> None:
    def edit(file: h5py.File) -> None:
        del file["data/demo_0/obs/robot0_eef_pos"]
        file["data/demo_0/obs/robot0_eef_pos"] = np.zeros(2)

    change(path, edit)
    episodes = open_episodes(path, Opening())
    assert episodes.fields["obs/robot0_eef_pos"].shape == (3,) and "next_obs/robot0_eef_pos" in episodes.fields


def test_nan_and_no_steps(path: Path, read_all: Any) -> None:
    def edit(file: h5py.File) -> None:
        file["data/demo_0/actions"][0] = np.nan
        empty = file.create_group("data/demo_1")
        empty["actions"], empty["obs/robot0_eef_pos"] = np.zeros((0, 7)), np.zeros((0, 3))

    change(path, edit)
    read = read_all(path)
    assert np.isnan(read[0]["actions"][0]).all() and "demo_1 has no steps: take it out" in read[1]


def linked(path: Path, how: str) -> None:
    """Puts what leads out of the file in the place of demo_2's positions."""
    outside = path.with_name("outside.h5")
    with h5py.File(outside, "w") as other:
        other["x"] = np.ones((4, 3), np.float32)
    path.with_name("raw").write_bytes(b"s" * 48)

    def edit(file: h5py.File) -> None:
        group = file["data/demo_2/obs"]
        del group["robot0_eef_pos"]
        if how == "external link":
            group["robot0_eef_pos"] = h5py.ExternalLink(str(outside), "x")
        elif how == "soft link":
            group["robot0_eef_pos"] = h5py.SoftLink("/data/demo_2/next_obs/robot0_eef_pos")
        elif how == "virtual":
            layout = h5py.VirtualLayout((4, 3), np.float32)
            layout[:] = h5py.VirtualSource(str(outside), "x", (4, 3))
            group.create_virtual_dataset("robot0_eef_pos", layout)
        else:
            external = [(str(path.with_name("raw")), 0, 48)]
            group.create_dataset("robot0_eef_pos", (4, 3), np.float32, external=external)

    change(path, edit)


@pytest.mark.parametrize("how", ["external link", "soft link", "virtual", "external storage"])
def test_what_leads_out_of_the_file(path: Path, how: str) -> None:
    linked(path, how)
    assert ("is not followed" if "link" in how else "has its values in other files") in message(
        path, "obs/robot0_eef_pos"
    )
    change(path, lambda file: file.pop("data/demo_0"))
    episodes = open_episodes(path, Opening())
    assert "obs/robot0_eef_pos" not in episodes.fields and "demo_2" in episodes.unread["obs/robot0_eef_pos"]
    assert len(episodes.read(0, ["actions"])) == 4, "the rest is read"


def test_a_circle_of_groups(path: Path) -> None:
    change(path, lambda file: file["data/demo_0"].__setitem__("again", file["data/demo_0"]))
    assert open_episodes(path, Opening()).lengths.tolist() == [3, 4, 5]
    change(path, lambda file: [file[f"data/demo_{number}"].__setitem__("a", file["data/demo_0"]) for number in (2, 10)])
    with pytest.raises(ValueError, match=r"has more than 16 groups in groups"):
        open_episodes(path, Opening())


def replace(path: Path, key: str, **settings: Any) -> None:
    def edit(file: h5py.File) -> None:
        del file[f"data/demo_2/{key}"]
        file.create_dataset(f"data/demo_2/{key}", **settings)

    change(path, edit)


def test_a_declared_size_that_no_memory_has(path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["data/demo_2"].attrs["num_samples"] = 10**12
        del file["data/demo_2/actions"], file["data/demo_2/obs/agentview_image"]
        file.create_dataset("data/demo_2/actions", (10**12, 7), float, chunks=(1000, 7))
        file.create_dataset("data/demo_2/obs/agentview_image", (10**12, 8, 10, 3), np.uint8, chunks=(1, 8, 10, 3))

    change(path, edit)
    assert "declares (1000000000000, 7) values" in message(path, "actions")
    frames = open_episodes(path, Opening()).read(1, ["obs/agentview_image"]).columns["obs/agentview_image"]
    assert decode(frames[5:7]).shape == (2, 8, 10, 3)
    with pytest.raises(BrokenRecord, match="'obs/agentview_image'.*declares"):
        frames.decode()


@pytest.mark.parametrize(
    ("chunk", "settings", "expected"),
    [
        (zlib.compress(bytes(2**20)), {"compression": "gzip"}, "a chunk unpacks to more than 36 bytes"),
        (zlib.compress(bytes(2**24)), {"compression": "gzip"}, "takes 16,316 bytes, where it has 32"),
        (zlib.compress(bytes(24)), {"compression": "gzip"}, "a chunk has 24 bytes, where 32 are expected"),
        (zlib.compress(bytes(32))[:-2], {"compression": "gzip"}, "is cut off"),
        (bytes(32), {"compression": "gzip"}, "a chunk can't be unpacked"),
        (bytes(24), {}, "takes 24 bytes, where it has 32"),
        (bytes(2112), {}, "takes 2,112 bytes, where it has 32"),
        (bytes(32) + b"abcd", {"fletcher32": True}, "the checksum of a chunk is wrong"),
    ],
)
def test_chunks_of_another_size(path: Path, chunk: bytes, settings: dict[str, Any], expected: str) -> None:
    """HDF5 itself reads or writes past the chunk, or unpacks all that there is."""
    replace(path, "rewards", shape=(4,), dtype=float, chunks=(4,), **settings)
    change(path, lambda file: file["data/demo_2/rewards"].id.write_direct_chunk((0,), chunk))
    said = message(path, "rewards")
    assert expected in said and "demo_2: 'rewards' can't be read" in said


def test_an_array_that_has_fewer_bytes(path: Path) -> None:
    """The size of what is stored is part of its layout."""
    with h5py.File(path) as file:
        begin = file["data/demo_2/rewards"].id.get_offset()
    layout = struct.pack("<QQ", begin, 32)
    content = path.read_bytes()
    assert content.count(layout) == 1
    path.write_bytes(content.replace(layout, struct.pack("<QQ", begin, 16)))
    assert "demo_2" in message(path, "rewards")


def test_chunks_that_are_too_many(path: Path) -> None:
    replace(path, "obs/agentview_image", shape=(4, 400, 400, 3), dtype=np.uint8, chunks=(1, 1, 2, 1))
    change(path, lambda file: file.pop("data/demo_0"))
    episodes = open_episodes(path, Opening())
    with pytest.raises(BrokenRecord, match=r"stored in more than 65,536 chunks: make them larger"):
        decode(episodes.read(0, ["obs/agentview_image"]).columns["obs/agentview_image"])


@pytest.mark.parametrize("chunks", [None, (3,)])
def test_texts_that_claim_a_length(path: Path, chunks: Any) -> None:
    """HDF5 itself would make room for 4 GB before it looks for the text."""
    texts = ["aa", "bb", "cc", "ddddddddd"]
    change(path, lambda file: [file[f"data/demo_{number}"].__setitem__("obs/text", texts * 2) for number in (0, 10)])
    change(path, lambda file: [file[f"data/demo_{number}/obs"].pop("text") for number in (0, 10)])
    settings = {"dtype": h5py.string_dtype(), "chunks": chunks}
    change(path, lambda file: file.create_dataset("data/demo_0/obs/text", data=texts[:3], **settings))
    change(path, lambda file: file.create_dataset("data/demo_2/obs/text", data=texts, **settings))
    with h5py.File(path) as file:
        array = file["data/demo_2/obs/text"].id
        place = array.get_offset() if chunks is None else array.get_chunk_info_by_coord((3,)).byte_offset
    content = bytearray(path.read_bytes())
    at = place + (48 if chunks is None else 0)
    assert content[at : at + 4] == (9).to_bytes(4, "little")
    content[at : at + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert "declares values of 4,294,967,301 bytes" in message(path, "obs/text")
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    path.write_bytes(content)
    assert "a value of 1,073,741,824 bytes is not where it should be" in message(path, "obs/text")


@pytest.mark.parametrize("settings", [{"scaleoffset": 4}, {"compression": "lzf"}])
def test_filters_that_are_not_read(path: Path, settings: dict[str, Any]) -> None:
    replace(path, "rewards", data=np.ones(4), chunks=True, **settings)
    assert "demo_2: 'rewards' is packed with" in message(path, "rewards") and "h5repack -f GZIP=4" in message(
        path, "rewards"
    )


def stored_otherwise(file: h5py.File) -> None:
    """Values in ways that are unusual, and allowed."""
    group = file["data/demo_0/obs"]
    group.create_dataset("big", data=np.arange(6, dtype=">i2").reshape(3, 2))
    group.create_dataset("partial", (3, 4), int, chunks=(2, 3), fillvalue=7)[0, 0] = 1
    group.create_dataset("never", (3,), float, fillvalue=2.5)
    group.create_dataset("grown", data=np.arange(3.0), maxshape=(None,), chunks=(2,))
    group.create_dataset("texts", data=["a", "", "ccc"], chunks=(2,), compression="gzip", shuffle=True)
    ended = h5py.h5t.C_S1.copy()
    ended.set_size(4)
    group.create_dataset("words", data=np.array([b"a", b"bb", b"ccc"], "S4"), dtype=h5py.Datatype(ended))
    group.create_dataset("kinds", data=[1, 0, 2], dtype=h5py.enum_dtype({"A": 0, "B": 1, "C": 2}, "u1"))
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_layout(h5py.h5d.COMPACT)
    small = h5py.h5d.create(group.id, b"compact", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((3, 2)), made)
    small.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(6, dtype=np.float32).reshape(3, 2))
    twelve = h5py.h5t.STD_I16LE.copy()
    twelve.set_precision(12)
    h5py.h5d.create(group.id, b"twelve", twelve, h5py.h5s.create_simple((3,)))


@pytest.mark.parametrize("block", [0, 512])
def test_values_that_are_stored_otherwise(tmp_path: Path, read_all: Any, block: int) -> None:
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w", userblock_size=block):
        pass
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"], file["data/demo_0/obs/x"] = np.zeros((3, 1)), np.ones(3)
        stored_otherwise(file)
        obs = file["data/demo_0/obs"]
        truth = {key: obs[key][()] for key in obs if key not in ("texts", "twelve", "words")}
    episodes, read = open_episodes(path, Opening()), read_all(path)[0]
    assert "numbers of an unusual format" in episodes.unread["obs/twelve"] and len(episodes.unread) == 1
    for key, values in truth.items():
        np.testing.assert_array_equal(read[f"obs/{key}"], values)
    assert read["obs/texts"].tolist() == ["a", "", "ccc"] and read["obs/words"].tolist() == ["a", "bb", "ccc"]
    assert read["obs/partial"].tolist()[0] == [1, 7, 7, 7]
    assert read["obs/big"].dtype == np.dtype("=i2")


def test_an_index_is_kept(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Opening(index=tmp_path / "index")
    change(path, lambda file: file.create_dataset("mask/train", data=np.array(["demo_10"], "S")))
    open_episodes(path, opening)
    monkeypatch.setattr("generalist.data.formats.robomimic.numbered", None)
    assert open_episodes(path, opening).lengths.tolist() == [5]


def test_another_process_opens_the_files_itself(path: Path) -> None:
    episodes = open_episodes(path, Opening())
    frames = episodes.read(0, ["obs/agentview_image"]).columns["obs/agentview_image"]
    copies = pickle.loads(pickle.dumps((episodes, frames)))
    np.testing.assert_array_equal(copies[0].read(1, ["actions"]).columns["actions"], demo(2, 4)["actions"])
    np.testing.assert_array_equal(decode(copies[1]), demo(0, 3)["obs/agentview_image"])


def test_a_bucket(path: Path, read_all: Any) -> None:
    bucket = UPath("memory://robomimic/demo.hdf5")
    bucket.write_bytes(path.read_bytes())
    for one, other in zip(read_all(bucket), read_all(path), strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_without_h5py(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'generalist\[formats\]'"):
        open_episodes(path, Opening())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"compression": "gzip", "chunks": True}])
def test_damaged_files(path: Path, survives: Any, settings: dict[str, Any]) -> None:
    write(path, attributes={"env_args": ENV, "problem_info": PROBLEM}, **settings)
    change(
        path, lambda file: [file[f"data/demo_{n}"].create_dataset("obs/t", data=["ab"] * t) for n, t in LENGTHS.items()]
    )
    assert survives(path, path, 80) > 10
